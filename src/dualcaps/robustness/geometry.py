"""Rotated, shifted and affinely changed images."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dualcaps.data.augment import warp

_DEGREES, _SHEAR, _SCALE = 20.0, 0.2, (0.8, 1.2)  # affNIST's ranges


def rotate(images: UInt8[Tensor, "batch channels height width"], degrees: float) -> UInt8[Tensor, "..."]:
    """Rotate every second image to the left, the others to the right; edges are repeated."""
    angle = _alternating(len(images)) * math.radians(degrees)
    matrices = torch.zeros(len(images), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return warp(images, matrices.to(images.device))


def shift(images: UInt8[Tensor, "batch channels height width"], share: float) -> UInt8[Tensor, "..."]:
    """Move each image by a share of its sides, rounded to pixels, diagonally to one of the four corners in turn."""
    height, width = images.shape[2:]
    matrices = torch.zeros(len(images), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    matrices[:, 0, 2] = _alternating(len(images)) * round(share * width)
    matrices[:, 1, 2] = _alternating(len(images), 2) * round(share * height)
    return warp(images, matrices.to(images.device))


def affine(images: UInt8[Tensor, "batch channels height width"], generator: torch.Generator) -> UInt8[Tensor, "..."]:
    """Change each image as affNIST (Tieleman 2013, www.cs.toronto.edu/~tijmen/affNIST) does MNIST on 40x40 pixels.

    Rotation by up to 20 degrees, shear by up to 0.2, width and height times 0.8 to 1.2, and a translation, all drawn
    uniformly; the translation from those that leave everything that is not black inside. Differs from affNIST's images
    by the random numbers, by computing the room for the translation from the corners of the smallest box around the
    pixels that are not black, and by interpolating once. Where that box fills the image, nothing is moved.

    Args:
        images: 0 to 255, on a black background.
        generator: of random numbers, on the CPU.
    """
    batch, _, height, width = images.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    angle, shear = draw(-_DEGREES, _DEGREES) * (math.pi / 180), draw(-_SHEAR, _SHEAR)
    scale = torch.diag_embed(torch.stack([draw(*_SCALE), draw(*_SCALE)], dim=1))
    sheared = torch.eye(2).repeat(batch, 1, 1)
    sheared[:, 0, 1] = shear
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(batch, 2, 2)
    change = turned @ sheared @ scale
    corners = _corners(images.cpu()) @ change.mT
    half = torch.tensor([width / 2, height / 2])
    room_before, room_after = corners.amin(dim=1) + half, half - corners.amax(dim=1)
    share = torch.rand(batch, 2, generator=generator)
    moved = share * (room_before + room_after).clamp_min(0) - room_before
    moved = torch.where(room_before + room_after > 0, moved, torch.zeros(()))
    back = torch.linalg.inv(change)
    return warp(images, torch.cat([back, -back @ moved[:, :, None]], dim=2).to(images.device))


def _corners(images: Tensor) -> Float[Tensor, "batch 4 2"]:
    """The corners of the smallest box around the pixels that are not black: x and y from the image's centre."""
    seen = (images > 0).any(dim=1)
    height, width = seen.shape[1:]
    edges = []
    for found, size in ((seen.any(dim=1), width), (seen.any(dim=2), height)):
        first = found.int().argmax(dim=1)
        last = size - found.flip(1).int().argmax(dim=1)
        empty = ~found.any(dim=1)
        edges.append([torch.where(empty, size / 2, edge.float()) - size / 2 for edge in (first, last)])
    (left, right), (top, bottom) = edges
    pairs = ((left, top), (right, top), (left, bottom), (right, bottom))
    return torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1)


def _alternating(count: int, each: int = 1) -> Tensor:
    """1 and -1 in turn, each repeated."""
    return 1 - 2 * (torch.arange(count) // each % 2).float()
