"""Convolutions through Fourier transforms: the same numbers as the direct sum, forward and backward."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dualcaps import create_model
from dualcaps.nn import Conv2d, fourier


@given(
    images=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    more=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    with_bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_direct_sum(
    images: int, inputs: int, outputs: int, kernel: int, stride: int, more: tuple[int, int], with_bias: bool
):
    generator = torch.Generator().manual_seed(0)
    shapes = ((images, inputs, kernel + more[0], kernel + more[1]), (outputs, inputs, kernel, kernel), (outputs,))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    if not with_bias:
        leaves.pop()
    input, weight, bias = leaves if with_bias else (*leaves, None)
    expected = nn.functional.conv2d(input, weight, bias, stride=stride)
    found = fourier.conv2d(input, weight, bias, stride)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_the_rounding_in_float32_is_that_of_the_direct_sum():
    layer, images = large_filters(), torch.rand(32, 64, 16, 16)
    assert fourier.takes(layer, images)
    exact = nn.functional.conv2d(images.double(), layer.weight.double(), stride=2)
    direct = nn.functional.conv2d(images, layer.weight, stride=2)
    assert error(layer(images), exact) < 2 * error(direct, exact)
    assert not torch.equal(layer(images), direct)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ({"kernel_size": 5}, (32, 64, 16, 16)),
        ({"kernel_size": (9, 7)}, (32, 64, 16, 16)),
        ({"stride": 1}, (32, 64, 16, 16)),
        ({"stride": (2, 1)}, (32, 64, 16, 16)),
        ({"padding": 4}, (32, 64, 16, 16)),
        ({"padding": "valid"}, (32, 64, 16, 16)),
        ({"dilation": 2}, (32, 64, 24, 24)),
        ({"groups": 2}, (32, 64, 16, 16)),
        ({"in_channels": 32}, (32, 32, 16, 16)),
        ({"out_channels": 32}, (32, 64, 16, 16)),
        ({}, (31, 64, 16, 16)),
        ({}, (32, 64, 60, 60)),
    ],
)
def test_other_convolutions_are_left_to_torch(layer: dict[str, object], shape: tuple[int, ...]):
    convolution, images = large_filters(**layer), torch.rand(shape)
    expected = nn.Conv2d.forward(convolution, images)
    torch.testing.assert_close(convolution(images), expected, atol=0, rtol=0)


def test_other_number_types_are_left_to_torch():
    layer, images = large_filters().double(), torch.rand(32, 64, 16, 16)
    torch.testing.assert_close(layer(images.double()), nn.Conv2d.forward(layer, images.double()), atol=0, rtol=0)
    layer = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(images), nn.Conv2d.forward(layer, images), atol=0, rtol=0)


def test_images_smaller_than_the_filters_are_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        large_filters()(torch.rand(32, 64, 8, 16))


def test_the_network_of_sabour_et_al_computes_with_them():
    model = create_model("sabour-capsnet", (1, 20, 20), decoder=False).eval()
    (layer,) = (part for part in model.trunk.modules() if isinstance(part, Conv2d) and part.stride == (2, 2))
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(32, 1, 20, 20)
    together = model(images).lengths
    assert fourier.takes(layer, seen[0])
    alone = torch.cat([model(images[:16]).lengths, model(images[16:]).lengths])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)


def large_filters(**changed: object) -> Conv2d:
    """A convolution like the second one of Sabour et al."""
    torch.manual_seed(0)
    options = {"in_channels": 64, "out_channels": 64, "kernel_size": 9, "stride": 2, "bias": False, **changed}
    layer = Conv2d(**options)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
    return layer


def error(found: Tensor, exact: Tensor) -> float:
    """The root of the mean squared difference."""
    return (found.detach() - exact.detach()).square().mean().sqrt().item()
