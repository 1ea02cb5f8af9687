"""Pictures from plain numbers and arrays; what they show is computed elsewhere."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE = "#2266aa", "#dd7722"


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def learning_curves(history: Sequence[Mapping[str, Any]], selection: str, selected_epoch: int, title: str) -> "Figure":
    """Loss and accuracy against the epoch, the selected epoch marked.

    Args:
        history: for each epoch "epoch", "loss", "train_accuracy" and `<selection>_accuracy`.
        selection: the part that the epoch was selected on, "validation" or "test".
        selected_epoch: the epoch to mark.
        title: what was trained on what.
    """
    epochs = [line["epoch"] for line in history]
    chosen = [100 * line[f"{selection}_accuracy"] for line in history]
    best = epochs.index(selected_epoch)
    figure = _figure(9, 3.6)
    figure.suptitle(title, parse_math=False)
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


def image_rows(rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> "Figure":
    """Rows of images, each row named at its left, each column titled.

    Args:
        rows: by name, images [columns, height, width, channels] with values in [0, 1]; three
            channels are shown in colour, any other number by their mean.
        titles: a title a column.
    """
    figure = _figure(1.1 * len(titles) + 0.6, 1.15 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            shown = image if image.shape[-1] == 3 else image.mean(axis=-1)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8, parse_math=False)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # reads, and at first writes, a cache of the machine's fonts

    return Figure(figsize=(width, height), layout="constrained")
