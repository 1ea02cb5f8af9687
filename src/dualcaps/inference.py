"""Inference: one policy for device, precision and batches.

Every path that runs a network without training it (predict, evaluate, reconstructions, explanations) goes
through `run_batches`.
"""

import dataclasses
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.func import functional_call

from dualcaps import kernels
from dualcaps.config import Precision, PrecisionChoice, TestTimeAugmentation
from dualcaps.data.augment import test_time_views
from dualcaps.data.convert import images_from
from dualcaps.data.dataset import ImageDataset, ImageSplit
from dualcaps.data.images import read_images
from dualcaps.data.load import load_data, load_labelled
from dualcaps.errors import ConfigError, DataError, ModelError, RunError
from dualcaps.models import CapsOutput, Intermediates, Network, build_model
from dualcaps.nn import Decoder, to_unit_range
from dualcaps.registry import DATASETS, load_entry_points
from dualcaps.routing import RoutingLayer
from dualcaps.runs.run import CONFIG, WEIGHTS, Run, selected_epoch

_BATCHES_READ_AHEAD = 3
_BATCHES_CHANGED = 16  # copied at once by test-time augmentation
_PIXELS_AT_ONCE = 128 * 64 * 64  # of a batch on a CPU
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Predictions and labels of an evaluation, with metrics.

    Attributes:
        lengths: lengths of the class capsules, [images, classes].
        labels: the class numbers, [images].
        classes: class names in the order of the labels.
    """

    lengths: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class numbers."""
        return self.lengths.argmax(axis=1)

    @property
    def confusion(self) -> np.ndarray:
        """Images by true class (rows) and predicted class (columns)."""
        count = len(self.classes)
        return np.bincount(self.labels * count + self.predicted, minlength=count**2).reshape(count, count)

    @property
    def accuracy(self) -> float:
        """The share of all images predicted correctly, 0 to 1."""
        return float((self.predicted == self.labels).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval (Wilson's score interval)."""
        from scipy.stats import binomtest  # takes a moment to import

        correct = int((self.predicted == self.labels).sum())
        bounds = binomtest(correct, len(self.labels)).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        return float(np.nanmean(self.recall))

    @property
    def recall(self) -> np.ndarray:
        """The share of each class's images predicted correctly; NaN for a class without images."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> np.ndarray:
        """The share of the predictions of each class that is correct; NaN for a class never predicted."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=0))

    def top_k(self, k: int) -> float:
        """The share of images whose class is among the k longest capsules."""
        ranking = np.argsort(-self.lengths, axis=1, kind="stable")[:, :k]
        return float((ranking == self.labels[:, None]).any(axis=1).mean())

    def calibration_error(self, bins: int = _CALIBRATION_BINS) -> float:
        """Expected calibration error of the longest capsule's length (Guo et al. 2017, arXiv:1706.04599).

        The mean, weighted by images, of |accuracy - mean length| over equal bins of the length from 0 to 1.
        """
        confidence, correct = self.lengths.max(axis=1), self.predicted == self.labels
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        gaps = [
            abs(correct[place == bin_].mean() - confidence[place == bin_].mean()) * (place == bin_).sum()
            for bin_ in np.unique(place)
        ]
        return float(sum(gaps) / len(self.labels))

    def most_confidently_wrong(self, count: int = 20) -> np.ndarray:
        """Indices of the wrongly predicted images whose predicted class's capsule is longest, longest first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.lengths[wrong].max(axis=1), kind="stable")][:count]


@dataclass(frozen=True)
class RunEvaluation:
    """A run evaluated on some images.

    Attributes:
        evaluation: predictions and labels.
        model: the network.
        split: the images.
        official: whether they are a data set's official images; None if there are no official ones.
        notes: see `ImageDataset.notes`, and about the precision.
    """

    evaluation: Evaluation
    model: Network
    split: ImageSplit
    official: bool | None
    notes: tuple[str, ...]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" is the fastest available kind.

    Raises:
        ConfigError: the name is not a device, or not available on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: not on this machine: choose auto or cpu") from error
    return device


def choose_precision(name: PrecisionChoice, device: torch.device) -> Precision:
    """The number type to compute in; "auto" is bfloat16 if the device multiplies it fast."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if fast else "float32"


def choose_batch_size(device: torch.device, image_shape: tuple[int, int, int]) -> int:
    """The batch size with the highest throughput.

    On a CPU 128 images of up to 64x64 pixels, 512 being half as fast; of larger images fewer, so that activations stay
    in its caches, but at least 16. On a GPU eight times as many, which was not measured.
    """
    _, height, width = image_shape
    fitting = _PIXELS_AT_ONCE // (height * width)
    images = min(128, max(16, 2 ** (fitting.bit_length() - 1)))
    return images if device.type == "cpu" else 8 * images


def _batch_size(model: Network, wanted: int | None) -> int:
    return wanted or choose_batch_size(next(model.parameters()).device, model.config.image_shape)


def load_model(run: str | Path | Run, device: str = "auto", *, model: Network | None = None) -> Network:
    """The trained network of a run, ready to predict.

    Of a run that is not finished, the weights kept so far are loaded, with a `UserWarning`.

    Args:
        run: the run folder.
        device: see `choose_device`.
        model: a network to load the weights into, for one that is not registered by name.

    Raises:
        RunError: the folder is missing, incomplete, damaged or from another version.
        ModelError: its network, trunk or routing method is not registered.
        ConfigError: the device is not available on this machine.

    Example:
        >>> model = load_model("runs/digits-da-capsnet-seed0")  # doctest: +SKIP
        >>> predict(model, images).argmax(dim=1)  # doctest: +SKIP
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    if model is None:
        try:
            model = build_model(dataclasses.replace(opened.model, trunk_weights=None))
        except ModelError as error:
            sessions = opened.provenance["sessions"]
            plugins = sessions[-1].get("plugins") if sessions else None
            hint = (
                f": load its plug-in with --plugin {' --plugin '.join(plugins)}"
                if plugins
                else ": load the plug-in that registers it (--plugin FILE), or pass model= to load_model"
            )
            raise ModelError(f"{opened.path}: {str(error).partition(': ')[0]}{hint}") from error
    if not opened.finished:
        if not (opened.path / WEIGHTS).is_file():
            raise RunError(f"{opened.path}: no epoch is finished yet: train on with --resume")
        epoch = selected_epoch(opened.training, opened.history)["epoch"] if opened.history else 0
        kept = "last" if opened.training.protocol == "last" else "best"
        warnings.warn(
            f"{opened.path} is not finished: these are the weights of epoch {epoch}, the {kept} of "
            f"{len(opened.history)} of {opened.training.epochs}",
            stacklevel=2,
        )
    try:
        model.load_state_dict(opened.weights())
    except RuntimeError as error:
        raise RunError(f"{opened.path / WEIGHTS}: not the weights of the network in {CONFIG}") from error
    model.classes = opened.classes
    value_range = opened.provenance["data"].get("value_range")
    model.value_range = None if value_range is None else (value_range[0], value_range[1])
    return model.place(choose_device(device)).eval()


@torch.inference_mode()
def run_batches(
    model: Network,
    images: Tensor,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    intermediates: bool = False,
) -> Iterator[tuple[Float[Tensor, "batch channels height width"], CapsOutput | Intermediates]]:
    """Run a network over images, batch by batch, in evaluation mode.

    In float32 on the CPU, batches of at least 16 images are computed by `dualcaps.kernels` where a training has
    compiled them; outputs then differ by rounding.

    Args:
        model: on any device; it is left in evaluation mode.
        images: uint8 [N, C, H, W] from 0 to 255, or floats in [0, 1], on any device.
        precision: the number type of the layers; routing is always computed in float32.
        batch_size: images per batch; it does not change the results. By default `choose_batch_size`.
        intermediates: see `Network.forward`.

    Yields:
        The batch as floats in [0, 1] on the model's device, and the network's output.
    """
    model.eval()
    device = next(model.parameters()).device
    # Rounded once, whereas autocast would round the weights for each batch; those of routing stay as they are.
    number_type = getattr(torch, precision)
    unrounded = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, Decoder | RoutingLayer))
    weights = {
        name: weight.to(number_type) if weight.is_floating_point() else weight
        for name, weight in model.state_dict().items()
        if not name.startswith(unrounded)
    }
    arguments: dict[str, Any] = {"intermediates": True} if intermediates else {}
    for batch in images.split(_batch_size(model, batch_size)):
        placed = batch.to(device)
        inputs = to_unit_range(placed, number_type) if placed.dtype == torch.uint8 else placed.to(number_type)
        with _kernels_if_compiled():
            output = functional_call(model, weights, inputs, arguments)
        yield inputs, output


@contextmanager
def _kernels_if_compiled() -> Iterator[None]:
    """Use the kernels if this machine has compiled them.

    Not with torch's deterministic algorithms, as the last bits would depend on what was compiled before.
    """
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    with suppress(OSError):
        kernels.load(compile=False)
    with kernels.used_in_eager_code():
        yield


def predict(
    model: Network,
    images: Any,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    tta: TestTimeAugmentation = "none",
) -> Float[Tensor, "count classes"]:
    """The length of each class's capsule for each image.

    Args:
        model: the network, on any device; it is left in evaluation mode.
        images: what `dualcaps.data.convert.images_from` takes: a tensor, array or list of images, uint8 from 0 to 255
            or floats in [0, 1], channels first or last; one image; PIL images.
        precision: number type of the layers, see `run_batches`.
        batch_size: images at once, see `run_batches`.
        tta: test-time augmentation: the mean over changed images, see `dualcaps.data.augment.test_time_views`.

    Returns:
        Lengths in [0, 1] on the CPU, in float32.

    Raises:
        DataError: values of unknown range, or an ambiguous shape.
        ModelError: images of another shape.

    Example:
        >>> model = create_model("capsnet", (1, 28, 28), 10)
        >>> predict(model, torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """
    pixels = images_from(images, model.config.image_shape, model.value_range)
    if tuple(pixels.shape[1:]) != model.config.image_shape:
        model.prepare(pixels)  # raises ModelError
    if not len(pixels):
        return torch.empty(0, model.config.num_classes)
    size = _batch_size(model, batch_size)
    parts = []
    for part in pixels.split(_BATCHES_CHANGED * size) if tta != "none" else [pixels]:
        lengths = torch.zeros(())
        for weight, change in test_time_views(tta):
            batches = run_batches(model, change(part), precision=precision, batch_size=size)
            lengths = lengths + weight * torch.cat([output.lengths.float() for _, output in batches]).cpu()
        parts.append(lengths)
    return torch.cat(parts)


def predict_files(
    model: Network,
    paths: Sequence[Path],
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    tta: TestTimeAugmentation = "none",
    unread: dict[int, str] | None = None,
    each_batch: Callable[[Tensor], object] = lambda _: None,
) -> Float[Tensor, "count classes"]:
    """`predict` for image files of any size and mode, resized to the network's shape.

    The next batches are read while the network computes.

    Args:
        model, precision, batch_size, tta: see `predict`.
        paths: the files.
        unread: if given, files that cannot be read do not stop the others: their indices in `paths` and
            the reasons are stored here, and their lengths are NaN.
        each_batch: called with the images of each batch in turn, uint8 [B, C, H, W]; black where they cannot be read.

    Raises:
        DataError: a file cannot be read as an image, and `unread` is not given.
    """
    skipped: dict[int, str] | None = None if unread is None else {}
    answers = []
    for pixels in _read_ahead(model, paths, batch_size, skipped):
        answers.append(predict(model, pixels, precision=precision, batch_size=batch_size, tta=tta))
        each_batch(pixels)
    lengths = torch.cat(answers)
    if unread is not None and skipped:
        unread |= skipped
        lengths[list(skipped)] = math.nan
    return lengths


def _read_ahead(
    model: Network, paths: Sequence[Path], batch_size: int | None, unread: dict[int, str] | None
) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """Read image files in batches, resized to the network's shape; the next ones are read while one is used."""
    size = _batch_size(model, batch_size)
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]

    def read(batch: Sequence[Path]) -> tuple[np.ndarray, dict[int, str]]:
        skipped: dict[int, str] = {}
        noted = None if unread is None else skipped
        return read_images(batch, model.config.image_shape, unread=noted, value_range=model.value_range), skipped

    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read, batch) for batch in batches[:_BATCHES_READ_AHEAD])
        try:
            for number in range(len(batches)):
                pixels, skipped = coming.popleft().result()
                if number + _BATCHES_READ_AHEAD < len(batches):
                    coming.append(reader.submit(read, batches[number + _BATCHES_READ_AHEAD]))
                if unread is not None:
                    unread |= {number * size + place: reason for place, reason in sorted(skipped.items())}
                yield torch.from_numpy(pixels)
        finally:
            reader.shutdown(cancel_futures=True)


