"""Training: `fit` is one loop over epochs and batches, from fresh weights to a finished run."""

import dataclasses
import datetime
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

from dualcaps.runs import run as runs
from dualcaps.data.load import ImageData
from dualcaps.data.batches import Augmentation, training_batches
from dualcaps.errors import ConfigError, RunError
from dualcaps.explain.reconstructions import reconstruction_error, reconstruction_figure
from dualcaps.inference import Precision, choose_device, choose_precision, evaluate
from dualcaps.models import MODELS, Network, count_parameters
from dualcaps.plots import learning_curves, png
from dualcaps.training.step import Compile, TrainingStep

_RATE = 1e-3  # of Adam, for networks as wide as the paper's


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the recipe `paper` (Adam as in the Keras example).

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step; by default the data set's, 16 for coil-20 and 128 for others.
        lr: Adam's learning rate; by default 1e-3, and in proportion less for a network made wider than
            the paper's: one of 397 channels stayed at chance with it.
        beta1: Adam's decay of the mean gradient.
        beta2: Adam's decay of the mean squared gradient.
        epsilon: Adam's epsilon.
        reconstruction_weight: Weight of the reconstruction loss, a sum of squared differences.
        augment: "policy" moves images up to 10 % and mirrors them where that keeps the class,
            "paper-literal" mirrors always, "none" changes nothing.
        protocol: "clean" selects the epoch on held-out training images and reads the test images
            once; "paper" trains on all training images and selects the epoch on the test images.
        precision: Number type of the layers; "auto" is bfloat16 where the machine is fast at it.
        device: "auto" (the GPU if there is one), cpu, cuda, cuda:1, mps, …
        compile: "auto" compiles the training step where the run is long enough to gain by it, but
            for float32 on the CPU, whose results are the same to the bit each time.
        seed: Seed of order, augmentation and dropout, and on the command line of the weights.
    """

    epochs: int = 100
    batch_size: int | None = None
    lr: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    reconstruction_weight: float = 0.0005
    augment: Literal["policy", "paper-literal", "none"] = "policy"
    protocol: Literal["clean", "paper"] = "clean"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    compile: Compile = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name, value in (("lr", self.lr), ("epsilon", self.epsilon)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.reconstruction_weight < float("inf"):
            raise ConfigError(f"reconstruction_weight must be at least 0, got {self.reconstruction_weight}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 4294967295, got {self.seed}")


@dataclass(frozen=True)
class Result:
    """What a training run came to.

    Attributes:
        run: the run folder.
        selected_epoch: the epoch whose weights were kept.
        selection_accuracy: its accuracy on the part it was selected on, 0 to 1.
        test_accuracy: the kept weights' accuracy on the test part, 0 to 1.
        history: an entry an epoch, as in `metrics.jsonl`.
    """

    run: Path
    selected_epoch: int
    selection_accuracy: float
    test_accuracy: float
    history: list[dict[str, Any]]


def fit(
    model: Network,
    data: ImageData,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    each_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Train a network and keep everything about it in a run folder.

    After each epoch the run can be killed and gone on with; with float32 on the CPU the weights
    come out the same to the bit. On return the model holds the selected epoch's weights.

    Args:
        model: the network, with fresh weights.
        data: what to train, select and test on.
        config: how; `TrainConfig()` without.
        out: the run folder; without, `runs/<data>-<model>-seed<seed>`, numbered if it exists.
        resume: go on with the run in `out`, or the last of that name, where it stopped; a run that
            is finished is only read, one that does not exist is started.
        quiet: show no progress.
        each_epoch: called with each epoch's line of metrics just before the epoch is kept, so that
            after a kill it is called again for an epoch that was not; the model is at its end of
            the epoch and must not be changed.

    Raises:
        ConfigError: data or device do not fit the network or machine, or the loss is not finite.
        RunError: the folder exists and `resume` is off, is of another configuration or data, or
            its disk is too full.
        OSError: the disk failed; the run can be resumed from the last epoch written.
    """
    config = config or TrainConfig()
    batch_size = config.batch_size or data.batch_size
    lr = _RATE * min(1.0, MODELS[model.config.name].width / model.config.width) if config.lr is None else config.lr
    config = dataclasses.replace(config, batch_size=batch_size, lr=lr)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    _check_fits(model, data)
    if config.protocol == "paper":
        training, selection, selected_on = data.train + data.validation, data.test, "test"
    else:
        training, selection, selected_on = data.train, data.validation, "validation"
    augmentation = {
        "policy": Augmentation(flip=data.flip),
        "paper-literal": Augmentation(flip=True),
        "none": None,
    }[config.augment]
    model.classes = data.classes

    choose_path = runs.latest_run_path if resume else runs.free_run_path
    path = Path(out) if out is not None else choose_path(f"{data.name}-{model.config.name}-seed{config.seed}")
    session = runs.environment(device, precision)
    take_back = _open_run(path, resume, model, data, config, session)
    with runs.locked(path), _own_random_numbers(device), _Display(quiet, config.epochs, len(training)) as display:
        if runs.is_finished(path):
            return _read_finished(path, model, device)
        if take_back is None:
            runs.add_session(path, session)
        training, selection = training.to(device), selection.to(device)
        model.place(device)
        optimiser = torch.optim.Adam(
            model.parameters(),
            lr,
            (config.beta1, config.beta2),
            config.epsilon,
            fused=device.type in ("cpu", "cuda"),
        )
        history = _restore(path, model, optimiser, selected_on)
        display.start(model, data, len(history))
        repeatable = precision == "float32" and device.type == "cpu" and config.compile == "auto"
        step = TrainingStep(
            model,
            optimiser,
            batch_size=batch_size,
            steps=(config.epochs - len(history)) * (len(training) // batch_size),
            reconstruction_weight=config.reconstruction_weight,
            bfloat16=precision == "bfloat16",
            compile="never" if repeatable else config.compile,
            say=display.say,
        )
        try:
            for epoch in range(len(history) + 1, config.epochs + 1):
                # Every draw depends on seed and epoch alone, so that a resumed epoch repeats them.
                torch.manual_seed(config.seed * 1_000_003 + epoch)
                generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + epoch)
                started = time.perf_counter()
                total_loss = torch.zeros((), device=device)
                correct = torch.zeros((), dtype=torch.int64, device=device)
                model.train()
                for images, labels in training_batches(training, batch_size, augmentation, generator):
                    outcome = step(images, labels)
                    total_loss += outcome.loss * len(labels)
                    correct += outcome.correct
                    display.advance(len(labels))
                mean_loss = total_loss.item() / len(training)
                seconds = time.perf_counter() - started
                if not math.isfinite(mean_loss):
                    raise ConfigError(f"the loss is {mean_loss} in epoch {epoch}: lower the learning rate (--lr)")
                accuracy = evaluate(model, selection, precision=precision).accuracy
                history.append(
                    {
                        "epoch": epoch,
                        "loss": mean_loss,
                        "train_accuracy": correct.item() / len(training),
                        f"{selected_on}_accuracy": accuracy,
                        "seconds": seconds,
                        "images_per_second": len(training) / seconds,
                        "compiled": step.compiled,
                    }
                )
                if each_epoch:
                    each_epoch(history[-1])
                _save(path, model, optimiser, history, selected_on)
                display.epoch_done(history[-1], selected_on)
        except (OSError, ConfigError):
            if take_back and not (path / runs.CHECKPOINT).exists():
                take_back()
            raise
        return _finish(path, model, data, config, precision, history, selected_on)


