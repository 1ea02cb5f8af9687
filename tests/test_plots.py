"""Pictures: that they show what they were given."""

import io

import numpy as np
from PIL import Image

from dualcaps import plots
from dualcaps.plots import accuracy_curves, image_rows, image_strip, learning_curves, png, strip_rows, svg


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


def test_curves_are_the_median_with_each_run_behind_it():
    runs = np.array([[80.0, 90.0], [82.0, 94.0], [81.0, 92.0]])
    (axes,) = accuracy_curves({"capsnet": runs, "cnn": runs[:1]}).axes
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    assert drawn == [[81, 92], *runs.tolist(), [80, 90]]  # a single run is its own median
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["capsnet", "cnn"]


def test_a_run_that_failed_does_not_press_the_others_together():
    good, failed = np.array([[80.0, 84.0, 86.0]]), np.array([[20.0, 20.0, 20.0]])
    (alone,) = accuracy_curves({"capsnet": good, "cnn": good}).axes
    (beside,) = accuracy_curves({"capsnet": good, "cnn": np.concatenate([good, failed])}).axes
    assert beside.get_ylim() == alone.get_ylim()


def test_a_network_has_the_same_colour_in_all_pictures():
    runs = np.array([[80.0, 90.0]])
    (axes,) = accuracy_curves({"capsnet": runs, "da-capsnet": runs, "cnn": runs}).axes
    (fewer,) = accuracy_curves({"of my own": runs, "da-capsnet": runs}).axes
    colours = [line.get_color() for line in axes.lines]
    assert len(set(colours)) == 3
    assert fewer.lines[1].get_color() == colours[1] != fewer.lines[0].get_color()


def test_an_svg_is_the_same_each_time():
    runs = np.array([[80.0, 90.0], [82.0, 94.0]])
    first, second = (svg(accuracy_curves({"a": runs})) for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")


def test_strips_hold_the_images_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    strip = np.asarray(Image.open(io.BytesIO(image_strip(images / 255))))
    np.testing.assert_array_equal(strip, np.concatenate(list(images), axis=1))
    grey = np.repeat(images[..., :1], 3, axis=-1)
    assert np.asarray(Image.open(io.BytesIO(image_strip(grey / 255)))).shape == (4, 15)
    pair = np.asarray(Image.open(io.BytesIO(image_strip(grey[..., :2] / 255))))
    np.testing.assert_array_equal(pair, np.concatenate(list(images[..., 0]), axis=1))
    figure = strip_rows({"input": strip, "drawn": 255 - strip})
    assert [axes.get_ylabel() for axes in figure.axes] == ["input", "drawn"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), 255 - strip)


NAMES = ["$a_$b", "100 % {x}^2", "多云", "emoji \U0001f98a", "half \udcff", "a very long class name " * 4, "ok"]


def test_any_class_name_can_be_drawn():
    images = np.random.default_rng(0).random((len(NAMES), 8, 8, 1))
    confusion = np.arange(len(NAMES) ** 2).reshape(len(NAMES), -1)
    history = [{"epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "test_accuracy": 0.5}]
    for figure in (
        plots.image_rows(dict.fromkeys(NAMES, images), NAMES, NAMES[0]),
        plots.labelled_images(images, NAMES),
        plots.confusion_matrix(confusion, NAMES),
        plots.learning_curves(history, "test", 1, NAMES[4]),
        plots.accuracy_curves({name: np.full((2, 3), 50.0) for name in NAMES}),
    ):
        assert plots.png(figure).startswith(b"\x89PNG")
        assert b"<svg" in plots.svg(figure)


def test_no_class_is_missing_from_a_large_confusion_matrix():
    names = [f"class {number}" for number in range(60)]
    figure = plots.confusion_matrix(np.eye(60, dtype=int), names)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
