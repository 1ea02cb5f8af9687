"""Images of none of the classes are told from those of the classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import draw_shape

from dualcaps import DataError, ImageDataset, RunError, TrainConfig, create_model, fit, load_model
from dualcaps.explain.rejection import Rejection, rejection_of, set_thresholds, signals
from dualcaps.runs.run import Run


def test_signals_are_those_of_the_networks_outputs():
    torch.manual_seed(0)
    model = create_model("da-capsnet", (1, 12, 12), 3).eval()
    images = torch.rand(5, 1, 12, 12)
    counts: list[int] = []
    found = signals(model, images, batch_size=2, each=counts.append)
    assert counts == [2, 2, 1]
    assert list(found) == ["length", "reconstruction", "entropy"]
    with torch.no_grad():
        whole = model(images, intermediates=True)
    np.testing.assert_allclose(found["length"], 1 - whole.lengths.max(dim=1).values, rtol=1e-5)
    drawn = model.reconstruct(whole.poses, whole.lengths.argmax(dim=1)).detach()
    np.testing.assert_allclose(found["reconstruction"], ((drawn - images) ** 2).flatten(1).mean(1), rtol=1e-5)
    entropies = [
        np.mean([-(row * row.log()).sum() / np.log(3) for row in couplings.T]) for couplings in whole.couplings
    ]
    np.testing.assert_allclose(found["entropy"], entropies, rtol=1e-5)
    assert (found["entropy"] <= 1 + 1e-9).all()


def test_signals_without_a_part_are_left_out():
    assert list(signals(create_model("cnn", (1, 12, 12), 3), torch.rand(2, 1, 12, 12))) == ["length"]
    without = create_model("capsnet", (1, 12, 12), 3, decoder=False)
    assert list(signals(without, torch.rand(2, 1, 12, 12))) == ["length", "entropy"]


def test_tails_count_the_known_images_that_are_as_extreme():
    known = Rejection({"length": np.array([0.1, 0.2, 0.2, 0.4])}, 0.5, 4, "four images")
    found = {"length": np.array([0.0, 0.2, 0.3, 0.4, 0.5])}
    np.testing.assert_allclose(known.tails(found)["length"], [1, 4 / 5, 2 / 5, 2 / 5, 1 / 5])
    assert known.rejects(found).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("count", [100, 5_000])
def test_thresholds_reject_the_wanted_share_of_further_images(count: int):
    random = np.random.default_rng(0)

    def draw(images: int) -> dict[str, np.ndarray]:
        return {"length": random.random(images), "reconstruction": random.exponential(size=images)}

    known = set_thresholds(draw(count), "held-out images")
    assert all(len(values) <= 2_000 for values in known.values.values())
    assert known.images == count
    margin = 3 * (0.05 * 0.95 * (1 / count + 1 / 20_000)) ** 0.5
    assert abs(known.rejects(draw(20_000)).mean() - 0.05) < margin
    unusual = {"length": np.array([0.5]), "reconstruction": np.array([20.0])}
    assert known.rejects(unusual).all()


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="19 held-out images are too few"):
        set_thresholds({"length": np.arange(19.0)}, "held-out images")


@pytest.mark.usefixtures("no_pictures")
def test_thresholds_are_kept_in_the_run_until_its_weights_change(tmp_path: Path):
    run = train(tmp_path)
    model = load_model(run)
    data, opened = tmp_path / "data.npz", Run.open(run)
    known = rejection_of(opened, model)
    assert known.held_out == "the validation images"
    assert set(known.values) == {"length", "reconstruction", "entropy"}
    data.rename(tmp_path / "moved.npz")
    again = rejection_of(opened, model)
    assert again.tail == known.tail
    np.testing.assert_array_equal(again.values["length"], known.values["length"])
    kept = json.loads((run / "rejection.json").read_text())
    (run / "rejection.json").write_text(json.dumps({**kept, "weights": "of another network"}))
    with pytest.raises(DataError, match=r"computed once.*data\.npz"):
        rejection_of(opened, model)
    (run / "rejection.json").write_text("{")
    with pytest.raises(RunError, match=r"rejection\.json: damaged .*: remove it"):
        rejection_of(opened, model)


def train(folder: Path, **how: object) -> Path:
    """A run of an epoch on 300 noisy images."""
    from dualcaps import load_data

    random = np.random.default_rng(0)
    images = np.stack([draw_shape(number, (12, 12), random) for number in range(300)])
    np.savez(folder / "data.npz", train_images=images, train_labels=np.arange(300) % 3)
    data = load_data(folder / "data.npz", validation=0.2, test=0.2)
    assert isinstance(data, ImageDataset)
    torch.manual_seed(0)
    config = TrainConfig(epochs=1, precision="float32", device="cpu", **how)
    fit(create_model("capsnet", data.image_shape, 3), data, config, out=folder / "run", quiet=True)
    return folder / "run"
