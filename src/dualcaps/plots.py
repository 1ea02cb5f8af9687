"""Figures from numbers and arrays that are computed elsewhere.

Names are drawn literally: `$` does not start mathematics. Characters that no installed font has, and bytes
that are not text, are replaced by escapes.
"""

import contextlib
import functools
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_MOST_IN_LEGEND = 20
_BLUE, _ORANGE = "#2266aa", "#dd7722"
_COLOURS = {
    "capsnet": _BLUE,
    "capsnet-conv-att": "#33a06f",
    "capsnet-caps-att": "#9355b5",
    "da-capsnet": _ORANGE,
    "cnn": "#777777",
    "sabour-capsnet": "#b03a48",
}
"""The same network has the same colour in all pictures."""


def png(figure: "Figure") -> bytes:
    """Render a figure as a PNG file."""
    content = io.BytesIO()
    _make_drawable(figure)
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def svg(figure: "Figure") -> bytes:
    """Render a figure as an SVG file, reproducible to the byte."""
    import matplotlib as mpl

    content = io.BytesIO()
    _make_drawable(figure)
    with mpl.rc_context({"svg.hashsalt": "dualcaps", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def accuracy_curves(curves: Mapping[str, np.ndarray]) -> "Figure":
    """Plot accuracy against the epoch: for each name the median over its runs, and each run as a thin line.

    The axis begins where the best run of each name does, so that one that failed does not press the others together.

    Args:
        curves: by name, accuracies in % [runs, epochs].
    """
    figure = _figure(6.4, 4)
    axes = figure.subplots()
    lowest = []
    others = itertools.cycle(colour for name, colour in _COLOURS.items() if name not in curves)
    for name, values in curves.items():
        colour = _COLOURS[name] if name in _COLOURS else next(others, "black")
        epochs, median = np.arange(1, values.shape[1] + 1), np.median(values, axis=0)
        axes.plot(epochs, median, color=colour, label=name, linewidth=1.8, marker="." if len(epochs) < 20 else None)
        if len(values) > 1:
            axes.plot(epochs, values.T, color=colour, alpha=0.3, linewidth=0.7)
        lowest.append(np.quantile(values.max(axis=0), 0.1))
    top = max(float(values.max()) for values in curves.values())
    low = min(*lowest, top - 5)  # the first epochs may be cut off
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(low - 0.1 * (top - low), top + 0.05 * (top - low)))
    if all(values.shape[1] == 1 for values in curves.values()):
        axes.set_xlim(0, 2)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False, fontsize=9)
    return figure


