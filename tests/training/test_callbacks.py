"""What happens between epochs: averages, early stopping, longer training, fine-tuning, loggers, own callbacks."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from dualcaps import Callback, ConfigError, ImageDataset, Result, TrainConfig, create_model, fit, load_data, load_model
from dualcaps.runs.run import Run
from dualcaps.training.callbacks import LOGGERS, TrackioLogger, TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")
TINY = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu")


@pytest.fixture
def data(shapes_folder: Path) -> ImageDataset:
    return load_data(shapes_folder)


def train(data: ImageDataset, out: Path, change: dict[str, Any] | None = None, **options: Any) -> Result:
    torch.manual_seed(0)
    model = create_model("capsnet", data.image_shape, len(data.classes), width=8, decoder=False)
    return fit(model, data, dataclasses.replace(TINY, **(change or {})), out=out, quiet=True, **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Weights(Callback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        self.steps.append({name: value.clone() for name, value in state.model.state_dict().items()})


def test_the_moving_average_is_evaluated_and_kept(data: ImageDataset, tmp_path: Path):
    seen = Weights()
    result = train(data, tmp_path / "run", {"ema": 0.8}, callbacks=[seen])
    average = seen.steps[0]
    for number, step in enumerate(seen.steps[1:], start=2):
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in step.items()}
        if number == result.selected_epoch * len(seen.steps) // 3:
            break
    for name, value in weights(result.run).items():
        torch.testing.assert_close(value, average[name])
    kept = load_model(result.run)
    assert kept.classes == data.classes


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "schedule": "cosine", "ema": 0.9, "grad_clip": 1.0, "warmup_epochs": 1.0},
        {"optimizer": "adamw", "schedule": "one-cycle", "augment": "crop,flip,rotate,colour,erase,mixup"},
    ],
)
def test_every_option_resumes_to_the_same_weights(data: ImageDataset, tmp_path: Path, change: dict[str, Any]):
    class Stopped(Callback):
        def on_checkpoint(self, state: TrainingState) -> None:
            if len(state.history) == 2:
                raise KeyboardInterrupt

    whole = train(data, tmp_path / "whole", change)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "stopped", change, callbacks=[Stopped()])
    resumed = train(data, tmp_path / "stopped", change, resume=True)
    assert_same_weights(whole.run, resumed.run)


def test_a_finished_run_trained_longer_equals_one_of_that_length(data: ImageDataset, tmp_path: Path):
    train(data, tmp_path / "run")
    longer = train(data, tmp_path / "run", {"epochs": 5}, resume=True)
    whole = train(data, tmp_path / "whole", {"epochs": 5})
    assert_same_weights(longer.run, whole.run)
    assert [line["loss"] for line in longer.history] == [line["loss"] for line in whole.history]
    assert Run.open(longer.run).training.epochs == 5


def test_training_stops_when_the_accuracy_no_longer_improves(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    accuracies = iter([0.5, 0.7, 0.7, 0.6, 0.9, 0.9])

    class Known:
        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

    monkeypatch.setattr("dualcaps.training.callbacks.evaluate", lambda *_, **__: Known(next(accuracies)))
    result = train(data, tmp_path / "run", {"epochs": 20, "patience": 2})
    assert len(result.history) == 4
    assert result.selected_epoch == 3  # the last of equal ones
    stopped = Run.open(result.run).result
    assert stopped is not None
    assert stopped["stopped_early"] == "no better validation accuracy for 2 epochs"


def test_fine_tuning_starts_from_the_weights_that_fit(
    data: ImageDataset, tmp_path: Path, shapes_folder: Path, capsys: pytest.CaptureFixture[str]
):
    first = train(data, tmp_path / "first")
    (shapes_folder / "slanted").rename(tmp_path / "elsewhere")
    other = load_data(shapes_folder)
    torch.manual_seed(1)
    model = create_model("capsnet", other.image_shape, 2, width=8, decoder=False)
    before = model.state_dict()["votes.transform.weight"].clone()
    seen = Weights()
    config = dataclasses.replace(TINY, epochs=1, lr=1e-12, init_from=str(first.run))
    fit(model, other, config, out=tmp_path / "tuned", callbacks=[seen])
    torch.testing.assert_close(seen.steps[0]["trunk.conv1.weight"], weights(first.run)["trunk.conv1.weight"])
    torch.testing.assert_close(seen.steps[0]["votes.transform.weight"], before)
    assert "8 of 9 tensors; initialised: votes.transform.weight" in capsys.readouterr().err
    cnn = create_model("cnn", other.image_shape, 2)
    with pytest.raises(ConfigError, match="none of its weights match cnn"):
        fit(cnn, other, config, out=tmp_path / "other", quiet=True)


def test_gradients_are_clipped(data: ImageDataset, tmp_path: Path):
    moved = []
    for clip in (None, 1e-4):
        seen = Weights()
        change = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "grad_clip": clip, "epochs": 1, "batch_size": 27}
        train(data, tmp_path / f"clip-{clip}", change, callbacks=[seen])
        torch.manual_seed(0)
        before = create_model("capsnet", data.image_shape, 3, width=8, decoder=False).state_dict()
        moved.append(sum((seen.steps[0][name] - value).square().sum() for name, value in before.items()) ** 0.5)
    assert moved[0] > 2e-4
    assert moved[1] == pytest.approx(1e-4, rel=1e-2)


def test_own_callbacks_are_called_in_order_and_can_stop(data: ImageDataset, tmp_path: Path):
    calls: list[str] = []

    class Own(Callback):
        def on_start(self, state: TrainingState) -> None:
            calls.append(f"start {len(state.history)}")

        def on_epoch_end(self, state: TrainingState) -> None:
            assert not (state.run / "metrics.jsonl").exists() or len(state.history) > 1
            calls.append(f"epoch {state.history[-1]['epoch']}, {sorted(state.history[-1])[-1]}")
            if len(state.history) == 2:
                state.stop = "enough"

        def on_checkpoint(self, state: TrainingState) -> None:
            calls.append("checkpoint")

        def on_finish(self, state: TrainingState) -> None:
            calls.append("finish")

        def close(self) -> None:
            calls.append("close")

    result = train(data, tmp_path / "run", callbacks=[Own()])
    epochs = [f"epoch {number}, validation_accuracy" for number in (1, 2)]
    assert calls == ["start 0", epochs[0], "checkpoint", epochs[1], "checkpoint", "finish", "close"]
    assert len(result.history) == 2


def test_an_error_in_a_callback_leaves_a_run_to_resume(data: ImageDataset, tmp_path: Path):
    class Broken(Callback):
        closed = False

        def on_epoch_end(self, state: TrainingState) -> None:
            if len(state.history) == 2:
                raise ZeroDivisionError

        def close(self) -> None:
            self.closed = True

    broken = Broken()
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path / "run", callbacks=[broken])
    assert broken.closed
    assert len(Run.open(tmp_path / "run").history) == 1
    resumed = train(data, tmp_path / "run", resume=True)
    assert_same_weights(resumed.run, train(data, tmp_path / "whole").run)


def test_tensorboard_shows_each_epoch(data: ImageDataset, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(data, tmp_path / "run", callbacks=[LOGGERS["tensorboard"]()])
    train(data, tmp_path / "run", {"epochs": 4}, resume=True, callbacks=[LOGGERS["tensorboard"]()])
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")][:3] == [
        (line["epoch"], pytest.approx(line["loss"])) for line in result.history
    ]
    assert [event.step for event in events.Scalars("validation_accuracy")] == [1, 2, 3, 4]


def test_trackio_is_given_each_epoch(data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, Any]] = []
    trackio: Any = ModuleType("trackio")
    trackio.init = lambda **options: calls.append(("init", (options["project"], options["name"])))
    trackio.log = lambda metrics, step: calls.append(("log", (step, metrics["loss"])))
    trackio.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    result = train(data, tmp_path / "run", callbacks=[TrackioLogger("shapes")])
    logged = [("log", (line["epoch"], line["loss"])) for line in result.history]
    assert calls == [("init", ("shapes", "run")), *logged, ("finish", None)]


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_logger_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio" if name == "trackio" else "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=rf"--logger {name} needs {name}: pip install 'dualcaps\[{name}\]'"):
        LOGGERS[name]()
