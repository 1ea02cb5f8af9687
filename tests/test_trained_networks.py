"""The trained networks in results/models are what their cards say, and are used by their names."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualcaps import create_model, evaluate, load_data, load_model
from dualcaps.data.dataset import ImageSplit
from dualcaps.runs.run import Run, trained_networks

FOLDER = Path(__file__).parents[1] / "results" / "models"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def test_they_are_small_and_come_from_nowhere_in_particular():
    assert set(trained_networks()) == {path.name for path in FOLDER.iterdir() if path.is_dir()} != set()
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 30e6
    for name, path in trained_networks().items():
        run = Run.open(name)
        assert run.result is not None
        network, _, data = name.partition(".")
        assert (run.model.name, run.data.source, run.provenance["data"]["from"]) == (network, data, data)
        assert run.model.name in (path / "README.md").read_text(encoding="utf-8")


def test_each_predicts_rejects_and_gives_probabilities_without_its_data(run_cli: Callable):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save("noise.png")
    for name in trained_networks():
        said = run_cli("predict", name, "noise.png", "--reject", "--json")
        assert said.code == 0, said.err
        (answer,) = json.loads(said.out)
        assert answer["rejected"], name
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_accuracy_is_that_of_the_card():
    data = load_data("fashion-mnist", data_dir=FASHION_MNIST)
    chosen = ImageSplit(data.test.images[:2_000], data.test.labels[:2_000])
    for name in ("da-capsnet-r.fashion-mnist", "da-capsnet.fashion-mnist"):
        run = Run.open(name)
        assert run.result is not None
        assert run.classes == data.classes
        found = evaluate(load_model(run), chosen, tta=run.training.tta).accuracy
        assert found == pytest.approx(run.result["test_accuracy"], abs=0.015)


def test_a_network_with_other_classes_starts_from_one():
    model = create_model(pretrained="da-capsnet-r.cifar-10", num_classes=3)
    trained = load_model("da-capsnet-r.cifar-10").state_dict()
    same = [name for name, weights in model.state_dict().items() if weights.equal(trained[name])]
    assert len(same) > 0.8 * len(trained)
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).lengths.shape == (2, 3)
