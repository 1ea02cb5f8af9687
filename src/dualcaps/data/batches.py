"""Batches of uint8 images that stay on the device, where each batch is selected and augmented."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dualcaps.data.augment import Augmentation, augment, mix_up
from dualcaps.data.dataset import ImageSplit


def training_batches(
    split: ImageSplit,
    batch_size: int,
    augmentation: Augmentation | None,
    generator: torch.Generator,
    num_classes: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over one epoch in random order; the last batch may be smaller.

    Args:
        split: the training images.
        batch_size: images in a batch.
        augmentation: random changes of the images, or None.
        generator: of random numbers, on the split's device.
        num_classes: number of classes, needed for mixup.

    Yields:
        Images uint8 [B, C, H, W] and class numbers [B]; with mixup, floats in [0, 1] and soft labels
        [B, classes].
    """
    order = torch.randperm(len(split), generator=generator, device=split.labels.device)
    for chosen in order.split(batch_size):
        images, labels = split.images[chosen], split.labels[chosen]
        if augmentation:
            images = augment(images, augmentation, generator)
            if augmentation.mixup:
                assert num_classes is not None
                floats = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
                yield mix_up(floats, labels, num_classes, generator)
                continue
        yield images, labels
