"""Training: `fit` is one loop over epochs and batches, from initial weights to a finished run."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only

from dualcaps.calibration import keep_calibration
from dualcaps.config import DataConfig, ModelConfig, TrainConfig, to_json
from dualcaps.data.augment import parse_augmentation
from dualcaps.data.batches import epoch_seed, training_batches
from dualcaps.data.dataset import ImageDataset, ImageSplit
from dualcaps.errors import ConfigError, DualcapsError, ModelError, RunError
from dualcaps.explain.reconstructions import reconstruction_error
from dualcaps.inference import choose_device, choose_precision, evaluate, same_images
from dualcaps.models import Network, count_parameters, load_fitting
from dualcaps.registry import loaded_plugins
from dualcaps.runs import run as runs
from dualcaps.runs.files import remove_drafts, remove_empty, write_json
from dualcaps.runs.run import Run
from dualcaps.signals import noted_signals
from dualcaps.training.callbacks import (
    Callback,
    Checkpoint,
    EachEpoch,
    EarlyStopping,
    EpochProgress,
    Evaluation,
    Pictures,
    ProgressDisplay,
    TrainingState,
    restore,
)
from dualcaps.training.determinism import deterministic
from dualcaps.training.divergence import LossWatch
from dualcaps.training.optimizers import build_optimizer, build_schedule, class_weights, default_learning_rate
from dualcaps.training.step import TrainingStep
from dualcaps.training.team import joined

_MAY_CHANGE = (
    *("data_dir", "source", "compile", "deterministic", "device", "checkpoint_minutes", "epochs", "patience"),
    *("init_from", "trunk_weights"),
)
"""Options that may differ when a run is resumed; the data are compared by the hash of the images."""

_STOP_ASKED_EVERY = 50  # steps, where several processes train on GPUs
_INITIAL_IMAGES, _INITIAL_PIXELS = 5_000, 5_000 * 32**2  # at most, that weights computed from the data are taken from


@dataclass(frozen=True)
class Result:
    """Result of a training run.

    Attributes:
        run: the run folder.
        selected_epoch: the epoch whose weights were kept.
        selection_accuracy: its accuracy on the part that epochs are evaluated on, 0 to 1.
        test_accuracy: the kept weights' accuracy on the test part, 0 to 1.
        history: one entry per epoch, as in `metrics.jsonl`.
    """

    run: Path
    selected_epoch: int
    selection_accuracy: float
    test_accuracy: float
    history: list[dict[str, Any]]


def fit(
    model: Network,
    data: ImageDataset,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    each_epoch: Callable[[dict[str, Any]], None] | None = None,
    callbacks: Sequence[Callback] = (),
    keep_checkpoint: bool = True,
    pictures: bool = True,
) -> Result:
    """Train a network and store everything about the training in a run folder.

    A run can be killed at any time and resumed from its last checkpoint (`TrainConfig.checkpoint_minutes`); with
    `deterministic` the weights are then identical to the bit. SIGINT and SIGTERM finish the present step and write a
    checkpoint, a second one interrupts at once. On return the model has the selected epoch's weights.

    Args:
        model: the network, with initial weights.
        data: the data set to train, select and test on.
        config: the training options; by default `TrainConfig()`.
        out: the run folder; by default `runs/<data>-<model>-seed<seed>`, numbered if it exists.
        resume: continue the run in `out`, or the last of that name. A finished run is only read, or trained longer
            if `config.epochs` is larger; a run that does not exist is started.
        quiet: show no progress.
        each_epoch: called with each epoch's metrics just before its checkpoint is written, so that after a kill it
            may be called again for the same epoch; it must not change the model.
        callbacks: further callbacks, called after the evaluation of each epoch and before its checkpoint.
        keep_checkpoint: keep the optimizer's state, about twice the size of the weights, when the run is finished,
            so that it can be trained longer without a difference.
        pictures: whether to draw learning curves and reconstructions.

    Returns:
        Accuracies, the history and the run folder.

    Raises:
        ModelError: the model is not a `Network`.
        ConfigError: the data do not fit the network, the device is not available, or the loss is not finite or has
            become a thousand times that of the first steps; the last checkpoint is kept.
        KeyboardInterrupt: SIGINT was received; `dualcaps.errors.Terminated` for SIGTERM.
        RunError: the folder exists and `resume` is off, or belongs to another configuration or data, or the disk
            is too full; or of several processes another one has ended.
        OSError: writing failed; the run can be resumed from the last epoch written.

    Example:
        >>> data = load_data("digits")
        >>> model = create_model("da-capsnet", data.image_shape, len(data.classes))
        >>> result = fit(model, data, TrainConfig(epochs=40))  # doctest: +SKIP
    """
    _check_fits(model, data)
    config = _complete(config or TrainConfig(), model, data)
    assert config.lr is not None
    assert config.batch_size is not None
    device = choose_device(config.device)
    training = data.train if config.protocol == "clean" else data.train + data.validation
    augmentation = parse_augmentation(config.augment, data.flip)
    model.classes, model.value_range = data.classes, data.value_range

    with joined(device) as team, ExitStack() as stack:
        device = team.device
        stack.enter_context(_separate_random_numbers(device))
        precision = choose_precision(config.precision, device)
        display = ProgressDisplay(quiet or not team.leads)
        session = {**runs.environment(device, precision), "plugins": list(loaded_plugins()), "processes": team.size}

        def open_run() -> tuple[Path, Run | None, int]:
            path = (
                Path(out) if out is not None else default_path(data.name, model.config.name, config.seed, resume=resume)
            )
            existing, threads = stack.enter_context(_opened(path, model, data, config, session, resume, display.log))
            return path, existing, threads

        path, existing, threads = team.lead(open_run)
        if existing is not None and existing.finished and not _asks_for_more(existing, config):
            model.load_state_dict(team.lead(existing.weights))
            model.place(device)
            return _finished_result(existing)
        if config.deterministic:
            stack.enter_context(deterministic(device, threads))
        if existing is None or not existing.history:  # otherwise these weights are loaded
            _, height, width = data.image_shape
            sample = max(1, min(_INITIAL_IMAGES, _INITIAL_PIXELS // (height * width)))
            model.initialise_from_data(_sample(training, sample))
        model.place(device)
        selection = data.validation if config.protocol == "clean" else data.test
        state = TrainingState(
            model=model,
            data=data,
            config=config,
            run=path,
            precision=precision,
            optimizer=build_optimizer(model, config, config.lr),
            selection=_place(selection, device, display.log),
            selected_on=runs.selected_on(config),
            training_images=len(training),
            log=display.log,
            team=team,
        )
        if config.ema is not None:
            state.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        _load_state(state, existing)
        training = _place(training, device, display.log)
        steps_per_epoch = math.ceil(len(training) / config.batch_size)
        first_batch = state.resumed.progress["batches"] if state.resumed and state.resumed.progress else 0
        step = TrainingStep(
            model,
            state.optimizer,
            batch_size=team.share_of(config.batch_size),
            steps=(config.epochs - len(state.history)) * (len(training) // config.batch_size) - first_batch,
            reconstruction_weight=config.reconstruction_weight,
            bfloat16=precision == "bfloat16",
            compile="never" if config.deterministic and config.compile == "auto" else config.compile,
            log=display.log,
            label_smoothing=config.label_smoothing,
            class_weight=class_weights(config, training.labels, len(data.classes)),
            grad_clip=config.grad_clip,
            schedule=build_schedule(config, config.lr, steps_per_epoch),
            first_step=len(state.history) * steps_per_epoch + first_batch,
            parallel=team.size > 1,
            eager_kernels=config.deterministic,
        )
        evaluation = Evaluation()
        in_order: list[Callback] = [evaluation]
        if config.patience is not None:
            in_order.append(EarlyStopping(config.patience))
        if each_epoch is not None:
            in_order.append(EachEpoch(each_epoch))
        checkpoint = Checkpoint()
        in_order += [*callbacks, checkpoint, *([Pictures()] if pictures else []), display]
        if not team.leads:
            in_order = [evaluation]
        for callback in in_order:
            stack.callback(callback.close)
        for callback in in_order:
            callback.on_start(state)
        state.stop = team.lead(lambda: state.stop)
        stop_request = stack.enter_context(noted_signals())
        losses = LossWatch(state, training)
        for epoch in range(len(state.history) + 1, config.epochs + 1):
            if state.stop:
                display.log(f"stopped after epoch {epoch - 1}: {state.stop}")
                break
            if team.any(bool(stop_request)):
                raise stop_request.exception()
            progress, drawn = _begin_epoch(state, epoch, device)
            model.train()
            for batch in training_batches(
                training,
                config.batch_size,
                augmentation,
                progress.generator,
                len(data.classes),
                done=progress.batches,
                state=drawn,
                share=team.share,
            ):
                weight = team.weight(batch.size)
                outcome = step(batch.images, batch.labels, batch.overlap, weight=weight)
                if state.average is not None:
                    state.average.update_parameters(model)
                loss, correct = team.totals(outcome.loss, outcome.correct, len(batch.labels) if weight else 0)
                progress.loss += loss
                progress.correct += correct
                progress.batches += 1
                losses.add(loss / batch.size, epoch, progress.batches)
                for callback in in_order:
                    callback.on_batch_end(state, batch.size)
                asked = device.type == "cpu" or team.size == 1 or progress.batches % _STOP_ASKED_EVERY == 0
                if progress.batches < steps_per_epoch and asked and team.any(bool(stop_request)):
                    losses.check()
                    if team.leads:
                        checkpoint.write(state)
                    raise stop_request.exception()
            losses.check()
            mean_loss, seconds = progress.loss.item() / len(training), progress.elapsed()
            state.progress = None
            state.history.append(
                {
                    "epoch": epoch,
                    "loss": mean_loss,
                    "train_accuracy": progress.correct.item() / len(training),
                    "seconds": seconds,
                    "images_per_second": len(training) / seconds,
                    "compiled": step.compiled,
                }
            )
            for callback in in_order:
                callback.on_epoch_end(state)
            for callback in in_order:
                callback.on_checkpoint(state)
            state.stop = team.lead(lambda: state.stop)
        result = team.lead(lambda: _finish(state, in_order, keep_checkpoint))
        if team.size > 1:
            model.load_state_dict(team.lead(lambda: runs.read_weights(path)))
        if stop_request:
            raise stop_request.exception()
        return result


def _begin_epoch(state: TrainingState, epoch: int, device: torch.device) -> tuple[EpochProgress, torch.Tensor | None]:
    """Seed the random numbers and start the epoch's sums, or restore both within an epoch.

    Returns:
        The progress, and of a resumed epoch the state of the generator after its last batch.
    """
    seed = epoch_seed(state.config.seed, epoch)
    torch.manual_seed(seed + (state.team.rank << 48))  # dropout differs between processes
    generator, drawn = torch.Generator(device).manual_seed(seed), None
    progress = EpochProgress(
        generator, torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    )
    if (kept := state.resumed) is not None and kept.progress is not None:
        state.resumed = None
        progress.batches, progress.seconds = kept.progress["batches"], kept.progress["seconds"]
        progress.loss.copy_(kept.tensors["loss"])
        progress.correct.copy_(kept.tensors["correct"])
        drawn = kept.tensors["generator"]
        if not state.team.leads:
            torch.manual_seed(seed + (state.team.rank << 48) + (progress.batches << 32))
        else:
            torch.set_rng_state(kept.tensors["cpu"])
            if "cuda" in kept.tensors and device.type == "cuda":
                torch.cuda.set_rng_state(kept.tensors["cuda"], device)
    state.progress = progress
    return progress, drawn


@contextmanager
def _opened(
    path: Path,
    model: Network,
    data: ImageDataset,
    config: TrainConfig,
    session: dict[str, Any],
    resume: bool,
    log: Callable[[str], None],
) -> Iterator[tuple[Run | None, int]]:
    """Create the run folder, which an error before the first checkpoint removes, or open an existing one; lock it.

    Yields:
        The existing run, finished or prepared for more epochs, and the number of threads for a deterministic training.
    """
    existing = Run.open(path) if resume and path.exists() else None
    rollback = None
    if existing is None:
        rollback = _create(path, model, data, config, session)
    else:
        _check_same(existing, model, data, config)
        if config.deterministic and (sessions := existing.provenance["sessions"]):
            session["threads"] = sessions[0]["threads"]
    with runs.locked(path), ExitStack() as stack:
        if rollback is not None:
            stack.enter_context(_undone_on_error(path, rollback))
        remove_drafts(path)
        if existing is not None:
            existing = Run.open(path)  # again, as another process may have trained while this one waited
            if not existing.finished or _asks_for_more(existing, config):
                _reopen(existing, config, log)
                runs.add_session(path, session)
        yield existing, session["threads"]


def _load_state(state: TrainingState, existing: Run | None) -> None:
    """Load what an existing run or `init_from` provides, in all processes."""
    team, average = state.team, state.average

    def load() -> tuple[Any, ...] | None:
        if not restore(state):
            if existing is not None and existing.history:
                _continue_without_checkpoint(state, existing)
            elif state.config.init_from is not None:
                initialise_from(state.model, state.config.init_from, state.log)
        if team.size == 1:
            return None
        loaded = state.model.state_dict(), state.optimizer.state_dict(), average and average.state_dict()
        kept = state.history, state.first_losses, state.resumed
        return (*tree_map_only(torch.Tensor, torch.Tensor.cpu, loaded), *kept)

    found = team.lead(load)
    if found is not None and not team.leads:
        weights, optimizer, averages, state.history[:], state.first_losses[:], state.resumed = found
        state.model.load_state_dict(weights)
        state.optimizer.load_state_dict(optimizer)
        if average is not None:
            average.load_state_dict(averages)


@contextmanager
def _undone_on_error(path: Path, rollback: Callable[[], None]) -> Iterator[None]:
    """Remove a new run folder if invalid input or a full disk stops the training before its first checkpoint."""
    try:
        yield
    except (OSError, DualcapsError):
        if not any((path / name).exists() for name in (runs.CHECKPOINT, runs.RESULT)):
            rollback()
        raise


def _complete(config: TrainConfig, model: Network, data: ImageDataset) -> TrainConfig:
    """The configuration with the defaults that depend on data and network."""
    lr = default_learning_rate(config.optimizer, model.config) if config.lr is None else config.lr
    tta = ("flip-shift" if data.flip else "shift") if config.tta == "policy" else config.tta
    return dataclasses.replace(config, batch_size=config.batch_size or data.batch_size, lr=lr, tta=tta)


def default_path(data: str, model: str, seed: int, *, resume: bool) -> Path:
    """The run folder where none is given, by names and seed: a free one, or the last existing one to resume."""
    choose = runs.latest_run_path if resume else runs.free_run_path
    return choose(f"{data}-{model}-seed{seed}")


def _place(split: ImageSplit, device: torch.device, log: Callable[[str], None]) -> ImageSplit:
    """The images on the device, or in main memory if they would take more than half of a GPU's free memory."""
    if device.type == "cuda" and split.images.nbytes > (free := torch.cuda.mem_get_info(device)[0]) / 2:
        log(
            f"{split.images.nbytes / 1e9:.1f} GB of images stay in main memory, as the GPU has {free / 1e9:.1f} GB "
            "free: they are copied batch by batch"
        )
        return split
    return split.to(device)


