"""Answers of a trained network: lengths for images, and how often they are right."""

import dataclasses
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.func import functional_call

from dualcaps.runs import run as runs
from dualcaps.data.load import DATA_SETS, DataOptions, load_data, load_labelled
from dualcaps.data.images import read_images
from dualcaps.data.batches import Part, to_float
from dualcaps.errors import ConfigError, DataError, RunError
from dualcaps.models import ModelConfig, Network, build_model

_BATCHES_READ_AHEAD = 3

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Evaluation:
    """How a network's predictions compare with the labels.

    confusion: images by true class (rows) and predicted class (columns).
    """

    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """The part of all images predicted rightly, 0 to 1."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def recall(self) -> np.ndarray:
        """The part of each class's images predicted rightly; NaN for a class without images."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> np.ndarray:
        """The part of the predictions of each class that is right; NaN for a class never predicted."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def choose_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is the fastest kind at hand.

    Raises:
        ConfigError: the name is no device, or this machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: not on this machine: choose auto or cpu") from error
    return device


def choose_precision(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """The number type to compute in; "auto" is bfloat16 where the device multiplies it fast."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if fast else "float32"


def load_model(run: str | Path, device: str = "auto") -> Network:
    """The trained network of a finished run, ready to predict.

    Raises:
        RunError: the folder is missing, incomplete, damaged or from another version.
        ConfigError: this machine lacks the device.
    """
    path = Path(run)
    config = runs.read_config(path)
    runs.read_result(path)
    model = build_model(runs.parse(ModelConfig, config["model"], path))
    if len(config["classes"]) != model.config.num_classes:
        raise RunError(
            f"{path / runs.CONFIG}: holds no class names for {model.config.num_classes} classes: {runs.TRAIN_AGAIN}"
        )
    model.classes = tuple(config["classes"])
    try:
        model.load_state_dict(runs.read_weights(path))
    except RuntimeError as error:
        raise RunError(f"{path / runs.WEIGHTS}: not the weights of the network in {runs.CONFIG}") from error
    return model.place(choose_device(device)).eval()


@torch.inference_mode()
def predict(
    model: Network,
    images: UInt8[Tensor, "count channels height width"],
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
) -> Float[Tensor, "count classes"]:
    """The length of each class's capsule for each image, on the CPU.

    Args:
        model: the network, on any device; it is left in evaluation mode.
        images: values 0 to 255, in the shape that the network was built for.
        precision: the number type of the layers; what routing sums, squashes and couples with is
            always float32.
        batch_size: images at a time; it does not change the answers. Without, what the device is
            fastest with.

    Raises:
        ModelError: images of another shape.
    """
    model.eval()
    device = next(model.parameters()).device
    # Rounded once; autocast would round the weights again for each batch.
    number_type = getattr(torch, precision)
    weights = {
        name: weight.to(number_type) for name, weight in model.state_dict().items() if not name.startswith("decoder.")
    }
    lengths = [
        functional_call(model, weights, to_float(batch.to(device), number_type)).lengths.float()
        for batch in images.split(batch_size or _batch_size(device))
    ]
    return torch.cat(lengths).cpu()


def _batch_size(device: torch.device) -> int:
    return 128 if device.type == "cpu" else 1024  # CPUs ran at half the speed with 512


def predict_files(
    model: Network,
    paths: Sequence[Path],
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    unread: dict[int, str] | None = None,
) -> Float[Tensor, "count classes"]:
    """`predict` for image files of any size and mode, brought to the network's shape.

    While the network sees one batch the next ones are read.

    Args:
        model, precision, batch_size: see `predict`.
        paths: the files.
        unread: if given, a file that cannot be read does not stop the others: its place in `paths` and
            the reason are noted here, and its lengths are NaN.

    Raises:
        DataError: a file that is no image that can be read, without `unread`.
    """
    device = next(model.parameters()).device
    size = batch_size or _batch_size(device)
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]
    answers = []

    def read(batch: Sequence[Path]) -> tuple[np.ndarray, dict[int, str]]:
        skipped: dict[int, str] = {}
        return read_images(batch, model.config.image_shape, unread=None if unread is None else skipped), skipped

    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read, batch) for batch in batches[:_BATCHES_READ_AHEAD])
        try:
            for number in range(len(batches)):
                pixels, skipped = coming.popleft().result()
                if number + _BATCHES_READ_AHEAD < len(batches):
                    coming.append(reader.submit(read, batches[number + _BATCHES_READ_AHEAD]))
                answers.append(predict(model, torch.from_numpy(pixels), precision=precision, batch_size=size))
                if unread is not None:
                    unread |= {number * size + place: reason for place, reason in sorted(skipped.items())}
        finally:
            reader.shutdown(cancel_futures=True)  # after an error nothing is waited for
    lengths = torch.cat(answers)
    if unread:
        lengths[list(unread)] = torch.nan
    return lengths


def evaluate(
    model: Network, part: Part, *, precision: Precision = "float32", batch_size: int | None = None
) -> Evaluation:
    """Predict the images of a part and count; see `predict` for the arguments."""
    predicted = predict(model, part.images, precision=precision, batch_size=batch_size).argmax(dim=1)
    classes = model.config.num_classes
    pairs = part.labels.cpu() * classes + predicted
    return Evaluation(torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy())


def evaluate_run(
    run: str | Path, source: str | None = None, *, data_dir: str | Path | None = None, device: str = "auto"
) -> tuple[Evaluation, Network, bool | None]:
    """Evaluate a finished run, in the precision it was trained in, on test images.

    Args:
        run: the run folder.
        source: a data set's name (its test part), or one's own images (their test
            part, or all of them); without, the test part of what the run was trained on.
        data_dir: where the files of a named data set are looked for first.
        device: where to compute.

    Returns:
        The evaluation, the network, and whether the images are a data set's official ones (None
        where there is no telling).

    Raises:
        DataError: the images cannot be found or read, are of other classes, or are not those
            that the run was trained on.
        RunError, ConfigError: as `load_model`.
    """
    path, official = Path(run), None
    model = load_model(path, device)
    options = runs.parse(DataOptions, runs.read_config(path)["data"], path)
    if data_dir is not None:
        options = dataclasses.replace(options, data_dir=os.fspath(data_dir))
    channels, height, width = model.config.image_shape
    if source is None or options.source in (source, str(Path(source).resolve())):
        data = load_data(**vars(options))
        if data.provenance["sha256"] != runs.read_provenance(path)["data"]["sha256"]:
            raise DataError(
                f"{options.source}: changed since {path} was trained on it, so test images cannot be told from "
                "training images: put the images to evaluate on into another folder and name that"
            )
        part, official = data.test, data.provenance["official"]
    elif source in DATA_SETS:
        data = load_data(source, data_dir=options.data_dir, image_size=(height, width), channels=channels)
        if data.classes != model.classes:
            raise DataError(f"{source}: its classes are not the run's: {', '.join(model.classes)}")
        part, official = data.test, data.provenance["official"]
    else:
        part = load_labelled(source, model.classes, model.config.image_shape)
    return evaluate(model, part, precision=runs.read_result(path)["precision"]), model, official
