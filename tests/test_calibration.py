"""Lengths become probabilities by a temperature that is fitted on held-out images and kept in the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dualcaps import DataError, RunError, TrainConfig, create_model, fit, load_data, load_model, predict
from dualcaps.calibration import Calibration, calibrate, calibration_of, held_out_images, probabilities
from dualcaps.inference import run_data
from dualcaps.runs.run import Run


def test_probabilities_are_a_softmax_at_the_temperature():
    lengths = np.array([[0.9, 0.1, 0.4]], np.float32)
    wanted = np.exp([[1.8, 0.2, 0.8]])
    np.testing.assert_allclose(probabilities(lengths, 0.5), wanted / wanted.sum(), rtol=1e-6)
    assert probabilities(np.eye(2), 0.01).max() == pytest.approx(1)


def test_the_temperature_is_that_of_the_labels():
    random = np.random.default_rng(0)
    lengths = random.random((20_000, 4))
    chances = probabilities(lengths, 0.3)
    labels = (chances.cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    found = calibrate(lengths, labels, "drawn images")
    assert found.temperature == pytest.approx(0.3, rel=0.1)
    assert found.error_after < 0.02 < found.error_before
    assert (found.images, found.held_out) == (20_000, "drawn images")


def test_a_temperature_stays_in_its_range():
    right, wrong = np.array([0, 1]), np.array([1, 0])
    assert 0.01 <= calibrate(np.eye(2), right, "").temperature < 0.05
    assert 50 < calibrate(np.eye(2), wrong, "").temperature <= 100


def test_a_training_keeps_the_calibration_of_its_validation_images(run_copy: Path):
    opened = Run.open(run_copy)
    model = load_model(opened)
    kept = json.loads((run_copy / "calibration.json").read_text())
    validation = run_data(opened).validation
    wanted = calibrate(predict(model, validation.images).numpy(), validation.labels.numpy(), "the validation images")
    found = calibration_of(opened, model)
    assert found.temperature == pytest.approx(wanted.temperature)
    assert found == Calibration(**{name: value for name, value in kept.items() if name != "weights"})


def test_a_calibration_of_other_weights_is_computed_again(run_copy: Path):
    opened = Run.open(run_copy)
    file = run_copy / "calibration.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "weights": "of another network", "temperature": 50.0}))
    assert calibration_of(opened, load_model(opened)).temperature == pytest.approx(kept["temperature"])
    assert json.loads(file.read_text()) == kept


@pytest.mark.parametrize("content", ["{", "[]", '{"weights": 1'])
def test_a_damaged_calibration_is_named(run_copy: Path, content: str):
    opened = Run.open(run_copy)
    (run_copy / "calibration.json").write_text(content)
    with pytest.raises(RunError, match=r"calibration\.json: damaged .*: remove it"):
        calibration_of(opened, load_model(opened))


def test_a_calibration_without_a_number_is_named(run_copy: Path):
    opened = Run.open(run_copy)
    kept = json.loads((run_copy / "calibration.json").read_text())
    (run_copy / "calibration.json").write_text(json.dumps({**kept, "temperature": "warm"}))
    with pytest.raises(RunError, match=r"calibration\.json: damaged .*: remove it"):
        calibration_of(opened, load_model(opened))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_trained_on_all_but_the_test_images_shares_them(shapes: Path, tmp_path: Path):
    data = load_data(shapes)
    torch.manual_seed(0)
    config = TrainConfig(epochs=1, precision="float32", device="cpu", protocol="last")
    fit(create_model("capsnet", data.image_shape, 3), data, config, out=tmp_path / "run", quiet=True)
    opened = Run.open(tmp_path / "run")
    assert not (tmp_path / "run" / "calibration.json").exists()
    held_out = held_out_images(opened)
    assert held_out.description.startswith("half of the test images")
    assert len(held_out.images) == len(held_out.labels) == 3
    test = run_data(opened).test
    assert sorted([*held_out.others.tolist(), *_places(test.images, held_out.images)]) == list(range(len(test)))
    assert calibration_of(opened, load_model(opened)).held_out == held_out.description


def _places(images: torch.Tensor, chosen: torch.Tensor) -> list[int]:
    return [next(place for place, image in enumerate(images) if image.equal(one)) for one in chosen]


@pytest.mark.usefixtures("no_pictures")
def test_a_calibration_needs_the_images_once(shapes_folder: Path, tmp_path: Path):
    data = load_data(shapes_folder)
    torch.manual_seed(0)
    config = TrainConfig(epochs=1, precision="float32", device="cpu")
    fit(create_model("capsnet", data.image_shape, 3), data, config, out=tmp_path / "run", quiet=True)
    shapes_folder.rename(tmp_path / "moved")
    opened = Run.open(tmp_path / "run")
    model = load_model(opened)
    assert calibration_of(opened, model).held_out == "the validation images"
    (tmp_path / "run" / "calibration.json").unlink()
    with pytest.raises(DataError, match="shapes"):
        calibration_of(opened, model)
