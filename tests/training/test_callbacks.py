"""Callbacks and options of the training loop: averages, stopping, going on, weights of classes, loggers."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from support import draw_shape

from dualcaps import (
    Callback,
    ConfigError,
    ImageDataset,
    Network,
    Run,
    RunError,
    TrainConfig,
    create_model,
    evaluate,
    fit,
)
from dualcaps.config import to_json
from dualcaps.training.callbacks import TensorBoardLogger, TrackioLogger, TrainingState

TINY = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu", augment="none")

Weights = dict[str, torch.Tensor]


def make_data(counts: tuple[int, ...] = (12, 12, 12)) -> ImageDataset:
    """Patterns of 12x12 pixels, so many of each class."""
    random = np.random.default_rng(0)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = np.stack([draw_shape(label, (12, 12), random) for label in labels])
    return ImageDataset.from_arrays(images, labels, name="shapes")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    monkeypatch.setattr("dualcaps.training.callbacks.png", lambda figure: b"drawn elsewhere, and slowly")
    return make_data()


def fresh(data: ImageDataset, name: str = "capsnet") -> Network:
    torch.manual_seed(0)
    size: dict[str, Any] = {} if name == "cnn" else {"width": 8, "decoder": False}
    return create_model(name, data.image_shape, len(data.classes), **size)


def train(data: ImageDataset, run: str, config: TrainConfig = TINY, **options: Any):
    return fit(fresh(data), data, config, out=run, **{"quiet": True, **options})


def weights_of(model: Network) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def kept(run: str, file: str = "model.safetensors") -> Weights:
    return safetensors.torch.load_file(Path(run) / file)


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def tell_accuracies(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[Weights]:
    """Let the epochs have these accuracies; the weights that were evaluated, for the test images too."""
    told, seen = iter(accuracies), []

    def answer(model: Network, part: Any, **options: Any) -> SimpleNamespace:
        seen.append(weights_of(model))
        return SimpleNamespace(accuracy=next(told, 0.25))

    monkeypatch.setattr("dualcaps.training.callbacks.evaluate", answer)
    monkeypatch.setattr("dualcaps.training.fit.evaluate", answer)
    return seen


class Average(Callback):
    """The exponential moving average, by hand."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Weights = {}
        self.each_epoch: list[Weights] = []
        self.last: Weights = {}

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        self.last = weights_of(state.model)
        for name, tensor in self.last.items():
            before = self.average.get(name, tensor)
            self.average[name] = self.decay * before + (1 - self.decay) * tensor

    def on_epoch_end(self, state: TrainingState) -> None:
        self.each_epoch.append(dict(self.average))


