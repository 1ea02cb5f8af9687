"""Augmentation: random changes of training images, each one batched operation on the device.

Every image is changed by its own draw. All operations take and return uint8 images but mixup, which blends
images and labels as floats. Mixup and overlap combine the images of a batch, the others change each alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from dualcaps.config import TestTimeAugmentation

_USUAL_SHIFT = 0.1
_CROP_SHARE = 1 / 8
_COPIED_BY_ROWS = 16_384  # values of an image from which on the loop over images is faster
_IMAGES_IN_CACHE = 4
_ROTATION_DEGREES = 15.0
_COLOUR_RANGE = 0.3
_ERASED_SHARE = (0.02, 0.2)
_ERASED_RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Augmentation:
    """Which random changes training images get.

    Attributes:
        shift: the farthest move on both axes, as a share of the side, in whole pixels; what moves in
            repeats the nearest edge.
        flip: mirror left and right half of the time.
        crop: a random window of the image's size after reflecting an eighth of each side.
        rotate: turn by up to 15 degrees to either side, edges repeated.
        colour: multiply brightness, contrast and, of colour images, saturation by 0.7 to 1.3.
        erase: replace a rectangle of 2 to 20 % of the area by noise, half of the time (Zhong et al. 2017).
        mixup: blend each image and label with another one's, the share uniform in [0, 1] (Zhang et al. 2018, alpha 1).
        overlap: put an image of another class on top of each, so that both classes are to be found, see `overlap`.
    """

    shift: float = 0.1
    flip: bool = False
    crop: bool = False
    rotate: bool = False
    colour: bool = False
    erase: bool = False
    mixup: bool = False
    overlap: bool = False


class Overlap(NamedTuple):
    """The two images that each image of a batch consists of, and their class numbers."""

    images: UInt8[Tensor, "batch 2 channels height width"]
    labels: Int[Tensor, "batch 2"]


def parse_augmentation(text: str, flip: bool) -> Augmentation | None:
    """The augmentation that `TrainConfig.augment` names; None for no change.

    Args:
        text: "paper-literal", "none", or "policy" and names of `dualcaps.config.AUGMENTATIONS` joined by commas;
            "shift=0.15" moves by up to that share of the side.
        flip: whether a mirrored image of this data set still belongs to its class, for "policy".
    """
    if text == "none":
        return None
    if text == "paper-literal":
        return Augmentation(flip=True)
    amounts: dict[str, str] = {}
    for part in text.split(","):
        name, _, amount = part.partition("=")
        amounts[name] = amount
    if "policy" in amounts:
        amounts = {"shift": "", **({"flip": ""} if flip else {}), **amounts}
    return Augmentation(
        shift=float(amounts["shift"] or _USUAL_SHIFT) if "shift" in amounts else 0.0,
        **{name: name in amounts for name in ("flip", "crop", "rotate", "colour", "erase", "mixup", "overlap")},
    )


@dataclass(frozen=True)
class _Draws:
    """Random numbers for a share of a batch, see `augment`."""

    generator: torch.Generator
    count: int
    own: slice

    def uniform(self, numbers: int = 1) -> Float[Tensor, "own numbers"]:
        """Numbers in [0, 1) for each image of the share."""
        return torch.rand((self.count, numbers), generator=self.generator, device=self.generator.device)[self.own]

    def integers(self, low: int, high: int) -> Int[Tensor, "own 1"]:
        """A whole number from `low` to below `high` for each image of the share."""
        drawn = torch.randint(low, high, (self.count, 1), generator=self.generator, device=self.generator.device)
        return drawn[self.own]


def augment(
    images: UInt8[Tensor, "own channels height width"],
    how: Augmentation,
    generator: torch.Generator,
    *,
    count: int | None = None,
    own: slice = slice(None),
) -> UInt8[Tensor, "own channels height width"]:
    """Change each image by its own draw; all but mixup and overlap, see `mix_up` and `overlap`.

    Args:
        images: 0 to 255: a batch, or a share of it.
        how: which changes.
        generator: of random numbers, on the images' device; those of the whole batch are drawn, so that the processes
            of a training stay in step and an image is changed in the same way whatever their number.
        count: images of the whole batch; by default as many as are given.
        own: the share.
    """
    draws = _Draws(generator, len(images) if count is None else count, own)
    if how.shift or how.flip:
        images = _shift_and_flip(images, how, draws)
    if how.crop:
        images = _crop(images, draws)
    if how.rotate:
        images = _in_pieces(_turned, images, draws.uniform()[:, 0] * 2 - 1)
    if how.colour:
        images = _in_pieces(_coloured, images, 1 + _COLOUR_RANGE * (draws.uniform(3) * 2 - 1))
    if how.erase:
        images = _erase(images, draws)
    return images


def mix_up(
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, "batch"],
    classes: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
    """Blend each image and its label with another of the batch.

    Args:
        images: values in [0, 1].
        labels: class numbers.
        classes: how many there are.
        generator: of random numbers, on the images' device.

    Returns:
        The blended images, and soft labels that sum to 1.
    """
    share = torch.rand(len(images), generator=generator, device=images.device)
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    one_hot = functional.one_hot(labels, classes).to(images.dtype)
    weight = share[:, None]
    pixels = weight[..., None, None]
    return images * pixels + images[partner] * (1 - pixels), one_hot * weight + one_hot[partner] * (1 - weight)


def overlap(
    images: UInt8[Tensor, "batch channels height width"],
    labels: Int[Tensor, "batch"],
    classes: int,
    generator: torch.Generator,
) -> tuple[UInt8[Tensor, "batch channels height width"], Float[Tensor, "batch classes"], Overlap]:
    """Put another image of the batch, of another class, on top of each: MultiMNIST (Sabour et al. 2017, Section 6).

    Values are added and cut off at 255. Differs by drawing the images anew in each epoch, and by leaving an image
    alone if all of its batch are of its class.

    Args:
        images: 0 to 255, on a black background; Sabour et al. move each by up to 4 of 36 pixels before.
        labels: class numbers.
        classes: how many there are.
        generator: of random numbers, on the images' device.

    Returns:
        The overlapping images, labels that are 1 for both classes, and the two images of each.
    """
    count = len(images)
    score = torch.rand((count, count), generator=generator, device=images.device)
    partner = score.masked_fill_(labels[:, None] == labels, -1).argmax(dim=1)
    other = labels[partner] != labels
    below, above = images, images[partner] * other[:, None, None, None]
    both = torch.stack([labels, torch.where(other, labels[partner], labels)], dim=1)
    merged = (below.to(torch.int16) + above).clamp_(max=255).to(torch.uint8)
    present = functional.one_hot(both, classes).amax(dim=1).to(torch.float32)
    return merged, present, Overlap(torch.stack([below, above], dim=1), both)


def test_time_views(name: TestTimeAugmentation) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
    """Changes of test images whose predictions are averaged, each with its weight; the weights sum to 1.

    The views of airbench (Jordan 2024, arXiv:2404.00498): "flip" is the image and its mirror image; "shift" the
    image, with half the weight, and two copies moved along the diagonals by a 32nd of the side, at least one pixel,
    edges reflected; "flip-shift" both. Differs by averaging lengths instead of logits.

    Args:
        name: "none", "flip", "shift" or "flip-shift"; `fit` replaces "policy" by one of them.
    """
    moved: list[tuple[float, Callable[[Tensor], Tensor]]] = [(1.0, lambda images: images)]
    if "shift" in name:
        moved = [(0.5, lambda images: images), (0.25, partial(_moved, sign=1)), (0.25, partial(_moved, sign=-1))]
    if "flip" not in name:
        return moved
    mirrored = [(weight, lambda images, move=move: move(images).flip(3)) for weight, move in moved]
    return [(weight / 2, move) for weight, move in [*moved, *mirrored]]


def _moved(images: Tensor, sign: int) -> Tensor:
    rows, columns = (
        _reflected(torch.arange(side, device=images.device) + sign * max(1, round(side / 32)), side)
        for side in images.shape[2:]
    )
    return images[:, :, rows][..., columns]


def _reflected(place: Tensor, size: int) -> Tensor:
    """Positions beyond the first or last of `size` pixels, reflected there."""
    return ((size - 1) - ((size - 1) - place.abs()).abs()).clamp_(min=0)


def _shift_and_flip(images: Tensor, how: Augmentation, draws: _Draws) -> Tensor:
    batch, _, height, width = images.shape

    def moves(size: int) -> Tensor:
        most = min(int(how.shift * size), size - 1)
        return draws.integers(-most, most + 1)

    down, right = moves(height), moves(width)
    mirrored = torch.zeros((batch, 1), dtype=torch.bool, device=images.device)
    if how.flip:
        mirrored = draws.uniform() < 0.5
    if images.device.type == "cpu" and images[0].numel() >= _COPIED_BY_ROWS:
        return _move_and_mirror(images, down.flatten().tolist(), right.flatten().tolist(), mirrored.flatten())
    rows, columns = (
        (torch.arange(size, device=images.device) - move).clamp_(0, size - 1)
        for size, move in ((height, down), (width, right))
    )
    return _gather(images, rows, torch.where(mirrored, columns.flip(1), columns))


def _move_and_mirror(images: Tensor, down: Sequence[int], right: Sequence[int], mirrored: Tensor) -> Tensor:
    """What `_gather` does for moves, by copying rows, which on the CPU is three times faster for large images."""
    height, width = images.shape[2:]
    moved = torch.empty_like(images)
    for target, source, y, x in zip(moved, images, down, right, strict=True):
        top, bottom, left, end = max(y, 0), height + min(y, 0), max(x, 0), width + min(x, 0)
        target[:, top:bottom, left:end] = source[:, top - y : bottom - y, left - x : end - x]
        target[:, top:bottom, :left] = target[:, top:bottom, left : left + 1]
        target[:, top:bottom, end:] = target[:, top:bottom, end - 1 : end]
        target[:, :top] = target[:, top : top + 1]
        target[:, bottom:] = target[:, bottom - 1 : bottom]
    moved[mirrored] = moved[mirrored].flip(3)
    return moved


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels at rows [batch, height] and columns [batch, width] of each image."""
    width = images.shape[3]
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    picked = images.flatten(2).gather(2, pixels.expand(-1, images.shape[1], -1))
    return picked.view(*images.shape[:2], rows.shape[1], columns.shape[1])