def _sample(split: ImageSplit, count: int) -> torch.Tensor:
    """About so many images from all over a split; of a packed one the first, which are in random order."""
    if split.shards is None:
        return split.images[:: math.ceil(len(split) / count)]
    return next(split.pieces())[:count]


def _check_fits(model: Network, data: ImageDataset) -> None:
    if not isinstance(model, Network):
        raise ModelError(
            f"fit takes a dualcaps.Network, got {type(model).__name__}: wrap it with "
            "wrap_module(module, data.image_shape, len(data.classes))"
        )
    if model.config.image_shape != data.image_shape or model.config.num_classes != len(data.classes):
        raise ConfigError(
            f"{model.config.name} was built for images {model.config.image_shape} of {model.config.num_classes} "
            f"classes, {data.name} has {data.image_shape} of {len(data.classes)}: build it for these"
        )
    for part, split in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if not len(split):
            raise ConfigError(f"{data.name} has no {part} images")


def _create(
    path: Path, model: Network, data: ImageDataset, config: TrainConfig, session: dict[str, Any]
) -> Callable[[], None]:
    """Create the run folder; returns a function that removes it and the parent folders created for it."""
    _check_space(path, model)
    created = [parent for parent in path.parents if not parent.exists()]
    provenance = {**data.provenance, "sha256": data.fingerprint, "value_range": data.value_range, "notes": data.notes}
    runs.create_run(path, model.config, config, data.config, data.classes, {"data": provenance, "sessions": [session]})

    def rollback() -> None:
        shutil.rmtree(path, ignore_errors=True)
        remove_empty(created)

    return rollback


