"""Pictures: that they show what they were given."""

import io

import numpy as np
from PIL import Image

from dualcaps.plots import accuracy_bands, image_rows, image_strip, learning_curves, png, strip_rows, svg


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


def test_bands_are_mean_and_standard_deviation_over_the_runs():
    runs = np.array([[80.0, 90.0], [82.0, 94.0], [81.0, 92.0]])
    (axes,) = accuracy_bands({"capsnet": runs, "cnn": runs[:1]}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [81, 92])
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert len(axes.collections) == 1  # one run has no spread
    np.testing.assert_allclose((band[:, 1].min(), band[:, 1].max()), (80, 94))
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["capsnet", "cnn"]


def test_a_network_has_the_same_colour_whatever_it_is_drawn_with():
    runs = np.array([[80.0, 90.0]])
    (axes,) = accuracy_bands({"capsnet": runs, "da-capsnet": runs, "cnn": runs}).axes
    (fewer,) = accuracy_bands({"of my own": runs, "da-capsnet": runs}).axes
    colours = [line.get_color() for line in axes.lines]
    assert len(set(colours)) == 3
    assert fewer.lines[1].get_color() == colours[1] != fewer.lines[0].get_color()


def test_an_svg_is_the_same_each_time():
    runs = np.array([[80.0, 90.0], [82.0, 94.0]])
    first, second = (svg(accuracy_bands({"a": runs})) for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")


def test_strips_hold_the_images_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    strip = np.asarray(Image.open(io.BytesIO(image_strip(images / 255))))
    np.testing.assert_array_equal(strip, np.concatenate(list(images), axis=1))
    grey = np.repeat(images[..., :1], 3, axis=-1)
    assert np.asarray(Image.open(io.BytesIO(image_strip(grey / 255)))).shape == (4, 15)
    figure = strip_rows({"input": strip, "drawn": 255 - strip})
    assert [axes.get_ylabel() for axes in figure.axes] == ["input", "drawn"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), 255 - strip)
