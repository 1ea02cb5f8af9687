"""Layers used by several modules.

Weights are initialised Glorot-uniform and biases with zero, as in Keras 2.2.4.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from dualcaps import kernels
from dualcaps.nn import fourier


def glorot_conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | str = 0) -> nn.Conv2d:
    """A square 2-D convolution with bias, initialised as in Keras."""
    layer = Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Conv2d(nn.Conv2d):
    """A convolution that is computed otherwise on the CPU where that is faster.

    In float32, small filters by Winograd's algorithm and few channels with a faster gradient where `dualcaps.kernels`
    are used, large filters with a stride through `dualcaps.nn.fourier`. In compiled code, images with one channel are
    padded to four: the compiler cannot distinguish channels last from channels first with one, and converts the
    gradient between the two, which takes longer than the convolution.
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Convolve as `torch.nn.Conv2d` does."""
        if kernels.is_float32_on_cpu(input):
            if fourier.takes(self, input):
                return fourier.conv2d(input, self.weight, self.bias, self.stride[0])
            if self.uses_kernel(input):
                assert not isinstance(self.padding, str)
                return kernels.conv2d(input, self.weight, self.bias, self.padding[0])
            if torch.is_grad_enabled() and kernels.are_used(input) and kernels.takes_few_channels(self):
                assert not isinstance(self.padding, str)
                return kernels.few_channels_conv2d(input, self.weight, self.bias, self.padding[0])
        weight = self.weight
        if self.in_channels == 1 and _is_compiling_for_cpu(input):
            input, weight = (nn.functional.pad(values, (0, 0, 0, 0, 0, 3)) for values in (input, weight))
            input = input.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(input, weight, self.bias)

    def uses_kernel(self, input: Float[Tensor, "batch channels height width"]) -> bool:
        """Whether these images are convolved by Winograd's algorithm."""
        return kernels.is_float32_on_cpu(input) and kernels.are_used(input) and kernels.takes_convolution(self)


def _is_compiling_for_cpu(input: Tensor) -> bool:
    return torch.compiler.is_compiling() and not kernels.is_exporting() and input.device.type == "cpu"


class MaxPool2d(nn.MaxPool2d):
    """Max pooling of 2x2 windows, by the kernel of `dualcaps.kernels` where they are used.

    Args:
        ceil_mode: whether an odd side is pooled to the larger half.
    """

    def __init__(self, *, ceil_mode: bool = False) -> None:
        super().__init__(2, ceil_mode=ceil_mode)

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Pool as `torch.nn.MaxPool2d` does."""
        if kernels.are_used(input):
            return kernels.max_pool2d(input, ceil_mode=self.ceil_mode)
        return nn.functional.max_pool2d(input, 2, ceil_mode=self.ceil_mode)


def glorot_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A fully connected layer, initialised as in Keras."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def training_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Set a module and its parts to training or evaluation mode in the with block; then each has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def crop_images(
    images: Float[Tensor, "batch channels height width"], size: tuple[int, int], *, random: bool
) -> Float[Tensor, "batch channels rows columns"]:
    """A part of each image: at a random position, for each image its own, or the centre.

    Args:
        images: the images.
        size: rows and columns of the part.
        random: whether the position is drawn, by torch's global generator.
    """
    (height, width), (rows, columns) = images.shape[2:], size
    if not random:
        top, left = (height - rows) // 2, (width - columns) // 2
        return images[:, :, top : top + rows, left : left + columns]
    count, device = len(images), images.device
    top = torch.randint(height - rows + 1, (count, 1), device=device) + torch.arange(rows, device=device)
    left = torch.randint(width - columns + 1, (count, 1), device=device) + torch.arange(columns, device=device)
    number = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)


def standardise_images(
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Images with mean 0 and standard deviation 1, each over all its pixels and channels.

    As `tf.image.per_image_standardization`: the deviation is at least 1 / 255 / sqrt(number of values), so that a flat
    image becomes zero.
    """
    values = images.float()
    deviation, mean = torch.std_mean(values, dim=(1, 2, 3), keepdim=True, correction=0)
    least = 1 / (255 * values[0].numel() ** 0.5)
    return ((values - mean) / deviation.clamp(min=least)).to(images.dtype)


class LayerStack(nn.Sequential):
    """A sequence of layers in which a convolution and a following ReLU are fused where the result is the same.

    Without gradients on the CPU the two are one oneDNN operation, unless `dualcaps.kernels` are faster; with gradients
    the ReLU overwrites the convolution's output. Both save a pass over memory. Only exact instances of
    `torch.nn.Conv2d` (or the one above) and `torch.nn.ReLU` without hooks are fused.
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Run the layers."""
        if torch.compiler.is_compiling() or _has_global_hooks():
            return super().forward(input)
        fuse = not torch.is_grad_enabled() and _onednn_takes(input)
        layers = list(self)
        if input.device.type == "meta":
            # Only shapes matter, and a ReLU would import torch._dynamo, which takes seconds.
            layers = [layer for layer in layers if not _is_plain(layer, (nn.ReLU,))]
        merged = False
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if merged:
                merged = False
                continue
            merged = _is_plain(layer, (nn.Conv2d, Conv2d)) and _is_plain(following, (nn.ReLU,))
            by_kernel = isinstance(layer, Conv2d) and layer.uses_kernel(input)
            if merged and fuse and not by_kernel and not isinstance(layer.padding, str):
                input = torch.ops.mkldnn._convolution_pointwise(
                    *(input, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups),
                    *("relu", [], ""),
                )
            else:
                input = layer(input)
                if merged:
                    input = torch.relu_(input)
        return input


def _is_plain(layer: nn.Module | None, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer is an exact instance of one of these types, without hooks or an overridden forward."""
    return layer is not None and type(layer) in types and not has_hooks(layer)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own or an overridden forward, so that it must be called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__


def _has_global_hooks() -> bool:
    return bool(
        module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
    )


def _onednn_takes(images: Tensor) -> bool:
    if images.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if images.dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def to_unit_range(
    images: Tensor, number_type: torch.dtype = torch.float32
) -> Float[Tensor, "batch channels height width"]:
    """Scale uint8 images from 0 to 255 to [0, 1], channels last in memory.

    bfloat16 represents 0 to 255 exactly, so that only the quotient is rounded.
    """
    return images.to(number_type, memory_format=torch.channels_last).div_(255)
