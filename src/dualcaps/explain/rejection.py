"""Rejection: recognise images that are of none of a network's classes.

An image is rejected if one of its signals (how short the longest capsule is, how far the reconstruction is from the
image, how undecided the couplings are) is more extreme than those of nearly all held-out images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.calibration import held_out_images
from dualcaps.errors import DataError
from dualcaps.inference import run_batches
from dualcaps.models import Intermediates, Network
from dualcaps.runs.run import REJECTION, Run, keep_derived, read_derived

FALSE_ALARMS = 0.05
"""The share of held-out images that is rejected."""

_KEPT_VALUES = 2_000  # of each signal
_FEWEST_IMAGES = 20  # that can tell a tail of 5 %


@dataclass(frozen=True)
class Rejection:
    """The signals of held-out images, and the share of them at which an image is rejected.

    Attributes:
        values: for each signal its values of held-out images, ascending; see `signals`.
        tail: an image is rejected if for one of its signals the share of held-out images that are at least as
            extreme is below this.
        images: number of held-out images.
        held_out: which images they were.
    """

    values: Mapping[str, np.ndarray]
    tail: float
    images: int
    held_out: str

    def tails(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The share of held-out images whose signal is at least as extreme as each image's: small if unusual.

        Args:
            found: the images' signals, as `signals` returns them.
        """
        shares = {}
        for name, known in self.values.items():
            beyond = len(known) - np.searchsorted(known, found[name], side="left")
            shares[name] = (beyond + 1) / (len(known) + 1)
        return shares

    def smallest_tail(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """The smallest of an image's `tails`."""
        return np.min(list(self.tails(found).values()), axis=0)

    def rejects(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether each image is rejected."""
        return self.smallest_tail(found) < self.tail


@torch.inference_mode()
def signals(
    model: Network, images: Tensor, *, batch_size: int | None = None, each: Callable[[int], None] = lambda _: None
) -> dict[str, Float[np.ndarray, "count"]]:
    """What tells unusual images, the larger the more unusual; signals whose part a network lacks are left out.

    length: 1 minus the length of the longest capsule.
    reconstruction: the mean squared difference between the image and the reconstruction from that capsule.
    entropy: the mean entropy of a child capsule's couplings with the parents, divided by its maximum.

    Args:
        model: the network; it is left in evaluation mode.
        images: uint8, or values in [0, 1].
        batch_size: images at once, see `run_batches`.
        each: called after each batch with its number of images, to report progress.
    """
    found: dict[str, list[Tensor]] = {}
    for inputs, output in run_batches(model, images, batch_size=batch_size, intermediates=True):
        assert isinstance(output, Intermediates)
        longest = output.lengths.max(dim=1)
        batch = {"length": 1 - longest.values}
        if model.decoder is not None:
            drawn = model.reconstruct(output.poses, longest.indices)
            batch["reconstruction"] = (drawn - inputs).square().mean(dim=(1, 2, 3))
        if output.couplings is not None:
            shares = output.couplings.float()
            entropy = torch.special.entr(shares).sum(dim=1).mean(dim=1)
            batch["entropy"] = entropy / torch.log(torch.tensor(float(shares.shape[1])))
        for name, values in batch.items():
            found.setdefault(name, []).append(values.double().cpu())
        each(len(inputs))
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def set_thresholds(found: Mapping[str, np.ndarray], held_out: str, *, false_alarms: float = FALSE_ALARMS) -> Rejection:
    """Choose the tail at which this share of the held-out images is rejected.

    Args:
        found: signals of the held-out images.
        held_out: a description of these images.
        false_alarms: the share to reject.

    Raises:
        DataError: fewer than 20 images.
    """
    count = len(next(iter(found.values())))
    if count < _FEWEST_IMAGES:
        raise DataError(f"{count} held-out images are too few to set thresholds: at least {_FEWEST_IMAGES} are needed")
    values = {name: np.sort(signal) for name, signal in found.items()}
    if count > _KEPT_VALUES:
        places = np.linspace(0, count - 1, _KEPT_VALUES).round().astype(int)
        values = {name: signal[places] for name, signal in values.items()}
    smallest = np.sort(Rejection(values, 0.0, count, held_out).smallest_tail(found))
    return Rejection(values, float(smallest[round(false_alarms * count)]), count, held_out)


def rejection_of(
    run: Run,
    model: Network,
    *,
    data_dir: str | Path | None = None,
    start: Callable[[int], Callable[[int], None]] = lambda _: lambda _: None,
) -> Rejection:
    """The thresholds of a run: those kept in its folder, or else computed from held-out images and kept there.

    Args:
        run: the run.
        model: its network.
        data_dir: folder to search first for the files of a named data set.
        start: called before computing with the number of images; returns the function to report progress to.

    Raises:
        DataError: they have to be computed and the images cannot be found or have changed, or are too few.
        RunError: the kept ones are damaged.
    """
    kept = read_derived(run, REJECTION, _parse)
    if kept is not None:
        return kept
    try:
        held_out = held_out_images(run, data_dir=data_dir)
        found = signals(model, held_out.images, each=start(len(held_out.images)))
        rejection = set_thresholds(found, held_out.description)
    except DataError as error:
        raise DataError(
            f"thresholds for rejection are computed once, from the run's held-out images: {error}"
        ) from error
    content = {
        "tail": rejection.tail,
        "images": rejection.images,
        "held_out": rejection.held_out,
        "values": {name: values.tolist() for name, values in rejection.values.items()},
    }
    keep_derived(run, REJECTION, content)
    return rejection


def _parse(content: Mapping[str, Any]) -> Rejection:
    values = {str(name): np.array(signal, float) for name, signal in content["values"].items()}
    return Rejection(values, float(content["tail"]), int(content["images"]), str(content["held_out"]))