def _check_fits(model: Network, data: ImageData) -> None:
    if model.config.image_shape != data.image_shape or model.config.num_classes != len(data.classes):
        raise ConfigError(
            f"{model.config.name} was built for images {model.config.image_shape} of {model.config.num_classes} "
            f"classes, {data.name} has {data.image_shape} of {len(data.classes)}: build it for these"
        )


def _open_run(
    path: Path, resume: bool, model: Network, data: ImageData, config: TrainConfig, session: dict[str, Any]
) -> Callable[[], None] | None:
    """Create the run folder and return what takes it back, or check that the existing one is of this very run."""
    asked = {"model": model.config, "training": config, "data": data.options}
    wanted = {section: dataclasses.asdict(settings) for section, settings in asked.items()}
    if not (resume and path.exists()):
        _check_space(path, model)
        config_file = wanted | {"classes": list(data.classes)}
        return runs.create_run(path, config_file, {"data": data.provenance, "sessions": [session]})
    existing = runs.read_config(path)
    for section, settings in asked.items():
        known = runs.parse(type(settings), existing[section], path)
        for name, value in wanted[section].items():
            before = getattr(known, name)
            # Their hash decides whether the data are the same; where and how the run goes on is free.
            if before != value and name not in ("data_dir", "source", "compile", "device"):
                option = "model" if name == "name" else name
                raise RunError(
                    f"{path}: {option} was {before}, now {value}: resume with the same options, or train anew"
                )
    if runs.read_provenance(path)["data"].get("sha256") != data.provenance["sha256"]:
        raise RunError(f"{path}: the images of {data.name} are not those it was started with: train anew")
    return None


