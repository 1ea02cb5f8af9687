"""Callbacks of the training loop: evaluation, checkpoints, pictures, progress, early stopping, loggers."""

import datetime
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from torch.optim.swa_utils import AveragedModel

from dualcaps.config import Precision, TrainConfig
from dualcaps.data.dataset import ImageDataset, ImageSplit
from dualcaps.errors import ConfigError, RunError, first_line
from dualcaps.explain.reconstructions import reconstruction_figure
from dualcaps.inference import evaluate
from dualcaps.models import Network, count_parameters
from dualcaps.plots import learning_curves, png
from dualcaps.runs import run as runs
from dualcaps.runs.files import write_bytes
from dualcaps.training.team import Team


@dataclass
class EpochProgress:
    """How far an epoch is.

    Attributes:
        generator: of the order of the images and their augmentation.
        loss: sum of the losses over the images, on the device.
        correct: number of correct predictions, on the device.
        batches: number of steps.
        seconds: that they took, but for those since `since`.
        since: time of the process's clock, when the epoch was started or resumed.
    """

    generator: torch.Generator
    loss: torch.Tensor
    correct: torch.Tensor
    batches: int = 0
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds that the epoch has taken."""
        return self.seconds + time.perf_counter() - self.since


@dataclass
class TrainingState:
    """State of a training, which callbacks can read and change.

    Attributes:
        model: the network being trained.
        data: the data set.
        config: the complete training options.
        run: the run folder.
        precision: number type of the layers.
        optimizer: with its state.
        selection: the images that each epoch is evaluated on.
        selected_on: the part they belong to, "validation" or "test".
        training_images: number of images per epoch.
        history: an entry for each finished epoch; the last is the present one in `on_epoch_end`.
        average: the exponential moving average of the weights, if one is kept.
        first_losses: mean losses of the training's first steps.
        stop: set by a callback to the reason why to stop after this epoch.
        progress: of the present epoch; None between epochs.
        resumed: the checkpoint that the training was resumed from, if that was written within an epoch.
        log: prints a line for the user.
        team: the processes that train together; callbacks other than `Evaluation` are called in the first one only.
    """

    model: Network
    data: ImageDataset
    config: TrainConfig
    run: Path
    precision: Precision
    optimizer: torch.optim.Optimizer
    selection: ImageSplit
    selected_on: str
    training_images: int
    history: list[dict[str, Any]] = field(default_factory=list)
    average: AveragedModel | None = None
    first_losses: list[float] = field(default_factory=list)
    stop: str = ""
    progress: EpochProgress | None = None
    resumed: runs.Checkpoint | None = None
    log: Callable[[str], None] = lambda _: None
    team: Team = field(default_factory=lambda: Team(torch.device("cpu")))

    @property
    def evaluated_model(self) -> Network:
        """The network that is evaluated and kept: the moving average if there is one."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, Network)
        return self.average.module

    @property
    def selected(self) -> dict[str, Any]:
        """The entry of the epoch whose weights are kept, see `dualcaps.runs.run.selected_epoch`."""
        return runs.selected_epoch(self.config, self.history)


class Callback:
    """Base class of callbacks. An exception stops the training, which can be resumed."""

    def on_start(self, state: TrainingState) -> None:
        """Before the first epoch, or the first after resuming."""

    def on_batch_end(self, state: TrainingState, images: int) -> None:
        """After each step, with the number of images in its batch; not synchronised with the device."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After each epoch, when `state.history[-1]` holds its metrics and before the checkpoint is written."""

    def on_checkpoint(self, state: TrainingState) -> None:
        """After the epoch's checkpoint was written."""

    def on_finish(self, state: TrainingState) -> None:
        """After the last epoch; the network has the selected weights."""

    def close(self) -> None:
        """At the end, also after an exception."""


class Evaluation(Callback):
    """Accuracy on the images that the protocol evaluates each epoch on."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Add the accuracy to the epoch's metrics."""
        state.team.equalise(state.evaluated_model)
        part = state.team.part(state.selection)
        own = evaluate(state.evaluated_model, part, precision=state.precision).accuracy if len(part) else 0.0
        accuracy = state.team.mean(own, len(part))
        state.history[-1][f"{state.selected_on}_accuracy"] = accuracy


