"""Batches of uint8 images, augmented on the device that is trained on."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from dualcaps.data import shards
from dualcaps.data.augment import Augmentation, Overlap, augment, mix_up, overlap
from dualcaps.data.dataset import ImageSplit

_AHEAD = 2  # batches


class Batch(NamedTuple):
    """A batch of training images, or a process's share of it.

    images: uint8 [B, C, H, W]; with mixup, floats in [0, 1].
    labels: class numbers [B]; with mixup or overlap, soft labels [B, classes] in [0, 1].
    overlap: with overlap, the two images that each consists of.
    size: images of the whole batch.
    """

    images: Tensor
    labels: Tensor
    overlap: Overlap | None
    size: int


def training_batches(
    split: ImageSplit,
    batch_size: int,
    augmentation: Augmentation | None,
    generator: torch.Generator,
    num_classes: int | None = None,
    *,
    done: int = 0,
    state: Tensor | None = None,
    share: Callable[[int], slice] | None = None,
) -> Iterator[Batch]:
    """Iterate over one epoch in random order; the last batch may be smaller.

    Images on another device than the generator's are copied there batch by batch, selected ahead by a thread. Those of
    a packed data set are read from its file, see `dualcaps.data.shards`.

    Args:
        split: the training images.
        batch_size: images in a batch.
        augmentation: random changes of the images, or None.
        generator: of random numbers, on the device that is trained on.
        num_classes: number of classes, needed for mixup and overlap.
        done: how many batches of the epoch to leave out, as a training that is resumed has seen them.
        state: the generator's state after these batches.
        share: which images of a batch of so many this process takes; by default all. Mixup and overlap combine the
            images of the whole batch first.
    """
    together = augmentation is not None and (augmentation.mixup or augmentation.overlap)
    own = share if share is not None and not together else _all
    selected = _selected(split, batch_size, generator, done, own)
    if state is not None:
        generator.set_state(state)
    if split.labels.device.type != generator.device.type:
        selected = _copied_ahead(selected, generator.device)
    for images, labels, count in selected:
        if augmentation is None:
            yield Batch(images, labels, None, count)
            continue
        images = augment(images, augmentation, generator, count=count, own=own(count))
        if not together:
            yield Batch(images, labels, None, count)
            continue
        assert num_classes is not None
        both = None
        if augmentation.mixup:
            floats = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
            images, labels = mix_up(floats, labels, num_classes, generator)
        else:
            images, labels, both = overlap(images, labels, num_classes, generator)
        mine = _all(count) if share is None else share(count)
        yield Batch(images[mine], labels[mine], both and Overlap(both.images[mine], both.labels[mine]), count)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's random numbers, which depend on nothing else, so that a resumed epoch repeats them."""
    return seed * 1_000_003 + epoch


def places_of_batch(split: ImageSplit, batch_size: int, generator: torch.Generator, number: int) -> list[int]:
    """Which images of a split batch `number` of an epoch holds, counted from 0.

    Args:
        split: the training images.
        batch_size: images in a batch.
        generator: as at the start of the epoch.
        number: of the batch.
    """
    if split.shards is None:
        return _order(split, generator).split(batch_size)[number].tolist()
    return shards.places_of_batch(split.shards.shards, batch_size, _drawn_seed(generator), number)


def _order(split: ImageSplit, generator: torch.Generator) -> Tensor:
    """The order of an epoch, which is the first that it draws."""
    return torch.randperm(len(split), generator=generator, device=generator.device)


def _drawn_seed(generator: torch.Generator) -> int:
    """The seed of the order of packed images, which is the first that an epoch draws."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def _all(count: int) -> slice:
    return slice(0, count)


def _selected(
    split: ImageSplit, batch_size: int, generator: torch.Generator, done: int, own: Callable[[int], slice]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The process's images and labels of each batch, where they are, and the number of images of the whole batch.

    The order is drawn at once, not when the first batch is asked for.
    """
    if split.shards is not None:
        return shards.batches(split.shards, split.labels, batch_size, _drawn_seed(generator), done, own)
    chosen = _order(split, generator).split(batch_size)[done:]

    def select(places: Tensor) -> tuple[Tensor, Tensor, int]:
        mine = places[own(len(places))].to(split.labels.device)
        return split.images[mine], split.labels[mine], len(places)

    return map(select, chosen)


def _copied_ahead(
    selected: Iterator[tuple[Tensor, Tensor, int]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The same on another device, selected ahead by a thread."""
    pin = device.type == "cuda"

    def select() -> tuple[Tensor, Tensor, int] | None:
        following = next(selected, None)
        if following is None or not pin:
            return following
        images, labels, count = following
        return images.pin_memory(), labels.pin_memory(), count

    waiting: deque[Future[tuple[Tensor, Tensor, int] | None]] = deque()
    with ThreadPoolExecutor(1) as reader:
        waiting.extend(reader.submit(select) for _ in range(_AHEAD))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(select))
            images, labels, count = found
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True), count