def _check_space(path: Path, model: Network) -> None:
    """Refuse before hours of training what the first checkpoint would fail at."""
    weights = 4 * count_parameters(model)
    needed = 2 * weights + 2 * 3 * weights  # two generations of weights and of checkpoints
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"{existing}: disk full, {free / 1e6:.0f} MB free where the run needs {needed / 1e6:.0f} MB: free some "
            "space or choose another folder with --out"
        )


def _own_random_numbers(device: torch.device) -> Any:
    """Leave the caller's random numbers as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _selected(history: list[dict[str, Any]], selected_on: str) -> dict[str, Any]:
    """The best epoch; among equals the last, which has learned the longest."""
    return max(history, key=lambda line: (line[f"{selected_on}_accuracy"], line["epoch"]))


def _save(
    path: Path, model: Network, optimiser: torch.optim.Adam, history: list[dict[str, Any]], selected_on: str
) -> None:
    """Write what the epoch changed; the checkpoint first, as all else can be made from it again."""
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    moments = {
        f"adam.{number}.{name}": tensor.contiguous()
        for number, state in optimiser.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    runs.write_checkpoint(path, runs.Checkpoint(history, weights | moments))
    if _selected(history, selected_on) is history[-1]:
        runs.write_weights(path, {name.removeprefix("model."): tensor for name, tensor in weights.items()})
    runs.write_metrics(path, history)


def _restore(path: Path, model: Network, optimiser: torch.optim.Adam, selected_on: str) -> list[dict[str, Any]]:
    """Put back what the last checkpoint holds; the history up to it."""
    checkpoint = runs.read_checkpoint(path)
    if checkpoint is None:
        return []
    weights, moments = {}, {}
    for name, tensor in checkpoint.tensors.items():
        kind, _, key = name.partition(".")
        if kind == "model":
            weights[key] = tensor
        else:
            number, _, moment = key.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
    model.load_state_dict(weights)
    for parameter, moment in zip(model.parameters(), (moments[number] for number in sorted(moments)), strict=True):
        for name, tensor in moment.items():
            if tensor.shape == parameter.shape:  # fused Adam walks weights and moments in memory order
                moment[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    if _selected(checkpoint.history, selected_on) is checkpoint.history[-1]:
        runs.write_weights(path, weights)  # a kill may have come between the two files
    runs.write_metrics(path, checkpoint.history)
    return checkpoint.history


def _finish(
    path: Path,
    model: Network,
    data: ImageData,
    config: TrainConfig,
    precision: Precision,
    history: list[dict[str, Any]],
    selected_on: str,
) -> Result:
    """Go back to the selected weights, read the test images, draw the pictures, close the run."""
    model.load_state_dict(runs.read_weights(path))
    selected = _selected(history, selected_on)
    if config.protocol == "paper":
        test_accuracy = selected["test_accuracy"]
    else:
        test_accuracy = evaluate(model, data.test, precision=precision).accuracy
    title = f"{model.config.name} on {data.name}, seed {config.seed}"
    runs.write_bytes(path / "curves.png", png(learning_curves(history, selected_on, selected["epoch"], title)))
    if model.decoder:
        runs.write_bytes(path / "reconstructions.png", png(reconstruction_figure(model, data.test)))
    seconds = sum(line["seconds"] for line in history)
    runs.write_json(
        path / runs.RESULT,
        {
            "protocol": config.protocol,
            "selected_epoch": selected["epoch"],
            f"{selected_on}_accuracy": selected[f"{selected_on}_accuracy"],
            "test_accuracy": test_accuracy,
            "test_images": len(data.test),
            "reconstruction_error": reconstruction_error(model, data.test) if model.decoder else None,
            "parameters": count_parameters(model),
            "training_seconds": seconds,
            "precision": precision,
        },
    )
    runs.remove_checkpoint(path)
    return Result(path, selected["epoch"], selected[f"{selected_on}_accuracy"], test_accuracy, history)


def _read_finished(path: Path, model: Network, device: torch.device) -> Result:
    runs.remove_checkpoint(path)  # a kill may have come just before this
    result, history = runs.read_result(path), runs.read_metrics(path)
    model.load_state_dict(runs.read_weights(path))
    model.place(device)
    if not 1 <= result["selected_epoch"] <= len(history):
        raise RunError(f"{path / runs.METRICS}: damaged (epochs are missing): {runs.TRAIN_AGAIN}")
    selected = history[result["selected_epoch"] - 1]
    accuracy = selected.get("validation_accuracy", selected.get("test_accuracy"))
    return Result(path, result["selected_epoch"], accuracy, result["test_accuracy"], history)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> str:
        return f"{task.speed:,.0f} images/s" if task.speed else "… images/s"


class _Display:
    """A line an epoch and, on a terminal, a bar with speed and time left; on standard error."""

    def __init__(self, quiet: bool, epochs: int, images: int) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
            expand=True,
        )
        self.epochs, self.images = epochs, images
        self.seconds: list[float] = []
        self.task = self.bar.add_task("starting", total=epochs * images)

    def __enter__(self) -> "_Display":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def start(self, model: Network, data: ImageData, epochs_done: int) -> None:
        channels, height, width = data.image_shape
        official = " (not the official files)" if data.provenance.get("official") is False else ""
        self.console.print(
            f"{model.config.name}, {count_parameters(model):,} parameters, on {data.name}{official}: "
            f"{self.images:,} training, "
            f"{'' if self.images > len(data.train) else f'{len(data.validation):,} validation, '}"
            f"{len(data.test):,} test images of "
            f"{height}x{width}x{channels} in {len(data.classes)} classes",
            soft_wrap=True,
        )
        if epochs_done:
            self.console.print(f"resumed after epoch {epochs_done} of {self.epochs}")
        self._describe(epochs_done)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def advance(self, images: int) -> None:
        self.bar.advance(self.task, images)

    def epoch_done(self, line: dict[str, Any], selected_on: str) -> None:
        self.seconds.append(line["seconds"])
        left = (self.epochs - line["epoch"]) * statistics.median(self.seconds)
        self.console.print(
            f"epoch {line['epoch']:>{len(str(self.epochs))}}/{self.epochs}  loss {line['loss']:.4f}  "
            f"train {100 * line['train_accuracy']:6.2f} %  "
            f"{'val' if selected_on == 'validation' else selected_on} {100 * line[f'{selected_on}_accuracy']:6.2f} %  "
            f"{line['images_per_second']:,.0f}/s  {datetime.timedelta(seconds=round(left))} left",
            soft_wrap=True,
        )
        self._describe(line["epoch"])

    def _describe(self, epochs_done: int) -> None:
        current = min(epochs_done + 1, self.epochs)
        self.bar.update(self.task, description=f"epoch {current}/{self.epochs}", completed=epochs_done * self.images)
