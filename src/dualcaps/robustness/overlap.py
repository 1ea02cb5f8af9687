"""Overlapping images of two classes, both of which are to be found: MultiMNIST (Sabour et al. 2017, Section 6)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dualcaps.data.augment import Augmentation, augment, overlap
from dualcaps.data.dataset import ImageSplit
from dualcaps.inference import run_batches
from dualcaps.models import Network

_SHIFT = 1 / 9  # of the side: Sabour et al. move by up to 4 of 36 pixels
_AT_ONCE = 500  # images that partners are drawn from


class OverlapScore(NamedTuple):
    """How well the two classes of overlapping images are found.

    images: how many were classified.
    both: share of the images whose two classes are the two longest capsules, 0 to 1.
    each: share of all classes present that are among the two longest, 0 to 1.
    reconstruction_error: mean squared difference of the two reconstructions, each from the pose of its true class,
        from the two images, per value in [0, 1]; None without a decoder.
    blank_error: the same of a black picture.
    """

    images: int
    both: float
    each: float
    reconstruction_error: float | None
    blank_error: float


def both_found(lengths: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch 2"]) -> Bool[Tensor, "batch"]:
    """Whether both classes of each image are among its two longest capsules."""
    return _found(lengths, labels).all(dim=1)


def _found(lengths: Tensor, labels: Tensor) -> Bool[Tensor, "batch 2"]:
    longest = lengths.topk(2, dim=1).indices
    return (longest[:, :, None] == labels[:, None, :]).any(dim=1)


@torch.inference_mode()
def score_overlap(model: Network, split: ImageSplit, *, seed: int = 0) -> OverlapScore:
    """Put each image below another of another class, both moved by up to a ninth of the side, and find both.

    Args:
        model: the network; made for this by training with `augment="shift=0.112,overlap"`.
        split: images on a black background, with the labels of the network.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    both = each = images = 0
    error = blank = 0.0
    for pixels, labels in zip(split.images.cpu().split(_AT_ONCE), split.labels.cpu().split(_AT_ONCE), strict=True):
        moved = augment(pixels, Augmentation(shift=_SHIFT), generator)
        merged, present, parts = overlap(moved, labels, model.config.num_classes, generator)
        two = present.sum(dim=1) == 2
        if not two.any():
            continue
        merged, targets, numbers = merged[two], parts.images[two].float() / 255, parts.labels[two]
        outputs = [output for _, output in run_batches(model, merged)]
        lengths, poses = (torch.cat([getattr(output, name) for output in outputs]) for name in ("lengths", "poses"))
        found = _found(lengths.cpu(), numbers)
        both, each, images = both + int(found.all(dim=1).sum()), each + int(found.sum()), images + len(numbers)
        blank += float(targets.square().sum()) / targets[0].numel()
        if model.decoder is not None:
            for place in range(2):
                drawn = model.reconstruct(poses, numbers[:, place].to(poses.device)).cpu()
                error += float((drawn - targets[:, place]).square().sum()) / targets[0].numel()
    return OverlapScore(
        images,
        both / max(images, 1),
        each / max(2 * images, 1),
        None if model.decoder is None else error / max(images, 1),
        blank / max(images, 1),
    )
