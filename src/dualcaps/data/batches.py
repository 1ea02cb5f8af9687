"""Batches: uint8 images stay on the device; each batch is picked, augmented and scaled there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Labelled images of one part of a data set (training, validation or test).

    Attributes:
        images: channels first, 0 to 255.
        labels: class numbers, int64.
    """

    images: UInt8[Tensor, "count channels height width"]
    labels: Int[Tensor, "count"]

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        return f"Part({len(self):,} images, {height}x{width}x{channels})"

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: "Part") -> "Part":
        return Part(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))

    def to(self, device: torch.device) -> "Part":
        """The same images on a device."""
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn for each image.

    Attributes:
        shift: the farthest move on both axes, as a part of the side, in whole pixels; what
            moves in repeats the nearest edge.
        flip: mirror left and right half of the time.
    """

    shift: float = 0.1
    flip: bool = False


def augment(
    images: UInt8[Tensor, "batch channels height width"], how: Augmentation, generator: torch.Generator
) -> UInt8[Tensor, "batch channels height width"]:
    """Move and mirror each image by its own draw, all in one gather.

    `generator` must be on the images' device.
    """
    batch, channels, height, width = images.shape

    def positions(size: int) -> Int[Tensor, "batch size"]:
        most = int(how.shift * size)
        moves = torch.randint(-most, most + 1, (batch, 1), generator=generator, device=images.device)
        return (torch.arange(size, device=images.device) - moves).clamp_(0, size - 1)

    rows, columns = positions(height), positions(width)
    if how.flip:
        mirrored = torch.rand((batch, 1), generator=generator, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


def training_batches(
    part: Part, batch_size: int, augmentation: Augmentation | None, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int[Tensor, "batch"]]]:
    """One epoch in random order, images as floats in [0, 1] with channels last in memory.

    The last batch holds what is left. `generator` must be on the part's device.
    """
    order = torch.randperm(len(part), generator=generator, device=part.labels.device)
    for chosen in order.split(batch_size):
        images = part.images[chosen]
        if augmentation:
            images = augment(images, augmentation, generator)
        yield to_float(images), part.labels[chosen]


def to_float(
    images: UInt8[Tensor, "batch channels height width"], number_type: torch.dtype = torch.float32
) -> Float[Tensor, "batch channels height width"]:
    """Scale 0 to 255 to [0, 1], channels last in memory.

    bfloat16 holds 0 to 255 exactly, so that only the quotient is rounded.
    """
    return images.to(number_type, memory_format=torch.channels_last).div_(255)
