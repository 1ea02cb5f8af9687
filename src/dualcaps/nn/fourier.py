"""Convolutions with large filters and a stride through the discrete Fourier transform.

A convolution of stride s is the sum of s x s convolutions of stride 1, of every s-th row and column of the images with
every s-th of the filter. Their transforms are small: a product of matrices each, and then one for each frequency. The
second convolution of Sabour et al. 2017 takes a fifth of the direct sum's multiplications in this way.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SMALLEST_FILTER = 7  # rows and columns
_FEWEST_CHANNELS = 64  # on either side
_FEWEST_IMAGES = 32  # the filters are transformed for each batch
_LARGEST_TRANSFORM = 400  # positions; its cost grows with their square


def takes(layer: nn.Conv2d, input: Float[Tensor, "batch inputs height width"]) -> bool:
    """Whether a convolution of these images is faster by `conv2d`, in float32 on the CPU."""
    kernel, stride = layer.kernel_size, layer.stride
    if (
        kernel[0] != kernel[1]
        or kernel[0] < _SMALLEST_FILTER
        or stride[0] != stride[1]
        or stride[0] == 1
        or min(layer.in_channels, layer.out_channels) < _FEWEST_CHANNELS
        or (layer.padding, layer.dilation, layer.groups) != ((0, 0), (1, 1), 1)
        or len(input) < _FEWEST_IMAGES
        or min(input.shape[2:]) < kernel[0]
    ):
        return False
    rows, columns = (_phase(side, kernel[0], stride[0]) for side in input.shape[2:])
    return rows * columns <= _LARGEST_TRANSFORM


def conv2d(
    input: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs kernel kernel"],
    bias: Float[Tensor, "outputs"] | None,
    stride: int,
) -> Float[Tensor, "batch outputs rows columns"]:
    """As `torch.nn.functional.conv2d` without padding, differentiable; the result lies channels last."""
    batch, inputs, height, width = input.shape
    outputs, kernel = len(weight), weight.shape[2]
    out = [(side - kernel) // stride + 1 for side in (height, width)]
    rows, columns = (_phase(side, kernel, stride) for side in (height, width))
    taps = math.ceil(kernel / stride)
    below, right = stride * rows - height, stride * columns - width
    images = nn.functional.pad(input, (0, right, 0, below)).permute(0, 2, 3, 1)
    images = images.reshape(batch, rows, stride, columns, stride, inputs).permute(1, 3, 0, 2, 4, 5)
    filters = nn.functional.pad(weight, (0, stride * taps - kernel) * 2)
    filters = filters.reshape(outputs, inputs, taps, stride, taps, stride).permute(2, 4, 3, 5, 1, 0)

    phases = stride**2 * inputs
    transform = _transform(rows, columns, rows, columns).to(input)
    real, imaginary = (transform @ images.reshape(rows * columns, -1)).view(2, -1, batch, phases).unbind()
    transform = _transform(rows, columns, taps, taps).to(input)
    filter_real, filter_imaginary = (transform @ filters.reshape(taps**2, -1)).view(2, -1, phases, outputs).unbind()
    # Networks correlate: the product with the conjugate of the filters' transform.
    product = torch.cat(
        [
            torch.baddbmm(torch.bmm(real, filter_real), imaginary, filter_imaginary),
            torch.baddbmm(torch.bmm(imaginary, filter_real), real, filter_imaginary, alpha=-1),
        ]
    )
    found = _inverse(rows, columns, *out).to(input) @ product.view(len(product), -1)
    found = found.view(*out, batch, outputs).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
    return found if bias is None else found + bias[:, None, None]


def _phase(side: int, kernel: int, stride: int) -> int:
    """Rows, or columns, of a phase of the images: as many as the outputs and the phase of a filter need."""
    return (side - kernel) // stride + math.ceil(kernel / stride)


def _angles(rows: int, columns: int, used_rows: int, used_columns: int) -> Float[Tensor, "frequencies positions"]:
    """The angle of each frequency of real images of `rows` x `columns` at each position of their first corner."""
    vertical = torch.outer(_numbers(rows), _numbers(used_rows)) / rows
    horizontal = torch.outer(_numbers(columns // 2 + 1), _numbers(used_columns)) / columns
    angles = vertical[:, None, :, None] + horizontal[None, :, None, :]
    return 2 * math.pi * angles.flatten(2).flatten(0, 1)


def _numbers(count: int) -> Float[Tensor, "count"]:
    return torch.arange(count, dtype=torch.float64)


def _transform(rows: int, columns: int, used_rows: int, used_columns: int) -> Float[Tensor, "double positions"]:
    """The matrix of the transform of images that are zero outside their first corner: real above imaginary parts."""
    angles = _angles(rows, columns, used_rows, used_columns)
    return torch.cat([angles.cos(), -angles.sin()])


def _inverse(rows: int, columns: int, used_rows: int, used_columns: int) -> Float[Tensor, "positions double"]:
    """The matrix that gives the first corner of real images from real and imaginary parts of their transform."""
    angles = _angles(rows, columns, used_rows, used_columns).T
    frequencies = _numbers(columns // 2 + 1)
    # All but the first, and of an even number of columns the last, stand for their conjugates too.
    weights = torch.where((frequencies == 0) | (2 * frequencies == columns), 1.0, 2.0)
    weights = weights.double().repeat(rows) / (rows * columns)
    return torch.cat([weights * angles.cos(), -weights * angles.sin()], dim=1)