def strength_curves(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], units: Mapping[str, str]
) -> "Figure":
    """Plot accuracy in % against the strength of changes: a panel for each kind, a line for each change.

    More than three panels are drawn in several rows.

    Args:
        curves: by kind and change, strengths and accuracies.
        units: by kind, what the strength is measured in.
    """
    rows = math.ceil(len(curves) / 3)
    columns = math.ceil(len(curves) / rows)
    figure = _figure(4.2 * columns, 3.8 * rows)
    for position, (kind, changes) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for number, (change, (strengths, accuracies)) in enumerate(changes.items()):
            line = ("-", "--")[number // 10 % 2]
            axes.plot(strengths, accuracies, f"C{number % 10}", label=change, marker=".", linestyle=line)
        axes.set(title=kind, xlabel=units[kind], ylabel="accuracy, %", ylim=(-3, 103))
        axes.grid(alpha=0.3)
        if len(changes) > 5:
            axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        elif len(changes) > 1:
            axes.legend(fontsize=7, frameon=False, loc="best")
    return figure


def strip_rows(strips: Mapping[str, np.ndarray]) -> "Figure":
    """Draw strips of images, uint8 [height, width, 3], one below the other, with names on the left."""
    height, width = next(iter(strips.values())).shape[:2]
    wide, names, gap = 7.2, 1.0, 0.08  # inches
    high = (wide - names) * height / width
    figure = _figure(wide, len(strips) * (high + gap))
    figure.set_layout_engine("none")  # constrained layout leaves no room for names beside images of fixed aspect
    for row, (name, strip) in enumerate(strips.items(), start=1):
        bottom = 1 - (row * high + (row - 0.5) * gap) / figure.get_figheight()
        axes = figure.add_axes((names / wide, bottom, 1 - names / wide, high / figure.get_figheight()))
        axes.imshow(strip, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]], selection: str, selected_epoch: int, title: str) -> "Figure":
    """Plot loss and accuracy against the epoch and mark the selected epoch.

    Args:
        history: for each epoch "epoch", "loss", "train_accuracy" and `<selection>_accuracy`.
        selection: the part that the epoch was selected on, "validation" or "test".
        selected_epoch: the epoch to mark.
        title: title of the figure.
    """
    epochs = [line["epoch"] for line in history]
    chosen = [100 * line[f"{selection}_accuracy"] for line in history]
    best = epochs.index(selected_epoch)
    figure = _figure(9, 3.6)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [line["loss"] for line in history], color=_BLUE, marker=".", label="training")
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    accuracy.plot(epochs, [100 * line["train_accuracy"] for line in history], color=_BLUE, marker=".", label="training")
    accuracy.plot(epochs, chosen, color=_ORANGE, marker=".", label=selection)
    accuracy.plot(
        selected_epoch,
        chosen[best],
        "o",
        color=_ORANGE,
        markersize=9,
        fillstyle="none",
        label=f"selected: epoch {selected_epoch}, {chosen[best]:.2f} %",
    )
    accuracy.set(xlabel="epoch", ylabel="accuracy, %")
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return figure


def image_strip(images: np.ndarray) -> bytes:
    """Images [count, height, width, channels] in [0, 1] side by side as a PNG file, without scaling.

    Three channels are shown in colour, any other number by their mean.
    """
    row = np.concatenate(list(images), axis=1)
    if row.shape[-1] not in (1, 3):
        row = row.mean(axis=-1, keepdims=True)
    grey = row.shape[-1] == 1 or (row == row[..., :1]).all()
    shown = row[..., 0] if grey else row[..., :3]
    content = io.BytesIO()
    Image.fromarray((shown * 255).round().astype(np.uint8)).save(content, "PNG", optimize=True)
    return content.getvalue()


def image_rows(rows: Mapping[str, np.ndarray], titles: Sequence[str], title: str = "") -> "Figure":
    """Draw rows of images with a name for each row and a title for each column.

    Args:
        rows: by name, images [columns, height, width, channels] with values in [0, 1]; three
            channels are shown in colour, any other number by their mean.
        titles: one title per column.
        title: of the whole figure.
    """
    figure = _figure(1.1 * len(titles) + 0.6, 1.15 * len(rows) + (0.8 if title else 0.5))
    if title:
        figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            shown = image if image.shape[-1] == 3 else image.mean(axis=-1)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(_shortened(name, 18), fontsize=7 if len(name) > 14 else 10)
    for axes, heading in zip(grid[0], titles, strict=True):
        lines = (_shortened(line, 18) for line in heading.splitlines())
        axes.set_title("\n".join(lines), fontsize=8)
    return figure


