"""Training that is interrupted within an epoch goes on there, to the bit; losses that diverge stop it."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dualcaps import (
    Callback,
    CapsOutput,
    ConfigError,
    ImageDataset,
    Intermediates,
    Network,
    TrainConfig,
    create_model,
    fit,
    load_data,
)
from dualcaps.data.pack import pack
from dualcaps.errors import Terminated
from dualcaps.runs.run import Run, read_checkpoint
from dualcaps.training.callbacks import TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")
TINY = TrainConfig(
    epochs=3, batch_size=4, precision="float32", device="cpu", deterministic=True, augment="policy,erase", ema=0.9
)


@pytest.fixture
def data(shapes_folder: Path) -> ImageDataset:
    return load_data(shapes_folder)


def fresh(data: ImageDataset, name: str = "cnn") -> Network:
    torch.manual_seed(0)
    return create_model(name, data.image_shape, len(data.classes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


class At(Callback):
    """Do something at the n-th step of a process."""

    def __init__(self, number: int, what: Any) -> None:
        self.left, self.what = number, what

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.what(state)


def send(number: int) -> Any:
    return lambda _: os.kill(os.getpid(), number)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def killed(_: Any) -> None:
    raise KilledError


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("name", ["cnn", "da-capsnet", "packed"])  # with dropout and without
def test_interrupted_again_and_again_it_ends_with_the_same_weights(
    data: ImageDataset, shapes_folder: Path, tmp_path: Path, name: str
):
    if name == "packed":
        pack([shapes_folder], tmp_path / "packed")
        data, name = load_data(tmp_path / "packed"), "cnn"
        assert data.train.shards is not None
    whole = fit(fresh(data, name), data, TINY, out=tmp_path / "whole", quiet=True)
    run, interruptions = tmp_path / "run", 0
    while not (run / "result.json").exists():
        try:
            stop = At(2, send(signal.SIGINT))
            result = fit(fresh(data, name), data, TINY, out=run, resume=True, quiet=True, callbacks=[stop])
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 9  # three epochs of seven steps, two or three of them at a time
    result = fit(fresh(data, name), data, TINY, out=run, resume=True, quiet=True)
    assert [{**line, "seconds": 0, "images_per_second": 0} for line in result.history] == [
        {**line, "seconds": 0, "images_per_second": 0} for line in whole.history
    ]
    assert all(torch.equal(tensor, weights(run)[key]) for key, tensor in weights(whole.run).items())
    assert all(0 < line["seconds"] < 60 for line in result.history)


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_the_step_under_way_is_finished_and_a_second_signal_does_not_wait(data: ImageDataset, tmp_path: Path, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        fit(fresh(data), data, TINY, out=tmp_path / "run", quiet=True, callbacks=[At(3, send(signal.SIGTERM))])
    kept = read_checkpoint(tmp_path / "run")
    assert kept is not None
    assert kept.progress is not None
    assert kept.progress["batches"] == 3
    assert kept.history == []

    def twice(_: TrainingState) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(fresh(data), data, TINY, out=tmp_path / "run", resume=True, callbacks=[At(2, twice)])
    assert not isinstance(caught.value, Terminated)
    again = read_checkpoint(tmp_path / "run")
    assert again is not None
    assert again.progress is not None
    assert again.progress["batches"] == 3  # nothing was written the second time
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "resumed in epoch 1 of 3, 44% of which is done" in capsys.readouterr().err


def test_checkpoints_within_an_epoch_survive_a_kill(data: ImageDataset, tmp_path: Path):
    whole = fit(fresh(data), data, TINY, out=tmp_path / "whole", quiet=True)
    often = dataclasses.replace(TINY, checkpoint_minutes=1e-9)
    for step in (1, 6, 8, 4):
        with pytest.raises(KilledError):
            fit(fresh(data), data, often, out=tmp_path / "run", resume=True, quiet=True, callbacks=[At(step, killed)])
    kept = read_checkpoint(tmp_path / "run")
    assert kept is not None
    assert kept.progress is not None
    assert 7 * len(kept.history) + kept.progress["batches"] == 15  # each was killed before its last step was written
    resumed = fit(fresh(data), data, TINY, out=tmp_path / "run", resume=True, quiet=True)
    assert [line["loss"] for line in resumed.history] == [line["loss"] for line in whole.history]
    assert all(torch.equal(tensor, weights(resumed.run)[key]) for key, tensor in weights(whole.run).items())


class Diverging(Network):
    """A linear network whose loss is multiplied from a certain training step on."""

    def __init__(self, model: Network, step: int, factor: float) -> None:
        super().__init__(model.config)
        self.inner, self.step, self.factor, self.steps = model, step, factor, 0

    def forward(self, images: torch.Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        return self.inner(images, intermediates)

    def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.steps += 1
        return self.inner.loss(*arguments, **options) * (self.factor if self.steps >= self.step else 1.0)


@pytest.mark.parametrize(("factor", "value"), [(float("nan"), "nan"), (float("inf"), "inf"), (1e9, r"[\d.]+e\+\d+")])
def test_a_diverging_loss_is_located_and_the_last_checkpoint_kept(
    data: ImageDataset, tmp_path: Path, factor: float, value: str
):
    config = dataclasses.replace(TINY, ema=None, epochs=4)
    model = Diverging(fresh(data), 7 + 5, factor)
    with pytest.raises(ConfigError, match=rf"the loss is {value} in epoch 2, step 5 of 7, training images ") as caught:
        fit(model, data, config, out=tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    named = str(caught.value).partition("training images ")[2].partition(": lower")[0].removesuffix(", …").split(", ")
    assert data.train.files is not None
    assert set(named) <= set(data.train.files)
    assert len(named) == 4
    kept = read_checkpoint(tmp_path / "run")
    assert kept is not None
    assert len(kept.history) == len(Run.open(tmp_path / "run").history) == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    resumed = fit(Diverging(fresh(data), 99, 1.0), data, config, out=tmp_path / "run", resume=True, quiet=True)
    assert len(resumed.history) == 4


class Easy(Diverging):
    """A network whose loss soon becomes tiny, and is an ordinary one again in a single step."""

    def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.factor = 1.0 if self.steps + 1 == 18 else 1e-6
        return super().loss(*arguments, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("stop", [3, 7])
def test_a_loss_explodes_by_comparison_with_the_start_of_the_training_not_of_the_resumption(
    data: ImageDataset, tmp_path: Path, stop: int
):
    config, run = dataclasses.replace(TINY, ema=None), tmp_path / "run"
    whole = fit(Easy(fresh(data), 4, 1.0), data, config, out=tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Easy(fresh(data), 4, 1.0), data, config, out=run, quiet=True, callbacks=[At(stop, send(signal.SIGINT))])
    model = Easy(fresh(data), 4, 1.0)
    model.steps = stop
    resumed = fit(model, data, config, out=run, resume=True, quiet=True)
    assert [line["loss"] for line in resumed.history] == [line["loss"] for line in whole.history]
    (run / "checkpoint.safetensors").unlink()
    longer = dataclasses.replace(config, epochs=5)
    model.steps = 5  # so that the ordinary loss comes again
    assert len(fit(model, data, longer, out=run, resume=True, quiet=True).history) == 5


def test_weights_that_are_not_finite_are_never_kept(data: ImageDataset, tmp_path: Path):
    def spoil(state: TrainingState) -> None:
        with torch.no_grad():
            next(state.model.parameters()).fill_(torch.nan)

    config = dataclasses.replace(TINY, ema=None)
    with pytest.raises(ConfigError, match="weights are not finite after epoch 2"):
        fit(fresh(data), data, config, out=tmp_path / "run", quiet=True, callbacks=[At(14, spoil)])
    kept = read_checkpoint(tmp_path / "run")
    assert kept is not None
    assert len(kept.history) == 1
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values() if tensor.is_floating_point())
