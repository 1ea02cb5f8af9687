"""Pictures: that they show what they were given."""

import io

import numpy as np
from PIL import Image

from dualcaps.plots import image_rows, learning_curves, png


def history(selection: str) -> list[dict[str, float]]:
    return [
        {"epoch": e, "loss": 1 / e, "train_accuracy": 0.1 * e, f"{selection}_accuracy": 0.5 if e > 2 else 0.2}
        for e in range(1, 6)
    ]


def test_curves_show_loss_and_accuracy_with_the_selected_epoch():
    figure = learning_curves(history("test"), "test", 4, "a title")
    loss, accuracy = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [20, 20, 50, 50, 50])
    legend = accuracy.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "test", "selected: epoch 4, 50.00 %"]
    picture = Image.open(io.BytesIO(png(figure)))
    assert picture.format == "PNG"
    assert picture.width > 1000


def test_image_rows_show_each_image_under_its_title():
    grey, colour = np.random.default_rng(0).random((3, 4, 4, 1)), np.random.default_rng(1).random((3, 4, 4, 3))
    figure = image_rows({"a": grey, "b": colour}, ["x", "y", "z"])
    assert [axes.get_title() for axes in figure.axes] == ["x", "y", "z", "", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "", "", "b", "", ""]
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), grey[1, :, :, 0])
    np.testing.assert_allclose(figure.axes[5].images[0].get_array(), colour[2])