class EachEpoch(Callback):
    """A function called with each epoch's metrics before they are kept."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self._function = function

    def on_epoch_end(self, state: TrainingState) -> None:
        """Call the function."""
        self._function(state.history[-1])


class EarlyStopping(Callback):
    """Stop when the accuracy has not improved for some epochs.

    Args:
        patience: number of epochs to wait for a better accuracy than the best so far.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_start(self, state: TrainingState) -> None:
        """Stop a resumed run where it would have stopped."""
        if state.history:
            self.on_epoch_end(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Compare the epochs since the best with the patience."""
        key = f"{state.selected_on}_accuracy"
        first_best = max(state.history, key=lambda line: (line[key], -line["epoch"]))["epoch"]
        if state.history[-1]["epoch"] - first_best >= self.patience:
            state.stop = f"no better {state.selected_on} accuracy for {self.patience} epochs"


class Checkpoint(Callback):
    """Write the checkpoint after each epoch and within it, and the weights if the epoch is the best so far."""

    def on_start(self, state: TrainingState) -> None:  # noqa: ARG002
        """Begin to count the minutes."""
        self._written = time.monotonic()

    def on_batch_end(self, state: TrainingState, images: int) -> None:  # noqa: ARG002
        """Write when it is time."""
        if time.monotonic() - self._written >= 60 * state.config.checkpoint_minutes:
            self.write(state)

    def write(self, state: TrainingState) -> bool:
        """Write the checkpoint, within an epoch with what is needed to resume there; not if weights are not finite.

        Returns:
            Whether it was written.
        """
        tensors = {f"model.{name}": tensor.contiguous() for name, tensor in state.model.state_dict().items()}
        if state.average is not None:
            tensors |= {f"average.{k}": v.contiguous() for k, v in state.average.state_dict().items()}
        for number, entry in state.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{name}": tensor.contiguous()
                for name, tensor in entry.items()
                if isinstance(tensor, torch.Tensor)
            }
        self._written = time.monotonic()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()):
            return False
        progress = None
        if state.progress is not None:
            now = state.progress
            progress = {"batches": now.batches, "seconds": now.elapsed()}
            tensors |= {"progress.loss": now.loss, "progress.correct": now.correct}
            tensors |= {"progress.generator": now.generator.get_state(), "progress.cpu": torch.get_rng_state()}
            if now.generator.device.type == "cuda":
                tensors["progress.cuda"] = torch.cuda.get_rng_state(now.generator.device)
        runs.write_checkpoint(state.run, runs.Checkpoint(state.history, tensors, progress, state.first_losses))
        return True

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write; the checkpoint first, as everything else can be restored from it.

        Raises:
            ConfigError: weights are not finite.
        """
        if not self.write(state):
            raise ConfigError(
                f"weights are not finite after epoch {len(state.history)}: lower the learning rate (--lr) or limit the "
                "gradient (--grad-clip)"
            )
        if state.selected is state.history[-1]:
            weights = state.evaluated_model.state_dict()
            runs.write_weights(state.run, {name: tensor.contiguous() for name, tensor in weights.items()})
        runs.write_metrics(state.run, state.history)


def restore(state: TrainingState) -> bool:
    """Restore the state from the run's checkpoint; returns whether there was one.

    Raises:
        RunError: the checkpoint is damaged.
    """
    checkpoint = runs.read_checkpoint(state.run)
    if checkpoint is None:
        return False
    try:
        _load(state, checkpoint)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        file = state.run / runs.CHECKPOINT
        raise RunError(f"{file}: damaged ({first_line(error)}): remove it to train from the start") from error
    if not state.history:
        return True
    if checkpoint.progress is None and state.selected is state.history[-1]:
        weights = state.evaluated_model.state_dict()  # a kill may have happened between the two files
        runs.write_weights(state.run, {name: tensor.contiguous() for name, tensor in weights.items()})
    runs.write_metrics(state.run, state.history)
    return True


def _load(state: TrainingState, checkpoint: runs.Checkpoint) -> None:
    """Load weights, the optimizer's state, the history and the progress within an epoch."""
    kinds = ("model", "average", "optimizer", "adam", "progress")
    groups: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in kinds}
    for name, tensor in checkpoint.tensors.items():
        kind, _, key = name.partition(".")
        groups[kind][key] = tensor
    state.model.load_state_dict(groups["model"])
    if state.average is not None and groups["average"]:
        state.average.load_state_dict(groups["average"])
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in (groups["optimizer"] | groups["adam"]).items():  # "adam" in runs of format 1
        number, _, name = key.partition(".")
        entries.setdefault(int(number), {})[name] = tensor
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    for number, entry in entries.items():
        for name, tensor in entry.items():
            if tensor.shape == parameters[number].shape:  # fused optimizers pair weights and state in memory order
                entry[name] = torch.empty_like(parameters[number], requires_grad=False).copy_(tensor)
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": entries})
    state.history[:], state.first_losses[:] = checkpoint.history, checkpoint.first_losses
    if checkpoint.progress is not None:
        state.resumed = checkpoint._replace(tensors=groups["progress"])
    if state.history:
        _ = state.selected[f"{state.selected_on}_accuracy"]  # raises KeyError if that was not measured


class Pictures(Callback):
    """Learning curves, and reconstructions where the network has a decoder."""

    def on_finish(self, state: TrainingState) -> None:
        """Draw; a picture that cannot be drawn is reported and the run continues."""
        title = f"{state.model.config.name} on {state.data.name}, seed {state.config.seed}"
        epoch = state.selected["epoch"]
        self._draw(state, "curves.png", lambda: learning_curves(state.history, state.selected_on, epoch, title))
        if state.model.decoder:
            self._draw(state, "reconstructions.png", lambda: reconstruction_figure(state.model, state.data.test))

    def _draw(self, state: TrainingState, name: str, draw: Callable[[], Any]) -> None:
        try:
            content = png(draw())
        except Exception as error:  # a finished run must not be lost to a renderer's error
            state.log(f"{name} could not be drawn: {type(error).__name__}: {' '.join(str(error).split())}")
            return
        write_bytes(state.run / name, content)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> str:
        return f"{task.speed:,.0f} images/s" if task.speed else "… images/s"