def test_the_average_is_what_is_evaluated_and_kept(data: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    seen = tell_accuracies(monkeypatch, [0.5, 0.9, 0.7])
    by_hand, model = Average(0.7), fresh(data)
    result = fit(model, data, dataclasses.replace(TINY, ema=0.7, lr=0.01), out="run", quiet=True, callbacks=[by_hand])
    assert result.selected_epoch == 2
    for evaluated, expected in zip(seen, [*by_hand.each_epoch, by_hand.each_epoch[1]], strict=True):
        torch.testing.assert_close(evaluated, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kept("run"), by_hand.each_epoch[1], rtol=1e-5, atol=1e-6)
    assert_same(weights_of(model), kept("run"))
    name = next(iter(by_hand.last))
    assert not torch.allclose(by_hand.average[name], by_hand.last[name])  # else the test would show nothing


def test_the_accuracy_of_a_run_is_that_of_its_average(data: ImageDataset):
    model = fresh(data)
    result = fit(model, data, dataclasses.replace(TINY, ema=0.5), out="run", quiet=True)
    assert result.test_accuracy == evaluate(model, data.test).accuracy
    assert result.selection_accuracy == evaluate(model, data.validation).accuracy


def test_without_a_better_accuracy_training_stops_and_says_why(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tell_accuracies(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    result = train(data, "run", dataclasses.replace(TINY, epochs=9, patience=2), quiet=False)
    assert len(result.history) == 4
    assert result.selected_epoch == 4  # of equals the one that was trained longest
    reason = "no better validation accuracy for 2 epochs"
    assert Run.open("run").result["stopped_early"] == reason
    assert f"stopped after epoch 4: {reason}\n" in capsys.readouterr().err


def test_a_run_that_gets_better_in_time_is_not_stopped(data: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    tell_accuracies(monkeypatch, [0.5, 0.4, 0.6, 0.5, 0.7])
    result = train(data, "run", dataclasses.replace(TINY, epochs=5, patience=2))
    assert (len(result.history), result.selected_epoch) == (5, 5)
    assert Run.open("run").result["stopped_early"] is None


def test_patience_counts_on_the_test_images_where_they_select(data: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    tell_accuracies(monkeypatch, [0.5, 0.5, 0.9])
    train(data, "run", dataclasses.replace(TINY, patience=1, protocol="paper"))
    assert Run.open("run").result["stopped_early"] == "no better test accuracy for 1 epochs"


def test_a_run_that_stopped_early_is_only_read_until_it_is_given_more_patience(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(TINY, epochs=9, patience=1)
    tell_accuracies(monkeypatch, [0.5, 0.4])
    first = train(data, "run", config)
    before = {path: path.stat().st_mtime_ns for path in Path("run").glob("[!.]*")}
    assert train(data, "run", config, resume=True) == first
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").glob("[!.]*")}
    longer = train(data, "run", dataclasses.replace(config, epochs=10), resume=True)
    assert len(longer.history) == 2  # as it would have from the start
    tell_accuracies(monkeypatch, [0.4, 0.6, 0.5, 0.5, 0.5])
    patient = train(data, "run", dataclasses.replace(config, patience=3), resume=True)
    assert len(patient.history) == 7
    assert Run.open("run").training.patience == 3


class Fail(Callback):
    """Stops as a bug would, once, when an epoch's hook is called."""

    def __init__(self, hook: str, epoch: int) -> None:
        self.left = epoch
        setattr(self, hook, self._count)

    def _count(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("a bug in a callback")


def test_killed_after_its_last_epoch_a_run_that_stops_early_is_not_trained_longer(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(TINY, epochs=9, patience=1)
    tell_accuracies(monkeypatch, [0.5, 0.4])
    with pytest.raises(RuntimeError, match="a bug"):
        train(data, "run", config, callbacks=[Fail("on_checkpoint", 2)])
    tell_accuracies(monkeypatch, [])
    resumed = train(data, "run", config, resume=True)
    assert len(resumed.history) == 2
    assert Run.open("run").result["stopped_early"] == "no better validation accuracy for 1 epochs"


@pytest.mark.parametrize("ema", [None, 0.5])
def test_trained_longer_a_run_ends_as_one_of_that_length(
    data: ImageDataset, ema: float | None, capsys: pytest.CaptureFixture[str]
):
    short, long = dataclasses.replace(TINY, epochs=1, ema=ema), dataclasses.replace(TINY, epochs=3, ema=ema)
    train(data, "grown", short)
    grown = train(data, "grown", long, resume=True, quiet=False)
    said = capsys.readouterr().err
    assert "grown: 3 epochs instead of 1\n" in said
    assert "resumed after epoch 1 of 3\n" in said
    whole = train(data, "whole", long)
    assert [line["loss"] for line in grown.history] == [line["loss"] for line in whole.history]
    assert_same(kept("grown"), kept("whole"))
    assert_same(kept("grown", "checkpoint.safetensors"), kept("whole", "checkpoint.safetensors"))
    run = Run.open("grown")
    assert run.training == Run.open("whole").training
    assert len(run.provenance["sessions"]) == 2
    assert run.finished


def test_trained_longer_another_schedule_spans_all_epochs(data: ImageDataset, capsys: pytest.CaptureFixture[str]):
    config = dataclasses.replace(TINY, schedule="cosine", epochs=1)
    train(data, "run", config)
    train(data, "run", dataclasses.replace(config, epochs=2), resume=True, quiet=False)
    assert "2 epochs instead of 1; schedule cosine now spans all of them" in capsys.readouterr().err


def test_without_its_checkpoint_a_run_goes_on_from_the_selected_weights_and_says_so(
    data: ImageDataset, capsys: pytest.CaptureFixture[str]
):
    first = train(data, "run", keep_checkpoint=False)
    assert not Path("run/checkpoint.safetensors").exists()
    selected, started = kept("run"), []

    class Watch(Callback):
        def on_start(self, state: TrainingState) -> None:
            started.append(weights_of(state.model))

    longer = train(data, "run", dataclasses.replace(TINY, epochs=4), resume=True, quiet=False, callbacks=[Watch()])
    assert_same(started[0], selected)
    assert longer.history[:3] == first.history
    assert (
        f"run has no checkpoint: continuing from the weights of epoch {first.selected_epoch}" in capsys.readouterr().err
    )


def test_fewer_epochs_than_a_run_has_are_only_read_or_refused(data: ImageDataset):
    train(data, "run", dataclasses.replace(TINY, epochs=2))
    assert len(train(data, "run", dataclasses.replace(TINY, epochs=1), resume=True).history) == 2
    Path("run/result.json").unlink()
    with pytest.raises(RunError, match="run: has 2 epochs already: set epochs to more than 1"):
        train(data, "run", dataclasses.replace(TINY, epochs=1), resume=True)


def test_weights_of_another_run_are_taken_as_far_as_they_fit(data: ImageDataset, capsys: pytest.CaptureFixture[str]):
    train(data, "first")
    more, started = make_data((6, 6, 6, 6)), []

    class Watch(Callback):
        def on_start(self, state: TrainingState) -> None:
            started.append(weights_of(state.model))

    train(more, "second", dataclasses.replace(TINY, init_from="first", epochs=1), quiet=False, callbacks=[Watch()])
    first, own = kept("first"), weights_of(fresh(more))
    trunk = [name for name in own if name.startswith("trunk.")]
    rest = [name for name in own if name not in trunk]
    assert trunk
    assert rest
    assert_same(started[0], {name: (first if name in trunk else own)[name] for name in own})
    assert not torch.equal(first[trunk[0]], own[trunk[0]])
    said = capsys.readouterr().err
    assert f"weights from first: {len(trunk)} of {len(own)} tensors; initialised: {', '.join(rest)}\n" in said
    assert Run.open("second").training.init_from == "first"


def test_weights_of_another_network_are_refused_and_nothing_is_left(data: ImageDataset):
    train(data, "first", dataclasses.replace(TINY, epochs=1))
    with pytest.raises(ConfigError, match="--init-from first: none of its weights match cnn"):
        fit(fresh(data, "cnn"), data, dataclasses.replace(TINY, init_from="first"), out="second", quiet=True)
    with pytest.raises(RunError, match="nowhere: no such run folder"):
        train(data, "second", dataclasses.replace(TINY, init_from="nowhere"))
    assert not Path("second").exists()
    train(data, "second", dataclasses.replace(TINY, epochs=1))


def one_step_loss(data: ImageDataset, name: str, config: TrainConfig) -> tuple[float, np.ndarray, list[int]]:
    """The loss of a step over all images, and the lengths and labels it is computed from."""
    model = fresh(data, name)
    fit(model, data, dataclasses.replace(TINY, lr=0.005), out="before", quiet=True)
    lengths = model.eval()(data.train.images).lengths.detach().double().numpy()
    config = dataclasses.replace(config, epochs=1, batch_size=len(data.train))
    result = fit(model, data, config, out="run", quiet=True)
    return result.history[0]["loss"], lengths, data.train.labels.tolist()


def margin_loss_by_hand(lengths: np.ndarray, label: int, smoothing: float = 0.0) -> float:
    total = 0.0
    for number, length in enumerate(lengths):
        present = (1 - smoothing) * (number == label) + smoothing / len(lengths)
        total += present * max(0, 0.9 - length) ** 2 + 0.5 * (1 - present) * max(0, length - 0.1) ** 2
    return total


@pytest.mark.parametrize("class_weight", ["balanced", (1.0, 2.0, 0.0), (0.2, 0.2, 0.2), None])
def test_classes_are_weighted_in_the_loss(monkeypatch: pytest.MonkeyPatch, class_weight: Any):
    monkeypatch.setattr("dualcaps.training.callbacks.png", lambda figure: b"")
    data = make_data((20, 10, 5))
    counts = torch.bincount(data.train.labels).tolist()
    assert len(set(counts)) == 3
    found, lengths, labels = one_step_loss(data, "capsnet", dataclasses.replace(TINY, class_weight=class_weight))
    by_class = (
        [sum(counts) / (3 * count) for count in counts] if class_weight == "balanced" else class_weight or [1] * 3
    )
    weights = [by_class[label] for label in labels]
    losses = [margin_loss_by_hand(row, label) for row, label in zip(lengths, labels, strict=True)]
    expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert found == pytest.approx(expected, rel=1e-4)
    if class_weight == "balanced":
        assert expected != pytest.approx(sum(losses) / len(losses), rel=1e-3)  # else the test would show nothing


@pytest.mark.parametrize(
    ("class_weight", "said"),
    [((1.0, 2.0), "class_weight must be 3 weights, .* got 2"), ((0.0, 0.0, 0.0), "not all 0")],
)
def test_weights_that_do_not_fit_the_classes_are_refused(data: ImageDataset, class_weight: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        train(data, "run", dataclasses.replace(TINY, class_weight=class_weight))
    assert not Path("run").exists()


def test_labels_are_smoothed_in_the_margin_loss(data: ImageDataset):
    found, lengths, labels = one_step_loss(data, "capsnet", dataclasses.replace(TINY, label_smoothing=0.3))
    losses = [margin_loss_by_hand(row, label, 0.3) for row, label in zip(lengths, labels, strict=True)]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    plain = [margin_loss_by_hand(row, label) for row, label in zip(lengths, labels, strict=True)]
    assert found != pytest.approx(sum(plain) / len(plain), rel=1e-2)


def test_labels_are_smoothed_in_the_cross_entropy(data: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, values: values)
    found, probabilities, labels = one_step_loss(data, "cnn", dataclasses.replace(TINY, label_smoothing=0.3))
    total = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        total -= sum((0.7 * (number == label) + 0.1) * np.log(max(p, 1e-7)) for number, p in enumerate(row))
    assert found == pytest.approx(total / len(labels), rel=1e-4)


class Norms(Callback):
    """The norm of the gradient that each step used."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        squares = [parameter.grad.square().sum().item() for parameter in state.model.parameters()]
        self.norms.append(sum(squares) ** 0.5)


def test_gradients_are_clipped_to_the_norm_asked_for(data: ImageDataset):
    free, clipped = Norms(), Norms()
    train(data, "free", callbacks=[free])
    limit = min(free.norms) / 2
    train(data, "clipped", dataclasses.replace(TINY, grad_clip=limit), callbacks=[clipped])
    assert clipped.norms[0] == pytest.approx(limit, rel=1e-3)
    assert max(clipped.norms) <= limit * (1 + 1e-4)
    train(data, "high", dataclasses.replace(TINY, grad_clip=10 * max(free.norms)))
    assert_same(kept("high"), kept("free"))


class Diary(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def on_start(self, state: TrainingState) -> None:
        self.entries.append(f"start with {len(state.history)}")

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        self.entries.append(f"batch of {images}")

    def on_epoch_end(self, state: TrainingState) -> None:
        line = state.history[-1]
        assert {"loss", "train_accuracy", "validation_accuracy"} <= line.keys()
        self.entries.append(f"epoch {line['epoch']}, {checkpointed(state)} kept")

    def on_checkpoint(self, state: TrainingState) -> None:
        self.entries.append(f"checkpoint, {checkpointed(state)} kept")

    def on_finish(self, state: TrainingState) -> None:
        assert_same(weights_of(state.model), kept(str(state.run)))
        self.entries.append("finish")

    def close(self) -> None:
        self.entries.append("close")


def checkpointed(state: TrainingState) -> int:
    return len(Run.open(state.run).history)


def test_a_callback_is_called_at_each_turn(data: ImageDataset):
    diary, config = Diary(), dataclasses.replace(TINY, epochs=2, batch_size=16)
    train(data, "run", config, callbacks=[diary])
    batches = [f"batch of {count}" for count in (16, len(data.train) - 16)]
    assert diary.entries == [
        "start with 0", *batches, "epoch 1, 0 kept", "checkpoint, 1 kept", *batches, "epoch 2, 1 kept",
        "checkpoint, 2 kept", "finish", "close",
    ]  # fmt: skip
    again = Diary()
    train(data, "run", dataclasses.replace(config, epochs=3), callbacks=[again], resume=True)
    assert again.entries == [
        "start with 2", *batches, "epoch 3, 2 kept", "checkpoint, 3 kept", "finish", "close"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hook", "call", "epochs_kept"),
    [
        ("on_start", 1, 0), ("on_batch_end", 1, 0), ("on_epoch_end", 1, 0), ("on_checkpoint", 1, 1),
        ("on_batch_end", 5, 1), ("on_epoch_end", 2, 1), ("on_checkpoint", 3, 3), ("on_finish", 1, 3),
    ],
)  # fmt: skip
def test_an_error_in_a_callback_leaves_a_run_that_can_go_on(data: ImageDataset, hook: str, call: int, epochs_kept: int):
    diary = Diary()
    with pytest.raises(RuntimeError, match="a bug in a callback"):
        train(data, "run", callbacks=[diary, Fail(hook, call)])
    assert diary.entries[-1] == "close"
    run = Run.open("run")
    assert (len(run.history), run.finished) == (epochs_kept, False)
    train(data, "run", resume=True)
    train(data, "whole")
    assert_same(kept("run"), kept("whole"))


def test_a_callback_can_stop_the_training(data: ImageDataset, capsys: pytest.CaptureFixture[str]):
    class Enough(Callback):
        def on_epoch_end(self, state: TrainingState) -> None:
            state.stop = "it is late"

    result = train(data, "run", callbacks=[Enough()], quiet=False)
    assert len(result.history) == 1
    assert Run.open("run").result["stopped_early"] == "it is late"
    assert "stopped after epoch 1: it is late\n" in capsys.readouterr().err
    assert len(train(data, "run", resume=True).history) == 1


def test_each_epoch_is_told_its_metrics(data: ImageDataset):
    told: list[dict[str, Any]] = []
    result = train(data, "run", each_epoch=told.append)
    assert told == result.history


def logged_by_hand(history: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [
        (line["epoch"], name, float(value))
        for line in history
        for name, value in line.items()
        if name not in ("epoch", "compiled")
    ]


def test_trackio_is_given_the_configuration_and_each_epoch(data: ImageDataset, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, Any]] = []
    trackio = ModuleType("trackio")
    trackio.init = lambda **options: calls.append(("init", options))
    trackio.log = lambda numbers, step: calls.append(("log", (step, numbers)))
    trackio.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    result = train(data, "my run", callbacks=[TrackioLogger("my project")])
    (first, options), *logs, last = calls
    config = to_json(Run.open("my run").training)
    assert (first, options) == ("init", {"project": "my project", "name": "my run", "config": config})
    assert [kind for kind, _ in logs] == ["log"] * 3
    assert [(step, name, value) for _, (step, numbers) in logs for name, value in numbers.items()] == logged_by_hand(
        result.history
    )
    assert last == ("finish", None)
    calls.clear()
    TrackioLogger().close()
    assert calls == []  # nothing was begun


class FakeWriter:
    """Stands for tensorboard's."""

    made: ClassVar[list["FakeWriter"]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[int, str, float]] = []
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((step, name, value))

    def flush(self) -> None:
        assert self.scalars

    def close(self) -> None:
        self.closed = True


def test_tensorboard_is_given_each_epoch_and_goes_on_after_a_resume(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setattr(FakeWriter, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(data, "run", dataclasses.replace(TINY, epochs=2), callbacks=[TensorBoardLogger()])
    result = train(data, "run", callbacks=[TensorBoardLogger()], resume=True)
    first, second = FakeWriter.made
    assert first.folder == second.folder == str(Path("run/tensorboard"))
    assert (first.purge_step, second.purge_step) == (1, 3)
    assert first.scalars + second.scalars == logged_by_hand(result.history)
    assert first.closed
    assert second.closed


@pytest.mark.parametrize(
    ("module", "logger", "name"),
    [("torch.utils.tensorboard", TensorBoardLogger, "tensorboard"), ("trackio", TrackioLogger, "trackio")],
)
def test_a_logger_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, module: str, logger: type[Callback], name: str
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        logger()
    assert str(caught.value) == f"--logger {name} needs {name}: pip install 'dualcaps[{name}]'"