def _check_same(run: Run, model: Network, data: ImageDataset, config: TrainConfig) -> None:
    """Raise RunError if an existing run has another configuration or other images."""
    pairs: tuple[tuple[ModelConfig | TrainConfig | DataConfig, ...], ...] = (
        (run.model, model.config),
        (run.training, config),
        (run.data, data.config),
    )
    for known, wanted in pairs:
        before, now = to_json(known), to_json(wanted)
        for name in now:
            if before[name] != now[name] and name not in _MAY_CHANGE:
                option = "model" if name == "name" else name
                raise RunError(
                    f"{run.path}: {option} was {before[name]}, now {now[name]}: resume with the same options, or "
                    "start a new run"
                )
    if not same_images(data, run):
        raise RunError(f"{run.path}: the images of {data.name} are not those it was started with: start a new run")


def _asks_for_more(run: Run, config: TrainConfig) -> bool:
    """Whether a finished run is to be trained longer; after early stopping this takes more epochs or patience."""
    assert run.result is not None
    if run.result.get("stopped_early") and config.epochs <= run.training.epochs:
        return config.patience != run.training.patience and config.epochs > len(run.history)
    return config.epochs > len(run.history)


def _reopen(run: Run, config: TrainConfig, log: Callable[[str], None]) -> None:
    """Prepare a run for more epochs; record options that differ from those it was started with."""
    if run.finished:
        (run.path / runs.RESULT).unlink()
    changed = dataclasses.replace(run.training, epochs=config.epochs, patience=config.patience)
    if changed == run.training:
        return
    if config.epochs < len(run.history):
        raise RunError(f"{run.path}: has {len(run.history)} epochs already: set epochs to more than {config.epochs}")
    if config.epochs != run.training.epochs:
        stretched = "" if config.schedule == "constant" else f"; schedule {config.schedule} now spans all of them"
        log(f"{run.path}: {config.epochs} epochs instead of {run.training.epochs}{stretched}")
    write_json(run.path / runs.PROVENANCE, run.provenance)
    runs.write_config(run.path, run.model, changed, run.data, run.classes)