def evaluate(
    model: Network,
    split: ImageSplit,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    tta: TestTimeAugmentation = "none",
) -> Evaluation:
    """Evaluate a network on labelled images.

    Labels are compared by the names of their classes where the split has names and the network was trained with
    names, otherwise by number.

    Args:
        model: the network.
        split: the images and labels.
        precision: number type of the layers, see `run_batches`.
        batch_size: images at once, see `run_batches`.
        tta: test-time augmentation, see `predict`.

    Raises:
        DataError: no images, or labels of unknown classes.

    Example:
        >>> data = load_data("digits")
        >>> model = create_model("capsnet", data.image_shape, len(data.classes), width=8)
        >>> evaluation = evaluate(model, data.test)
        >>> int(evaluation.confusion.sum())
        359
    """
    if not len(split):
        raise DataError("no images to evaluate on")
    options: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "tta": tta}
    lengths = torch.cat([predict(model, piece, **options) for piece in split.pieces()]).numpy()
    return Evaluation(lengths, _labels_by_name(model, split), model.classes)


def _labels_by_name(model: Network, split: ImageSplit) -> np.ndarray:
    """The split's labels in the network's numbering of the classes."""
    labels, known = split.labels.cpu().numpy(), len(model.classes)
    numbered = model.classes == tuple(str(number) for number in range(known))
    if split.classes is not None and split.classes != model.classes and not numbered:
        present = sorted(set(labels.tolist()))
        if present[-1] >= len(split.classes):
            raise DataError(f"label {present[-1]} is not one of the {len(split.classes)} classes")
        if unknown := [split.classes[label] for label in present if split.classes[label] not in model.classes]:
            raise DataError(f"class {unknown[0]!r} is not one of the network's: {', '.join(model.classes)}")
        order = [model.classes.index(name) if name in model.classes else -1 for name in split.classes]
        return np.array(order)[labels]
    if labels.min() < 0 or labels.max() >= known:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise DataError(f"label {wrong} is not one of the network's {known} classes, which are numbered from 0")
    return labels