class ProgressDisplay(Callback):
    """Print a line per epoch and, on a terminal, a progress bar with speed and time left, on standard error."""

    def __init__(self, quiet: bool) -> None:
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
        self.seconds: list[float] = []
        self.task = self.bar.add_task("starting", total=None)

    def log(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)

    def on_start(self, state: TrainingState) -> None:
        """Print the network and the data."""
        channels, height, width = state.data.image_shape
        official = " (not the official files)" if state.data.provenance.get("official") is False else ""
        with_validation = state.selected_on == "validation"
        self.log(
            f"{state.model.config.name}, {count_parameters(state.model):,} parameters, on {state.data.name}{official}: "
            f"{state.training_images:,} training, "
            f"{f'{len(state.data.validation):,} validation, ' if with_validation else ''}"
            f"{len(state.data.test):,} test images of {height}x{width}x{channels} in {len(state.data.classes)} classes"
        )
        done = 0
        if state.resumed is not None and state.resumed.progress is not None:
            assert state.config.batch_size is not None
            done = state.resumed.progress["batches"] * state.config.batch_size
            share = f"{done / state.training_images:.0%}"
            self.log(f"resumed in epoch {len(state.history) + 1} of {state.config.epochs}, {share} of which is done")
        elif state.history:
            self.log(f"resumed after epoch {len(state.history)} of {state.config.epochs}")
        self.bar.update(self.task, total=state.config.epochs * state.training_images)
        self.bar.start()
        self._describe(state)
        self.bar.advance(self.task, done)

    def on_batch_end(self, state: TrainingState, images: int) -> None:  # noqa: ARG002
        """Advance the bar."""
        self.bar.advance(self.task, images)

    def on_checkpoint(self, state: TrainingState) -> None:
        """Print the epoch's line."""
        line, config = state.history[-1], state.config
        self.seconds.append(line["seconds"])
        left = datetime.timedelta(seconds=round((config.epochs - line["epoch"]) * statistics.median(self.seconds)))
        part = "val" if state.selected_on == "validation" else state.selected_on
        self.log(
            f"epoch {line['epoch']:>{len(str(config.epochs))}}/{config.epochs}  loss {line['loss']:.4f}  "
            f"train {100 * line['train_accuracy']:6.2f} %  "
            f"{part} {100 * line[f'{state.selected_on}_accuracy']:6.2f} %  "
            f"{line['images_per_second']:,.0f}/s  {left} left"
        )
        self._describe(state)

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()

    def _describe(self, state: TrainingState) -> None:
        done, epochs = len(state.history), state.config.epochs
        description = f"epoch {min(done + 1, epochs)}/{epochs}"
        self.bar.update(self.task, description=description, completed=done * state.training_images)


class TensorBoardLogger(Callback):
    """Write each epoch's metrics for TensorBoard, in `tensorboard/` in the run folder.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("--logger tensorboard needs tensorboard: pip install 'dualcaps[tensorboard]'") from error
        self._create, self._writer = SummaryWriter, None

    def on_start(self, state: TrainingState) -> None:
        """Open the event file; a resumed run continues after its last epoch."""
        self._writer = self._create(str(state.run / "tensorboard"), purge_step=len(state.history) + 1)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write the epoch's numbers."""
        assert self._writer is not None
        for name, value in _numbers(state.history[-1]).items():
            self._writer.add_scalar(name, value, state.history[-1]["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class TrackioLogger(Callback):
    """Log each epoch's metrics with trackio, which stores them locally.

    Args:
        project: the project's name in trackio.

    Raises:
        ConfigError: trackio is not installed.
    """

    def __init__(self, project: str = "dualcaps") -> None:
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("--logger trackio needs trackio: pip install 'dualcaps[trackio]'") from error
        self._trackio, self._project, self._open = trackio, project, False

    def on_start(self, state: TrainingState) -> None:
        """Start a trackio run named after the run folder."""
        from dualcaps.config import to_json

        self._trackio.init(project=self._project, name=state.run.name, config=to_json(state.config))
        self._open = True

    def on_epoch_end(self, state: TrainingState) -> None:
        """Log the epoch's numbers."""
        self._trackio.log(_numbers(state.history[-1]), step=state.history[-1]["epoch"])

    def close(self) -> None:
        """Finish the trackio run."""
        if self._open:
            self._trackio.finish()


LOGGERS: Mapping[str, type[Callback]] = {"tensorboard": TensorBoardLogger, "trackio": TrackioLogger}
"""Loggers by name."""


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if name != "epoch" and not isinstance(value, bool)}