def _continue_without_checkpoint(state: TrainingState, run: Run) -> None:
    """Continue from the selected weights of a finished run whose checkpoint was not kept."""
    state.model.load_state_dict(run.weights())
    state.history[:] = run.history
    state.log(
        f"{run.path} has no checkpoint: continuing from the weights of epoch {state.selected['epoch']} with a fresh "
        "optimizer"
    )


def initialise_from(model: Network, source: str | Path, log: Callable[[str], None]) -> None:
    """Load the weights of a run into a network, where names and shapes match.

    Args:
        model: the network; layers whose shapes differ keep their initial weights.
        source: the run folder, or a trained network's name.
        log: called with one line about what was loaded and skipped.

    Raises:
        RunError: the run cannot be read.
        ConfigError: no weights match.
    """
    fresh, own = load_fitting(model, Run.open(source).weights()), model.state_dict()
    if len(fresh) == len(own):
        raise ConfigError(f"--init-from {source}: none of its weights match {model.config.name}")
    rest = f"; initialised: {', '.join(fresh[:6])}{' …' if len(fresh) > 6 else ''}" if fresh else ""
    log(f"weights from {source}: {len(own) - len(fresh)} of {len(own)} tensors{rest}")


def _check_space(path: Path, model: Network) -> None:
    """Raise RunError if the disk is too full for the checkpoints, before hours of training."""
    weights = 4 * count_parameters(model)
    needed = 2 * weights + 2 * 3 * weights  # two generations of weights and of checkpoints
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"{existing}: disk full, {free / 1e6:.0f} MB free where the run needs {needed / 1e6:.0f} MB: free some "
            "space or choose another folder with --out"
        )