def evaluate_run(
    run: str | Path, source: str | None = None, *, data_dir: str | Path | None = None, device: str = "auto"
) -> RunEvaluation:
    """Evaluate a run on test images, in the precision and with the test-time augmentation it was trained for.

    A run that was trained in bfloat16 is evaluated in float32 on a machine that is slow at bfloat16, with a note.

    Args:
        run: the run folder.
        source: a data set's name, whose test part is used, or your own images, of which the test part or all
            are used; by default the test part of the run's data.
        data_dir: folder to search first for the files of a named data set.
        device: see `choose_device`.

    Raises:
        DataError: the images cannot be found or read, are of other classes, or have changed since the run
            was trained on them.
        RunError, ModelError, ConfigError: as `load_model`.
    """
    opened = Run.open(run)
    model = load_model(opened, device)
    split, official, notes = evaluation_split(opened, model, source, data_dir=data_dir)
    precision = opened.result["precision"] if opened.result else opened.provenance["sessions"][-1]["precision"]
    if precision == "bfloat16" and choose_precision("auto", next(model.parameters()).device) == "float32":
        precision = "float32"
        notes += ("evaluated in float32, as this machine is slow at bfloat16, in which the network was trained",)
    evaluation = evaluate(model, split, precision=precision, tta=opened.training.tta)
    return RunEvaluation(evaluation, model, split, official, notes)


