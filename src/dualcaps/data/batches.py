"""Batches of uint8 images, augmented on the device that is trained on."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from dualcaps.data.augment import Augmentation, Overlap, augment, mix_up, overlap
from dualcaps.data.dataset import ImageSplit

_AHEAD = 2  # batches


class Batch(NamedTuple):
    """A batch of training images.

    images: uint8 [B, C, H, W]; with mixup, floats in [0, 1].
    labels: class numbers [B]; with mixup or overlap, soft labels [B, classes] in [0, 1].
    overlap: with overlap, the two images that each consists of.
    """

    images: Tensor
    labels: Tensor
    overlap: Overlap | None = None


def training_batches(
    split: ImageSplit,
    batch_size: int,
    augmentation: Augmentation | None,
    generator: torch.Generator,
    num_classes: int | None = None,
    *,
    done: int = 0,
    state: Tensor | None = None,
) -> Iterator[Batch]:
    """Iterate over one epoch in random order; the last batch may be smaller.

    Images on another device than the generator's are copied there batch by batch, selected ahead by a thread.

    Args:
        split: the training images.
        batch_size: images in a batch.
        augmentation: random changes of the images, or None.
        generator: of random numbers, on the device that is trained on.
        num_classes: number of classes, needed for mixup and overlap.
        done: how many batches of the epoch to leave out, as a training that is resumed has seen them.
        state: the generator's state after these batches.
    """
    chosen = batch_order(len(split), batch_size, generator)[done:]
    if state is not None:
        generator.set_state(state)
    here = split.labels.device.type == generator.device.type
    selected = (_select(split, part) for part in chosen) if here else _copy_ahead(split, chosen, generator.device)
    for images, labels in selected:
        if augmentation:
            images = augment(images, augmentation, generator)
            if augmentation.mixup:
                assert num_classes is not None
                floats = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
                yield Batch(*mix_up(floats, labels, num_classes, generator))
                continue
            if augmentation.overlap:
                assert num_classes is not None
                yield Batch(*overlap(images, labels, num_classes, generator))
                continue
        yield Batch(images, labels)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's random numbers, which depend on nothing else, so that a resumed epoch repeats them."""
    return seed * 1_000_003 + epoch


def batch_order(count: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The images of each batch of an epoch, by their places in the split; the first that an epoch draws."""
    return torch.randperm(count, generator=generator, device=generator.device).split(batch_size)


def _select(split: ImageSplit, chosen: Tensor) -> tuple[Tensor, Tensor]:
    return split.images[chosen], split.labels[chosen]


def _copy_ahead(split: ImageSplit, chosen: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on a device, of images that are not on it."""
    pin = device.type == "cuda"

    def select(part: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = _select(split, part.to(split.labels.device))
        return (images.pin_memory(), labels.pin_memory()) if pin else (images, labels)

    waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for part in chosen:
            waiting.append(reader.submit(select, part))
            if len(waiting) > _AHEAD:
                yield _to(device, *waiting.popleft().result())
        while waiting:
            yield _to(device, *waiting.popleft().result())


def _to(device: torch.device, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
