"""Recipes: what they name exists, own images get `photos`, and its image size follows from data and time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SHAPES

from dualcaps import ConfigError, TrainConfig, create_model, fit, load_data
from dualcaps.config import DataConfig, ModelConfig, RecipeName
from dualcaps.models import configure
from dualcaps.runs.run import Run
from dualcaps.training import recipes
from dualcaps.training.recipes import (
    PHOTO_SIDES,
    RECIPES,
    default_recipe,
    photos_rate,
    plan_photos,
    recipe,
    training_rate,
)

TRAINING = TrainConfig(batch_size=8, precision="float32", device="cpu")


def photos(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Two classes of 20 images, of these sizes in turn."""
    for kind, name in enumerate(SHAPES[:2]):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            height, width = sizes[number % len(sizes)]
            grey = 100 * kind + number  # a plain one, as large images take long to write
            Image.new("L", (width, height), grey).save(folder / name / f"{number:02}.png")
    return folder


def network(image_shape: tuple[int, int, int], num_classes: int) -> ModelConfig:
    return configure("da-capsnet-r", image_shape, num_classes, width=4)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_a_network_and_trains_it(name: str, shapes_folder: Path, tmp_path: Path):
    data, chosen = load_data(shapes_folder), recipe(name)
    switches = {**chosen.network, "width": 8}
    model = create_model(chosen.model, data.image_shape, len(data.classes), **switches)
    training = dataclasses.replace(chosen.training, epochs=1, batch_size=8, precision="float32", device="cpu")
    result = fit(model, data, training, out=tmp_path / "run", quiet=True)
    assert Run.open(result.run).training.tta == ("none" if name == "paper" else "shift")


def test_the_switches_of_a_recipe_are_those_of_its_network_and_trunk():
    photos = RECIPES["photos"]
    assert photos.switches("da-capsnet-r", {}) == {"width": 32, "grid": 1}
    assert photos.switches("da-capsnet-r", {"width": 8, "decoder": True}) == {"width": 8, "grid": 1, "decoder": True}
    assert photos.switches("da-capsnet-r", {"trunk": "mine"}) == {"trunk": "mine"}
    assert photos.switches("capsnet", {"width": 8}) == {"width": 8}


def test_another_optimizer_than_the_recipes_gets_a_rate_of_its_own():
    strong = RECIPES["strong"]
    assert strong.training_config({"epochs": 3}) == dataclasses.replace(strong.training, epochs=3)
    assert strong.training_config({"optimizer": "sgd"}).lr == strong.training.lr
    assert strong.training_config({"optimizer": "adamw"}).lr is None  # 0.1 is far too high for AdamW
    assert strong.training_config({"optimizer": "adamw", "lr": 0.01}).lr == 0.01


def test_the_rate_of_photos_follows_from_the_network():
    def rate(name: str, *, softmax: bool, **switches: str) -> tuple[float | None, str]:
        return photos_rate(dataclasses.replace(configure(name, (3, 64, 64), 2), **switches), softmax=softmax)

    assert rate("da-capsnet-r", softmax=False) == (0.15, "")
    assert rate("resnet-r", softmax=True) == (0.025, "resnet-r ends in a softmax")
    assert rate("da-capsnet-r", softmax=False, trunk_weights="a.safetensors") == (0.02, "the trunk is pretrained")


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match="unknown recipe 'stong': did you mean 'strong'"):
        recipe("stong")
    assert RecipeName.__args__ == tuple(RECIPES)


def test_own_images_get_photos_and_others_the_papers():
    assert default_recipe("/some/photos", None) == default_recipe("/some/photos", "da-capsnet-r") == "photos"
    assert default_recipe("digits", None) == default_recipe("/some/photos", "capsnet") == "paper"


@pytest.mark.parametrize(("images", "epochs"), [(100, 100), (2_000, 100), (5_000, 40), (1_000_000, 15)])
def test_more_images_get_fewer_epochs_of_photos(images: int, epochs: int):
    assert RECIPES["photos"].epochs(images) == epochs
    assert RECIPES["strong"].epochs(images) == RECIPES["strong"].training.epochs


@pytest.mark.parametrize(
    ("sizes", "rates", "side", "said"),
    [
        ([(300, 200), (180, 400)], {}, 160, "median of their shorter sides 180"),
        ([(2000, 1000)], {}, 224, "median of their shorter sides 1000"),
        ([(2000, 1000)], {224: 1, 192: 1}, 160, "192x192 would take 10 minutes"),
        ([(2000, 1000)], dict.fromkeys(PHOTO_SIDES, 1), 64, "96x96 would take 10 minutes"),
        ([(20, 30), (30, 20)], {}, 64, "median of their shorter sides 20"),
    ],
)
def test_the_size_of_photographs_follows_from_the_data_and_the_time(
    sizes, rates, side: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = 29 * 20  # of the training part, in 20 epochs
    monkeypatch.setattr(
        recipes, "training_rate", lambda config, _: images / 600 / 1.01 if config.image_shape[1] in rates else 1e6
    )
    source = DataConfig(str(photos(tmp_path / "photos", sizes)), test=0.2)
    plan = plan_photos(source, network, TRAINING, epochs=20, minutes=5)
    assert plan.image_size == (side, side)
    assert said in plan.reason
    assert plan.seconds == pytest.approx(606 if side in rates else 0, rel=0.05, abs=1)


def test_small_images_of_one_size_and_a_given_size_are_kept(tmp_path: Path):
    source = DataConfig(str(photos(tmp_path / "photos", [(20, 30)])), test=0.2)
    assert plan_photos(source, network, TRAINING, epochs=1).image_size == (20, 30)
    given = dataclasses.replace(source, image_size=(12, 14))
    assert plan_photos(given, network, TRAINING, epochs=1).image_size == (12, 14)


def test_npz_files_are_measured_by_their_arrays(tmp_path: Path):
    arrays = {"x_train": np.zeros((40, 100, 130, 3), np.uint8), "y_train": np.arange(40) % 2}
    np.savez(tmp_path / "photos.npz", **arrays)
    plan = plan_photos(DataConfig(str(tmp_path / "photos.npz"), test=0.2), network, TRAINING, epochs=1)
    assert plan.image_size == (96, 96)


def test_the_training_rate_is_measured_and_changes_no_random_numbers():
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert training_rate(network((3, 32, 32), 3), dataclasses.replace(TRAINING, augment="policy,erase")) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_own_images_are_trained_on_by_photos_and_resumed_at_the_same_size(
    run_cli: Callable, tmp_path: Path, monkeypatch
):
    folder = photos(tmp_path / "photos", [(70, 100), (90, 80)])
    small = ("--width", 4, "--precision", "float32", "--device", "cpu", "--batch-size", 8, "--out", "run")
    said = run_cli("train", folder, "--epochs", 1, *small)
    assert said.code == 0, said.err
    assert "recipe photos: da-capsnet-r, images of 64x64 pixels (median of their shorter sides 70), 1 epoch" in said.err
    run = Run.open(Path("run"))
    assert (run.model.name, run.model.image_shape[1:], run.data.image_size) == ("da-capsnet-r", (64, 64), (64, 64))
    assert (run.training.optimizer, run.training.tta) == ("sgd", "shift")
    monkeypatch.setattr(recipes, "plan_photos", None)  # not asked again
    resumed = run_cli("train", folder, "--epochs", 2, *small, "--resume")
    assert resumed.code == 0, resumed.err
    assert len(Run.open(Path("run")).history) == 2