def evaluation_split(
    opened: Run, model: Network, source: str | None = None, *, data_dir: str | Path | None = None
) -> tuple[ImageSplit, bool | None, tuple[str, ...]]:
    """The images that a run is evaluated on, whether they are official ones, and notes about them.

    Args:
        opened: the run.
        model: its network.
        source, data_dir: see `evaluate_run`, which also lists the errors.
    """
    options = opened.data
    if data_dir is not None:
        options = dataclasses.replace(options, data_dir=os.fspath(data_dir))
    channels, height, width = model.config.image_shape
    load_entry_points()
    official, notes = None, ()
    if source is None or options.source in (source, str(Path(source).resolve())):
        data = run_data(opened, data_dir=data_dir)
        split, official, notes = data.test, data.provenance["official"], data.notes
    elif source in DATASETS:
        data = load_data(source, data_dir=options.data_dir, image_size=(height, width), channels=channels)
        if not set(data.classes) <= set(model.classes):
            raise DataError(f"{source}: its classes are not the run's: {', '.join(model.classes)}")
        split, official, notes = data.test, data.provenance["official"], data.notes
    else:
        split = load_labelled(source, model.classes, model.config.image_shape, value_range=model.value_range)
    return split, official, tuple(notes)


def run_data(opened: Run, *, data_dir: str | Path | None = None) -> ImageDataset:
    """The data set that a run was trained on, with the same split.

    Args:
        opened: the run.
        data_dir: see `evaluate_run`.

    Raises:
        DataError: the run was trained on arrays, or the images cannot be found or have changed since.
    """
    options = opened.data
    if data_dir is not None:
        options = dataclasses.replace(options, data_dir=os.fspath(data_dir))
    if options.source == "":
        raise DataError(f"{opened.path}: was trained on arrays: name the images to evaluate on")
    data = load_data(**vars(options))
    if not same_images(data, opened):
        raise DataError(
            f"{options.source}: changed since {opened.path} was trained on it, so test images cannot be "
            "distinguished from training images: put the images to evaluate on into another folder and name that"
        )
    return data


def same_images(data: Any, run: Run) -> bool:
    """Whether a data set has the images and the split that a run was started with."""
    known = run.provenance["data"]
    if "sha256" in known:
        return known["sha256"] == data.fingerprint
    return known.get("sha256_format_1") == data.provenance.get("sha256_format_1")
