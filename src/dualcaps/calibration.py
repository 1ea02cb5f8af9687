"""Probabilities from lengths, by a temperature fitted on images that a network was not trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualcaps.inference import Evaluation, predict, run_data
from dualcaps.models import Network
from dualcaps.runs.run import CALIBRATION, Run, keep_derived, read_derived

_TEMPERATURES = (1e-2, 1e2)


class HeldOut(NamedTuple):
    """Images that a network was neither trained nor is to be tested on.

    images: uint8 [N, C, H, W].
    labels: class numbers [N].
    description: which images they are.
    others: indices of the test images that do not belong to them.
    """

    images: Tensor
    labels: Tensor
    description: str
    others: Tensor


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it was fitted on.

    Attributes:
        temperature: T; probabilities are softmax(lengths / T).
        error_before: expected calibration error on these images, with lengths divided by their sum.
        error_after: the same with the probabilities.
        images: number of these images.
        held_out: which images they were.
    """

    temperature: float
    error_before: float
    error_after: float
    images: int
    held_out: str


def probabilities(
    lengths: Float[np.ndarray, "count classes"], temperature: float
) -> Float[np.ndarray, "count classes"]:
    """softmax(lengths / temperature), in float64."""
    from scipy.special import softmax  # takes a moment to import

    return softmax(np.asarray(lengths, float) / temperature, axis=1)


def calibrate(
    lengths: Float[np.ndarray, "count classes"], labels: Int[np.ndarray, "count"], held_out: str
) -> Calibration:
    """The temperature between 0.01 and 100 with the smallest cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        lengths: of the class capsules for held-out images.
        labels: the class numbers of these images.
        held_out: a description of these images.

    Example:
        >>> lengths, labels = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1])
        >>> round(calibrate(lengths, labels, "three images").temperature, 2)
        0.31
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    lengths, chosen = np.asarray(lengths, float), (np.arange(len(labels)), labels)

    def cross_entropy(log_temperature: float) -> float:
        return -float(log_softmax(lengths / np.exp(log_temperature), axis=1)[chosen].mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(_TEMPERATURES), method="bounded")
    temperature = float(np.exp(found.x))
    names = tuple(map(str, range(lengths.shape[1])))
    shares = lengths / np.maximum(lengths.sum(axis=1, keepdims=True), 1e-12)
    before, after = (
        Evaluation(scores, labels, names).calibration_error()
        for scores in (shares, probabilities(lengths, temperature))
    )
    return Calibration(temperature, before, after, len(labels), held_out)


def held_out_images(run: Run, *, data_dir: str | Path | None = None) -> HeldOut:
    """The images to set a run's temperature and thresholds on.

    The validation images; a run that was trained on these too (protocols paper and last) has none, and half of its
    test images are taken, drawn with seed 0.

    Raises:
        DataError: the run's images cannot be found or have changed; see `run_data`.
    """
    data = run_data(run, data_dir=data_dir)
    if run.training.protocol == "clean":
        validation = data.validation
        return HeldOut(validation.images, validation.labels, "the validation images", torch.arange(len(data.test)))
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    half, rest = (part.sort().values for part in order.split([len(order) // 2, len(order) - len(order) // 2]))
    description = "half of the test images, as the run was trained on all others"
    return HeldOut(data.test.images[half], data.test.labels[half], description, rest)


def calibration_of(run: Run, model: Network, *, data_dir: str | Path | None = None) -> Calibration:
    """The calibration of a run: the one kept in its folder, or else computed from held-out images and kept there.

    Args:
        run: the run.
        model: its network.
        data_dir: folder to search first for the files of a named data set.

    Raises:
        DataError: it has to be computed and the images cannot be found or have changed.
        RunError: the kept one is damaged.
        OSError: it cannot be kept.
    """
    kept = kept_calibration(run)
    if kept is not None:
        return kept
    held_out = held_out_images(run, data_dir=data_dir)
    return keep_calibration(run, model, held_out.images, held_out.labels, held_out.description)


def kept_calibration(run: Run) -> Calibration | None:
    """The calibration kept in a run's folder, if there is one of its weights; raises RunError if it is damaged."""
    return read_derived(run, CALIBRATION, _parse)


def _parse(content: Mapping[str, Any]) -> Calibration:
    temperature, before, after = (float(content[name]) for name in ("temperature", "error_before", "error_after"))
    return Calibration(temperature, before, after, int(content["images"]), str(content["held_out"]))


def keep_calibration(run: Run, model: Network, images: Tensor, labels: Tensor, held_out: str) -> Calibration:
    """Compute a run's calibration from held-out images and keep it in its folder."""
    lengths = predict(model, images, tta=run.training.tta).numpy()
    calibration = calibrate(lengths, labels.cpu().numpy(), held_out)
    keep_derived(run, CALIBRATION, asdict(calibration))
    return calibration