def confusion_matrix(confusion: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Draw a confusion matrix: true class in rows, predicted class in columns, coloured by the share of the row.

    Args:
        confusion: counts [classes, classes].
        classes: their names.
    """
    count = len(classes)
    side = min(max(4.0, 0.42 * count + 2), 24.0)
    figure = _figure(side, side)
    axes = figure.subplots()
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(confusion / totals, cmap="Blues", vmin=0, vmax=1)
    size = 8 if count <= 40 else 5
    families, characters = _fonts()
    names = [_escaped(_shortened(name, 22), characters) for name in classes]
    style: Any = {"fontsize": size, "fontfamily": families, "parse_math": False}
    axes.set_xticks(range(count), names, rotation=90, **style)
    axes.set_yticks(range(count), names, **style)
    axes.set(xlabel="predicted class", ylabel="true class")
    if count <= 40:
        for row, column in np.argwhere(confusion):
            dark = confusion[row, column] / totals[row, 0] > 0.5
            number = f"{confusion[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    return figure


def labelled_images(images: np.ndarray, captions: Sequence[str], *, columns: int = 6) -> "Figure":
    """Draw images with a caption above each.

    Args:
        images: [count, height, width, channels] with values in [0, 1].
        captions: one for each image, of one or several lines.
        columns: images in a row.
    """
    rows = max(1, -(-len(images) // columns))
    figure = _figure(1.5 * columns, 1.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
        lines = (_shortened(line, 26) for line in caption.splitlines())
        axes.set_title("\n".join(lines), fontsize=6)
    return figure


def pose_scatter(
    together: np.ndarray, names: Sequence[str], by_azimuth: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> "Figure":
    """Plot points of two dimensions coloured by class, and beside them the points of single classes by azimuth.

    Args:
        together: points [N, 2].
        names: the class name of each.
        by_azimuth: by title, points [M, 2] and their azimuths in degrees.
    """
    import matplotlib as mpl

    columns = min(4, 1 + len(by_azimuth))
    rows = -(-(1 + len(by_azimuth)) // columns)
    figure = _figure(3.2 * columns + 0.8, 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[1 + len(by_azimuth) :]:
        axis.remove()
    axes = axes[: 1 + len(by_azimuth)]
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    classes = sorted({*names})
    colours = mpl.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number, name in enumerate(classes):
        own = np.array([other == name for other in names])
        label = _shortened(name, 20) if number < _MOST_IN_LEGEND else None
        axes[0].scatter(*together[own].T, s=4, label=label, color=colours(number % colours.N))
    axes[0].set_title("all poses by class, t-SNE", fontsize=9)
    axes[0].legend(fontsize=6, markerscale=2, framealpha=0.5)
    points = None
    for axis, (title, (own, azimuths)) in zip(axes[1:], by_azimuth.items(), strict=True):
        points = axis.scatter(*own.T, s=6, c=azimuths, cmap="twilight", vmin=0, vmax=360)
        axis.set_title(_shortened(title, 40), fontsize=9)
    if points is not None:
        figure.colorbar(points, ax=axes, label="azimuth in degrees", shrink=0.6, ticks=range(0, 361, 90))
    return figure


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _make_drawable(figure: "Figure") -> None:
    """Make all names literal, in installed fonts that have their characters; other characters become escapes."""
    families, characters = _fonts()
    for text in _named_texts(figure):
        text.set_parse_math(False)
        words = text.get_text()
        if not (words.isascii() and words.replace("\n", "").isprintable()):
            text.set_fontfamily(families)
            text.set_text(_escaped(words, characters))


def _named_texts(figure: "Figure") -> "Iterator[Text]":
    """All texts except tick labels, whose exponents are written as mathematics."""
    yield from figure.texts  # the figure's title is one of them
    for axes in figure.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)
        if (legend := axes.get_legend()) is not None:
            yield from legend.get_texts()


def _escaped(text: str, characters: frozenset[int]) -> str:
    """Text with escapes for lone surrogates and characters that no font has."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if ord(c) in characters or c == "\n" else f"\\u{ord(c):04x}" for c in plain)


_FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic"),
    *("Malgun Gothic", "PingFang SC", "Hiragino Sans GB", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji"),
    *("Nirmala UI", "Segoe UI", "Segoe UI Symbol", "Symbola"),
)


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Matplotlib's font, installed fallback fonts, and all code points that they cover."""
    from matplotlib import font_manager, ft2font

    files = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in files)]
    known: set[int] = set()
    for family in families:
        with contextlib.suppress(OSError, RuntimeError, KeyError):
            known |= ft2font.FT2Font(files[family]).get_charmap().keys()
    return families, frozenset(known)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow: reads a cache of the machine's fonts

    return Figure(figsize=(width, height), layout="constrained")