def _crop(images: Tensor, draws: _Draws) -> Tensor:
    def positions(size: int) -> Tensor:
        margin = max(1, round(size * _CROP_SHARE)) if size > 1 else 0
        start = draws.integers(-margin, margin + 1)
        return _reflected(torch.arange(size, device=images.device) + start, size)

    return _gather(images, positions(images.shape[2]), positions(images.shape[3]))


def _in_pieces(change: Callable[[Tensor, Tensor], Tensor], images: Tensor, draws: Tensor) -> Tensor:
    """Change a few large images at a time, whose floats stay in the processor's cache, by the draws of each."""
    if images.device.type != "cpu" or images[0].numel() < _COPIED_BY_ROWS:
        return change(images, draws)
    changed = torch.empty_like(images)
    for start in range(0, len(images), _IMAGES_IN_CACHE):
        piece = slice(start, start + _IMAGES_IN_CACHE)
        changed[piece] = change(images[piece], draws[piece])
    return changed


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    angle = turn * (_ROTATION_DEGREES * torch.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return warp(images, torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3))


def warp(
    images: UInt8[Tensor, "batch channels height width"], matrices: Float[Tensor, "batch 2 3"]
) -> UInt8[Tensor, "batch channels height width"]:
    """Affine change of each image, linearly interpolated; what comes into the picture repeats the nearest edge.

    Args:
        images: 0 to 255.
        matrices: where each pixel is taken from: x and y in pixels from the image's centre, to the right and down,
            from those of the result.
    """
    height, width = images.shape[2:]
    scale = matrices.new_tensor([[1, height / width, 2 / width], [width / height, 1, 2 / height]])
    grid = functional.affine_grid(matrices * scale, list(images.shape), align_corners=False)
    warped = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def _coloured(images: Tensor, factors: Tensor) -> Tensor:
    brightness, contrast, saturation = factors[..., None, None, None].unbind(1)
    changed = images.float() * brightness
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * contrast
    if images.shape[1] == 3:
        grey = (changed * changed.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        changed = grey + (changed - grey) * saturation
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _erase(images: Tensor, draws: _Draws) -> Tensor:
    height, width = images.shape[2:]

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * draws.uniform()[..., None, None]

    generator = draws.generator
    if len(images) < draws.count:  # processes erase different numbers of pixels and must stay in step
        generator = torch.Generator(images.device).manual_seed(int(draws.integers(0, 2**62)[0]))

    area = draw(*_ERASED_SHARE) * height * width
    ratio = draw(*(float(torch.tensor(bound).log()) for bound in _ERASED_RATIO)).exp()
    high, wide = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = draw(0.0, 1.0) * (height - high), draw(0.0, 1.0) * (width - wide)
    chosen = draw(0.0, 1.0) < 0.5
    if images.device.type == "cpu":  # noise for the rectangles alone is faster there
        images = images.clone()
        boxes = torch.cat([chosen, top, top + high, left, left + wide], dim=1).flatten(1).ceil().int().tolist()
        for image, (erased, start, end, first, last) in zip(images, boxes, strict=True):
            if erased:
                box = image[:, start:end, first:last]
                box.copy_(torch.randint(256, box.shape, generator=generator, dtype=torch.uint8))
        return images
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
    noise = torch.randint(256, images.shape, generator=generator, device=images.device, dtype=torch.uint8)
    return torch.where(inside & chosen, noise, images)
