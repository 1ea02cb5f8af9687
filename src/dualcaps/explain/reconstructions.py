"""Reconstructions of images from the pose of their predicted class."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualcaps.data.dataset import ImageSplit
from dualcaps.inference import run_batches
from dualcaps.models import CapsOutput, Network
from dualcaps.plots import image_rows, image_strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reconstruction_figure(model: Network, split: ImageSplit, *, most: int = 10) -> "Figure":
    """Images above their reconstructions from the predicted class's pose.

    Args:
        model: a network with a decoder.
        split: where the images are taken from: the first of each class, in the order of the classes.
        most: how many classes to show; where there are more, they are spread evenly and the title says how many.

    Raises:
        ModelError: the network has no decoder.
    """
    chosen = _first_of_each_class(split, most)
    images, output, reconstructions = _reconstruct(model, split.images[chosen])
    predicted = output.lengths.argmax(dim=1).tolist()
    titles = [
        model.classes[truth] if truth == guess else f"{model.classes[truth]}\n(predicted {model.classes[guess]})"
        for truth, guess in zip(split.labels[chosen].tolist(), predicted, strict=True)
    ]
    rows = {"input": images, "reconstruction": reconstructions}
    present = len(split.labels.unique())
    title = f"{len(chosen)} of {present} classes" if present > len(chosen) else ""
    return image_rows({name: _channels_last(row) for name, row in rows.items()}, titles, title)


def reconstruction_strips(model: Network, split: ImageSplit, *, most: int = 10) -> tuple[bytes, bytes]:
    """Images and their reconstructions, as two PNG files with the images side by side, pixel for pixel.

    Raises:
        ModelError: the network has no decoder.
    """
    images, _, reconstructions = _reconstruct(model, split.images[_first_of_each_class(split, most)])
    return image_strip(_channels_last(images)), image_strip(_channels_last(reconstructions))


@torch.inference_mode()
def reconstruction_error(model: Network, split: ImageSplit) -> float:
    """The mean squared difference between images and their reconstructions from the predicted class's pose.

    Over all values of all images, both in [0, 1].

    Raises:
        ModelError: the network has no decoder.
    """
    total = 0.0
    for piece in split.pieces():
        for images, output in run_batches(model, piece):
            difference = model.reconstruct(output.poses) - images
            total += difference.square().sum(dtype=torch.float64).item()
    return total / split.images.numel()


def _first_of_each_class(split: ImageSplit, most: int) -> list[int]:
    present = split.labels.unique()
    if len(present) > most:
        present = present[torch.linspace(0, len(present) - 1, most).round().long()]
    return [int(torch.nonzero(split.labels == label)[0]) for label in present]


@torch.inference_mode()
def _reconstruct(model: Network, images: Tensor) -> tuple[Tensor, CapsOutput, Tensor]:
    (inputs, output), *_ = run_batches(model, images, batch_size=len(images))
    return inputs, CapsOutput(output.lengths, output.poses), model.reconstruct(output.poses).float()


def _channels_last(images: Tensor):
    return images.permute(0, 2, 3, 1).float().cpu().numpy()