def _separate_random_numbers(device: torch.device) -> Any:
    """Preserve the state of the caller's random number generators."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _finish(state: TrainingState, callbacks: Sequence[Callback], keep_checkpoint: bool) -> Result:
    """Restore the selected weights, evaluate on the test images, write the result."""
    model, data, selected = state.model, state.data, state.selected
    model.load_state_dict(runs.read_weights(state.run))
    if state.selected_on == "test" and state.config.tta == "none":
        test_accuracy = selected["test_accuracy"]
    else:
        test_accuracy = evaluate(model, data.test, precision=state.precision, tta=state.config.tta).accuracy
    for callback in callbacks:
        callback.on_finish(state)
    if state.config.protocol == "clean":  # other runs have no images left for it
        validation = data.validation
        keep_calibration(Run.open(state.run), model, validation.images, validation.labels, "the validation images")
    accuracy = selected[f"{state.selected_on}_accuracy"]
    write_json(
        state.run / runs.RESULT,
        {
            "protocol": state.config.protocol,
            "selected_epoch": selected["epoch"],
            f"{state.selected_on}_accuracy": accuracy,
            "test_accuracy": test_accuracy,
            "test_images": len(data.test),
            "reconstruction_error": reconstruction_error(model, data.test) if model.decoder else None,
            "parameters": count_parameters(model),
            "training_seconds": sum(line["seconds"] for line in state.history),
            "precision": state.precision,
            "stopped_early": state.stop or None,
        },
    )
    if not keep_checkpoint:
        runs.remove_checkpoint(state.run)
    return Result(state.run, selected["epoch"], accuracy, test_accuracy, state.history)


def _finished_result(run: Run) -> Result:
    assert run.result is not None
    selected = run.history[run.result["selected_epoch"] - 1]
    accuracy = selected[f"{run.selected_on}_accuracy"]
    return Result(run.path, run.result["selected_epoch"], accuracy, run.result["test_accuracy"], run.history)
