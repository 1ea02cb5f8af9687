"""A residual trunk of the ResNet-9 and airbench family, whose parameters do not grow with the images."""

import math
from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.config import Gate, ModelConfig
from dualcaps.errors import ModelError
from dualcaps.nn.attention import ConvAttention
from dualcaps.nn.layers import Conv2d, MaxPool2d
from dualcaps.registry import register_trunk

_LARGEST_UNREDUCED = 48  # pixels a side; each octave above it is taken by one strided convolution
_WHITENING_PATCHES = 500_000
_WHITENING_EPSILON = 1e-3  # of the variance of patches of pixels in [0, 1]
_LEAST_VARIANCE = 1e-7  # of the largest; rounding to 8 bits alone gives more


@register_trunk("residual")
def residual_trunk(config: ModelConfig, grid: int = 2) -> "ResidualTrunk":
    """Whitening convolution, three residual groups of `width`, 4 `width` and 4 `width` channels, pooled to a grid.

    See `ResidualTrunk`. With `conv_attention`, Conv-Attention follows the first and the second group; the network
    applies it to the third.
    """
    if not isinstance(grid, int) or grid < 1:
        raise ModelError(f"grid must be a whole number of at least 1, got {grid!r}")
    return ResidualTrunk(config.image_shape, config.width, grid, config.gate if config.conv_attention else None)


class ResidualTrunk(nn.Sequential):
    """A residual convolutional network that ends in a grid of fixed size.

    Layers: a frozen whitening convolution (Page 2018; Jordan 2024, arXiv:2404.00498); one strided convolution for
    each octave that the smaller side exceeds 48 pixels; three groups, each a convolution, a 2x2 max pool and
    a residual block of two convolutions; an adaptive max pool to `grid` x `grid`. Each convolution is followed by
    BatchNorm and GELU, the whitening by GELU alone. Differs from airbench96 by the strided convolutions, the residual
    block of two convolutions and BatchNorm's own scale.

    Args:
        image_shape: channels, height and width of the images.
        width: channels of the first group; the other two have four times as many.
        grid: rows and columns of the feature map.
        gate: the gate of the Conv-Attention after the first two groups, or None for groups without it.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, grid: int, gate: Gate | None) -> None:
        channels, *sides = image_shape
        whitening = Whitening(channels, kernel=2 if channels > 1 else 3)
        filters = whitening.out_channels
        layers: OrderedDict[str, nn.Module] = OrderedDict(whitening=whitening, gelu=ElementWise(nn.GELU()))
        octaves = max(0, math.ceil(math.log2(min(sides) / _LARGEST_UNREDUCED)))
        for octave in range(octaves):
            layers[f"reduction{octave + 1}"] = nn.Sequential(_conv(filters, filters, stride=2), _norm_gelu(filters))
        widths = (filters, width, 4 * width, 4 * width)
        for number in (1, 2, 3):
            layers[f"group{number}"] = ResidualGroup(widths[number - 1], widths[number])
            if gate is not None and number < 3:
                layers[f"attention{number}"] = ElementWise(ConvAttention(widths[number], gate))
        layers["pool"] = nn.AdaptiveMaxPool2d(grid)
        super().__init__(layers)

    def initialise_from_data(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """Set the whitening filters from images, values in [0, 1], unless they are set already."""
        whitening = self[0]
        assert isinstance(whitening, Whitening)
        if not whitening.fitted:
            whitening.fit(images)


class Whitening(nn.Conv2d):
    """A convolution with fixed filters: the principal components of image patches, scaled to variance 1.

    Each component appears with both signs, as the activation that follows is not symmetric. In place of components
    without variance, which grey images stored in colour have, the others are repeated: the constant features of the
    former would make each BatchNorm multiply the gradient by hundreds. Until `fit` is called the filters are a random
    orthogonal basis of the patches. The bias is trained.

    Args:
        channels: of the images.
        kernel: rows and columns of a patch.

    Attributes:
        fitted: whether the filters were taken from images; part of the weights.
    """

    fitted: Tensor

    def __init__(self, channels: int, kernel: int) -> None:
        size = channels * kernel**2
        super().__init__(channels, 2 * size, kernel)
        self.register_buffer("fitted", torch.tensor(False))
        self.weight.requires_grad_(False)
        if not self.weight.is_meta:
            self._set(nn.init.orthogonal_(torch.empty(size, size)), torch.zeros(size))

    def fit(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """Take the filters, and the bias that centres their outputs, from the patches of images in [0, 1]."""
        kernel = self.kernel_size[0]
        patches = nn.functional.unfold(images.float(), kernel).transpose(1, 2).flatten(0, 1)
        patches = patches[:: math.ceil(len(patches) / _WHITENING_PATCHES)].double()
        mean = patches.mean(dim=0)
        variances, components = torch.linalg.eigh((patches - mean).T.cov())
        filters = (components.T / (variances.clamp_min(0)[:, None] + _WHITENING_EPSILON).sqrt()).flip(0)
        varied = int((variances > _LEAST_VARIANCE * variances[-1]).sum())
        if varied:
            filters = filters[torch.arange(len(filters)) % varied]
        self._set(filters, -(filters @ mean))
        self.fitted.fill_(True)

    @torch.no_grad()
    def _set(self, filters: Tensor, bias: Tensor) -> None:
        assert self.bias is not None
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        self.bias.copy_(torch.cat([bias, -bias]))


class ResidualGroup(nn.Module):
    """A convolution, a max pool and a residual block of two convolutions; each with BatchNorm and GELU.

    An odd side is pooled to the larger half, so that small images keep a position.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(_conv(inputs, outputs), MaxPool2d(ceil_mode=True), _norm_gelu(outputs))
        self.inner = nn.Sequential(_conv(outputs, outputs), _norm_gelu(outputs), _conv(outputs, outputs))
        self.norm = nn.BatchNorm2d(outputs)
        self.gelu = nn.GELU()

    def forward(self, input: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        """Run the layers; the result has half as many rows and columns, rounded up."""
        input = self.entry(input)
        inner = self.inner(input)
        return inner if input.device.type == "meta" else self.gelu(input + self.norm(inner))


class ElementWise(nn.Sequential):
    """Layers that keep the shape; skipped on the meta device, where they would import torch._dynamo for seconds."""

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Run the layers."""
        return input if input.device.type == "meta" else super().forward(input)


def _norm_gelu(channels: int) -> ElementWise:
    return ElementWise(nn.BatchNorm2d(channels), nn.GELU())


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution; its first filters pass their channel on (dirac), the others start at random."""
    layer = Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer
