"""Dimension sweeps: what the decoder draws when one dimension of a pose changes (Sabour et al. 2017, Fig. 4)."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import ModelError
from dualcaps.inference import run_batches
from dualcaps.models import Network
from dualcaps.plots import image_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SABOUR_RANGE = 0.25
"""How far Sabour et al. change a dimension, to both sides."""

_TAIL = 0.01  # share of the poses outside the range that counts as seen, at each end


@torch.inference_mode()
def seen_ranges(model: Network, split: ImageSplit) -> Float[Tensor, "classes 2 dim"]:
    """The range of each dimension of each class's pose over the images of the class: its 1st and 99th percentile.

    Of a class without images it is taken over all images.

    Raises:
        ModelError: the network has no poses, or there are no images.
    """
    if not len(split):
        raise ModelError("no images to take the range of poses from")
    poses = torch.cat([output.poses.float().cpu() for _, output in run_batches(model, split.images)])
    if not poses.shape[2]:
        raise ModelError(f"{model.config.name} has no poses to sweep")
    labels, tails = split.labels.cpu(), torch.tensor([_TAIL, 1 - _TAIL])
    ranges = []
    for label in range(poses.shape[1]):
        own = poses[labels == label, label]
        ranges.append((own if len(own) else poses[:, label]).quantile(tails, dim=0))
    return torch.stack(ranges)


@torch.inference_mode()
def sweep(
    model: Network, poses: Float[Tensor, "classes dim"], label: int, values: Float[Tensor, "dim steps"]
) -> Float[Tensor, "dim steps channels height width"]:
    """The reconstructions from a class's pose with one of its dimensions replaced.

    Args:
        model: a network with a decoder.
        poses: of one image, as in `CapsOutput.poses`.
        label: the class whose pose is changed and decoded.
        values: what each dimension is replaced by, on the network's device.

    Raises:
        ModelError: the network has no decoder.
    """
    dims, steps = values.shape
    changed = poses.expand(dims, steps, *poses.shape).clone()
    for dim in range(dims):
        changed[dim, :, label, dim] = values[dim]
    labels = torch.full((dims * steps,), label, device=poses.device)
    return model.reconstruct(changed.flatten(0, 1), labels).unflatten(0, (dims, steps))


def around(poses: Float[Tensor, "classes dim"], label: int, steps: int = 11) -> Float[Tensor, "dim steps"]:
    """The values of each dimension from 0.25 below to 0.25 above the pose's, for `sweep`."""
    return poses[label].unsqueeze(1) + torch.linspace(-SABOUR_RANGE, SABOUR_RANGE, steps, device=poses.device)


def across(ranges: Float[Tensor, "2 dim"], steps: int = 11) -> Float[Tensor, "dim steps"]:
    """The values of each dimension over the range that was seen, for `sweep`."""
    shares = torch.linspace(0, 1, steps, device=ranges.device)
    return ranges[0].unsqueeze(1) + (ranges[1] - ranges[0]).unsqueeze(1) * shares


def sweep_figure(images: Float[Tensor, "dim steps channels height width"], values: Tensor, title: str) -> "Figure":
    """Draw a sweep: a row for each dimension, with the range of its values."""
    rows = {
        f"{dim + 1}: {low:.2f} to {high:.2f}": row.permute(0, 2, 3, 1).float().cpu().numpy()
        for dim, (row, low, high) in enumerate(
            zip(images, values.amin(dim=1).tolist(), values.amax(dim=1).tolist(), strict=True)
        )
    }
    steps = images.shape[1]
    return image_rows(rows, ["low", *[""] * (steps - 2), "high"], title)
