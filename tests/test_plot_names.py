"""Names of any kind in pictures: drawn as they are, never taken for mathematics, never an error."""

import io
import itertools
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualcaps.plots import (
    accuracy_curves,
    confusion_matrix,
    image_rows,
    labelled_images,
    learning_curves,
    png,
    strip_rows,
    svg,
)

NAMES = [
    "plain",
    "$",
    "$a$",
    "a_b^{c",
    r"\frac{1}{0}",
    r"$\frac$ 100 %",
    "漢字",
    "ひらがな and 한국어",
    "שלום عربي",
    "🐱 cat",
    "half \ud83d",
    "byte \udcff",
    "tab\tand\x00null",
    "a very long name of a class that nobody would give to one " * 5,
    "",
    " ",
    "<b>&amp;",
    "#%{}~",
]

HISTORY = [{"epoch": e, "loss": 1 / e, "train_accuracy": 0.5, "test_accuracy": 0.1 * e} for e in (1, 2)]


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("L"))


def colours(content: bytes) -> int:
    return len(np.unique(decoded(content)))


PICTURES: dict[str, Callable[[list[str]], Any]] = {
    "confusion": lambda names: confusion_matrix(np.eye(len(names), dtype=int) * 1234, names),
    "rows": lambda names: image_rows({names[0]: np.zeros((len(names), 3, 3, 1))}, names, names[0]),
    "captions": lambda names: labelled_images(np.zeros((len(names), 3, 3, 1)), names),
    "curves": lambda names: learning_curves(HISTORY, "test", 2, " ".join(names)[:60]),
    "bands": lambda names: accuracy_curves({name[:40]: np.array([[80.0, 90.0]]) for name in names}),
    "strips": lambda names: strip_rows({name: np.zeros((4, 30, 3), np.uint8) for name in names}),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_can_be_drawn_with_any_name(picture: str):
    assert colours(png(PICTURES[picture](NAMES))) > 2
    ElementTree.fromstring(svg(PICTURES[picture](NAMES)))


@settings(max_examples=6)
@given(st.lists(st.text(max_size=30), min_size=2, max_size=3, unique=True))
def test_no_name_keeps_a_confusion_matrix_from_being_drawn(names: list[str]):
    assert colours(png(PICTURES["confusion"](names))) > 2


def labels_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_dollars_and_underscores_stay_what_they_are():
    figure = confusion_matrix(np.eye(3, dtype=int), ["$a$", "b_1", r"\alpha"])
    assert labels_of(figure) == ["$a$", "b_1", r"\alpha"]
    assert not any(text.get_parse_math() for text in figure.axes[0].get_yticklabels())
    drawn = svg(figure).decode()
    for name in ("$a$", "b_1", r"\alpha"):
        assert f">{name}<" in drawn
    rows = image_rows({"$x$": np.zeros((1, 2, 2, 1))}, ["$y_1$"], "$z$")
    assert all(f">{name}<" in svg(rows).decode() for name in ("$x$", "$y_1$", "$z$"))


def test_characters_without_a_font_are_escaped_and_half_pairs_too():
    confusion = confusion_matrix(np.eye(2, dtype=int), ["\ue123 x", "\udcff"])  # of private use, and no text
    assert labels_of(confusion) == ["\\ue123 x", "\\udcff"]
    png(confusion)


def test_long_names_are_shortened_and_the_picture_keeps_its_room():
    long = ["n" * 500, "m" * 500, "short"]
    figure = confusion_matrix(np.eye(3, dtype=int), long)
    assert labels_of(figure) == ["n" * 21 + "…", "m" * 21 + "…", "short"]
    png(figure)
    box = figure.axes[0].get_position()
    assert box.width > 0.25
    assert box.height > 0.25


def test_names_tell_rows_and_columns_of_25_classes():
    names = [f"class {number}" for number in range(25)]
    counts = np.random.default_rng(0).integers(0, 5, (25, 25))
    figure = confusion_matrix(counts, names)
    axes = figure.axes[0]
    assert labels_of(figure) == [text.get_text() for text in axes.get_xticklabels()] == names
    assert len(axes.texts) == np.count_nonzero(counts)
    told = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert all(told[row, column] == str(counts[row, column]) for row, column in np.argwhere(counts))
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, counts / counts.sum(axis=1, keepdims=True))
    content = png(figure)
    assert colours(content) > 50
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))  # none overlap


def test_classes_without_images_are_drawn_and_many_classes_without_numbers():
    counts = np.zeros((45, 45), int)
    counts[0, 1] = 1_000_000
    figure = confusion_matrix(counts, [str(number) for number in range(45)])
    assert not figure.axes[0].texts
    assert np.isfinite(np.asarray(figure.axes[0].images[0].get_array())).all()
    few = confusion_matrix(counts[:3, :3], ["a", "b", "c"])
    assert [text.get_text() for text in few.axes[0].texts] == ["1,000,000"]
    assert colours(png(few)) > 2
