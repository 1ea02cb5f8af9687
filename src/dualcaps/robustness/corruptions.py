"""Corruptions of images, each in five severities.

Kinds and strengths are those of MNIST-C and of its larger set (Mu & Gilmer 2019, arXiv:1906.02337, after Hendrycks &
Dietterich 2019), lengths in pixels in proportion to the 28 pixels of MNIST. Differs: all values are computed on whole
batches, colour images keep their colours, a motion blur is a straight line of Gaussian weights, and stripes and
zigzags, which have one strength there, have five.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from dualcaps.errors import ConfigError, unknown_name

SEVERITIES = (1, 2, 3, 4, 5)

_REFERENCE_SIDE = 28
_Images = Float[Tensor, "batch channels height width"]
_Corruption = Callable[[_Images, int, torch.Generator], _Images]


def corrupt(
    images: UInt8[Tensor, "batch channels height width"], name: str, severity: int, generator: torch.Generator
) -> UInt8[Tensor, "batch channels height width"]:
    """Corrupt each image by its own draw.

    Args:
        images: 0 to 255, on the CPU.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: of random numbers, on the CPU.

    Raises:
        ConfigError: an unknown name or severity.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(unknown_name("corruption", name, CORRUPTIONS))
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be from 1 to 5, got {severity}")
    changed = CORRUPTIONS[name](images.float() / 255, severity - 1, generator)
    return (255 * changed).round_().clamp_(0, 255).to(torch.uint8)


def _gaussian_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    return images + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    photons = (60, 25, 12, 5, 3)[level]
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    draw = torch.rand(images.shape, generator=generator)
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, images))


def _gaussian_blur(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    return _blurred(images, (1, 2, 3, 4, 6)[level] * _pixel(images))


def _motion_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Weights of a Gaussian along a line in a random direction, up to 45 degrees from horizontal, to one side."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle = (torch.rand(len(images), generator=generator) - 0.5) * (math.pi / 2)
    places = torch.arange(radius + 1) * _pixel(images)
    weights = torch.exp(-(places.square()) / (2 * (sigma * _pixel(images)) ** 2))
    weights = weights / weights.sum()
    height, width = images.shape[2:]
    blurred = torch.zeros_like(images)
    for place, weight in zip(places, weights, strict=True):
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1
        theta[:, 0, 2], theta[:, 1, 2] = 2 * place * angle.cos() / width, 2 * place * angle.sin() / height
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        blurred += weight * functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return blurred


def _brightness(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    return images + (0.1, 0.2, 0.3, 0.4, 0.5)[level]


def _contrast(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (images - mean)


def _pixelate(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = images.shape[2:]
    smaller = functional.adaptive_avg_pool2d(images, (max(1, int(height * share)), max(1, int(width * share))))
    return functional.interpolate(smaller, (height, width), mode="nearest-exact")


def _jpeg(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    quality = (25, 18, 15, 10, 7)[level]
    pixels = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if pixels.shape[-1] == 3:
        read = [_through_jpeg(image, quality) for image in pixels]
    else:
        read = [
            np.stack([_through_jpeg(plane, quality) for plane in np.moveaxis(image, -1, 0)], -1) for image in pixels
        ]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float() / 255


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


def _spatter(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Drops of mud, of a quarter of the brightest value."""
    mean, deviation, blur, threshold, edge = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[level]
    count, _, height, width = images.shape
    liquid = mean + deviation * torch.randn((count, 1, height, width), generator=generator)
    drops = (_blurred(liquid, blur * _pixel(images)) > threshold).float()
    drops = _blurred(drops, edge * _pixel(images))
    drops = torch.where(drops < 0.8, 0.0, drops)
    return images * (1 - drops) + 63 / 255 * drops


def _stripe(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    """Both sides inverted, each to 2/28 to 10/28 of the width; MNIST-C's 7/28 lies between the third and fourth."""
    wide = round((2, 4, 6, 8, 10)[level] * images.shape[3] / _REFERENCE_SIDE)
    changed = images.clone()
    changed[..., :wide] = 1 - changed[..., :wide]
    changed[..., images.shape[3] - wide :] = 1 - changed[..., images.shape[3] - wide :]
    return changed


def _zigzag(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """White zigzag lines from side to side: one to five of them."""
    changed = images
    for _ in range(level + 1):
        changed = changed + _zigzag_line(images, generator)
    return changed.clamp(max=1)


def _zigzag_line(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    pixel = _pixel(images)
    start = torch.rand((count, 1, 1, 1), generator=generator) * height
    slope = (torch.rand((count, 1, 1, 1), generator=generator) - 0.5) * 10 * pixel / width
    columns, rows = torch.arange(width).view(1, 1, 1, -1), torch.arange(height).view(1, 1, -1, 1)
    phase = columns / (4 * pixel) % 2
    wave = 2 * pixel * (1 - 2 * (phase - 1).abs())
    distance = (rows - (start + slope * columns + wave)).abs() / pixel
    return (1 + torch.log1p(-(distance / 2.3).clamp(max=1 - 1e-6))).clamp(0, 1)


def _pixel(images: Tensor) -> float:
    """The length that is one pixel of MNIST, in pixels of these images."""
    return max(images.shape[2:]) / _REFERENCE_SIDE


def _blurred(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "gaussian blur": _gaussian_blur,
    "motion blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "spatter": _spatter,
    "stripe": _stripe,
    "zigzag": _zigzag,
}
