"""The networks: which layers, how they are wired, and every size, derived from the images'."""

import dataclasses
import itertools
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.errors import ModelError
from dualcaps.nn import (
    CapsAttention,
    CapsAttentionKind,
    ConvAttention,
    Decoder,
    Gate,
    GridVotes,
    PositionVotes,
    Trunk,
    glorot_conv,
    glorot_linear,
)
from dualcaps.routing import Update, route, route_children


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One network, complete: `create_model` takes a name's defaults from `MODELS`.

    Attributes:
        name: the network's name in `MODELS`, which gave the other values their defaults.
        image_shape: channels, height and width of the images, in pixels.
        num_classes: how many classes, and so parent capsules.
        conv_attention: gate the channels of the convolutions (Eqs. 8-12).
        caps_attention: gate the votes (Eqs. 13-16); see `dualcaps.nn.CapsAttention`.
        gate: the paper's tanh with a residual, squeeze and excitation's sigmoid, or "additive", which
            adds where the others multiply, in both.
        width: channels of the first two convolutions; the others have two and four times as many.
        extra_conv: add the convolution 256 3x3 that the paper's Table 3 lists and its text lacks.
        iterations: routing iterations, at least 1.
        squash_constant: k > 0 of the squash.
        update: whether routing adds agreement to the logits or replaces them.
        decoder: add the decoder, which reconstructs the image from one class's pose.

    Raises:
        ModelError: a value outside its range.
    """

    name: str
    image_shape: tuple[int, int, int] = (1, 28, 28)
    num_classes: int = 10
    conv_attention: bool = False
    caps_attention: Literal["none", "element", "capsule", "shared"] = "none"
    gate: Gate = "tanh"
    width: int = 64
    extra_conv: bool = False
    iterations: int = 3
    squash_constant: float = 0.5
    update: Update = "accumulate"
    decoder: bool = True

    def __post_init__(self) -> None:
        shape = self.image_shape
        if len(shape) != 3 or any(size < 1 for size in shape):
            raise ModelError(f"image_shape must be channels, height and width of at least 1, got {shape}")
        if self.num_classes < 2:
            raise ModelError(f"num_classes must be at least 2, got {self.num_classes}")
        for name, value in (("iterations", self.iterations), ("width", self.width)):
            if value < 1:
                raise ModelError(f"{name} must be at least 1, got {value}")
        if not 0 < self.squash_constant < float("inf"):
            raise ModelError(f"squash_constant must be a number above 0, got {self.squash_constant}")
        for switch, allowed in (
            ("caps_attention", ("none", *get_args(CapsAttentionKind))),
            ("gate", get_args(Gate)),
            ("update", get_args(Update)),
        ):
            if getattr(self, switch) not in allowed:
                raise ModelError(f"{switch} must be one of {', '.join(allowed)}, got {getattr(self, switch)!r}")
        if self.gate != "tanh" and not self.conv_attention and self.caps_attention == "none":
            raise ModelError(f"{self.name} has no attention module that a {self.gate} gate could be in")


PARENT_DIM = 16
_VOTES_WORTH_MAKING = 1024  # numbers a child casts its votes in

MODELS: Mapping[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig("capsnet"),
        ModelConfig("capsnet-conv-att", conv_attention=True),
        ModelConfig("capsnet-caps-att", caps_attention="element"),
        ModelConfig("da-capsnet", conv_attention=True, caps_attention="element"),
        ModelConfig("cnn", decoder=False),
        ModelConfig("sabour-capsnet", squash_constant=1.0),
    )
}
"""The networks of the paper, by name, with their default switches."""

# What a network leaves out of the common switches; asking for it is an error, not a no-op.
_MISSING_SWITCHES = {
    "cnn": (
        *("conv_attention", "caps_attention", "gate", "width", "extra_conv"),
        *("iterations", "squash_constant", "update", "decoder"),
    ),
    "sabour-capsnet": ("conv_attention", "caps_attention", "gate", "width", "extra_conv"),
}


class CapsOutput(NamedTuple):
    """What a network answers.

    lengths: for each class how sure the network is that the image shows it, in [0, 1): the
        length of the class's pose; for the `cnn` its softmax, which sums to 1.
    poses: the parent capsules; for the `cnn`, which has none, `dim` is 0.
    """

    lengths: Float[Tensor, "batch classes"]
    poses: Float[Tensor, "batch classes dim"]


class Network(nn.Module):
    """What all networks share: their configuration, the check of their input, the decoder.

    Attributes:
        config: how it was built.
        classes: class names in the order of the labels; numbers until training names them.
        decoder: None where it was built without.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(str(number) for number in range(config.num_classes))
        self.decoder: Decoder | None = None

    def reconstruct(
        self, poses: Float[Tensor, "batch classes dim"], labels: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Draw the image that one pose of each sample stands for, values in [0, 1].

        Args:
            poses: `CapsOutput.poses`.
            labels: the class to draw; without it, the predicted one (the longest pose).

        Raises:
            ModelError: the network was built without a decoder.
        """
        if self.decoder is None:
            raise ModelError(f"{self.config.name} has no decoder: build a capsule network with decoder=True")
        return self.decoder(poses, poses.norm(dim=-1).argmax(dim=1) if labels is None else labels)

    def place(self, device: torch.device) -> "Network":
        """Move to a device, the weights channels last in memory, which convolutions are fastest with."""
        return self.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def prepare(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The images channels last in memory; raises ModelError where the network was built for others."""
        if tuple(images.shape[1:]) != self.config.image_shape:
            wanted, got = _shape_text(self.config.image_shape), _shape_text(images.shape[1:])
            raise ModelError(f"{self.config.name} was built for images of {wanted}, got {got}: resize them")
        if torch.compiler.is_compiling():
            return images
        if images.shape[1] == 1:
            # One channel lies first and last alike, but unless its stride says last, oneDNN convolves 20 times slower.
            height, width = images.shape[2:]
            return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
        return images.contiguous(memory_format=torch.channels_last)


class CapsNet(Network):
    """Trunk, Conv-Attention, votes, Caps-Attention, routing; each attention module optional."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        parents = config.num_classes
        if config.name == "sabour-capsnet":
            self.trunk, channels = _sabour_trunk(config), 256
            height, width = _grid(self.trunk, config)
            self.votes = PositionVotes(channels, height * width, 8, parents, PARENT_DIM, config.squash_constant)
        else:
            self.trunk, channels = _trunk(config), (4 if config.extra_conv else 2) * config.width
            height, width = _grid(self.trunk, config)
            self.votes = GridVotes(channels, parents, PARENT_DIM)
        self.conv_attention = ConvAttention(channels, config.gate) if config.conv_attention else nn.Identity()
        self.caps_attention = (
            nn.Identity()
            if config.caps_attention == "none"
            else CapsAttention(config.caps_attention, parents, height * width, PARENT_DIM, config.gate)
        )
        if config.decoder:
            self.decoder = Decoder(parents, PARENT_DIM, config.image_shape)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> CapsOutput:
        """Classify images with values in [0, 1]."""
        features = self.conv_attention(self.trunk(self.prepare(images)))
        iterations = self.config.iterations
        how: Any = {"squash_constant": self.config.squash_constant, "update": self.config.update}
        if isinstance(self.votes, GridVotes) and self._votes_need_not_be_made(features.device):
            poses = route_children(self.votes.child_vectors(features), self.votes.matrices(), iterations, **how).parents
        else:
            poses = route(self.caps_attention(self.votes(features)), iterations, **how).parents
        return CapsOutput(poses.norm(dim=-1), poses)

    def _votes_need_not_be_made(self, device: torch.device) -> bool:
        """Whether routing the children themselves is the better way, which needs votes that nothing gates.

        On the CPU it is smaller at any size, and faster but for eager bfloat16 in batches below 64. On
        CUDA votes are routed by one fused kernel, so it pays in memory alone, where parents are many.
        """
        few_parents = self.config.num_classes * PARENT_DIM <= _VOTES_WORTH_MAKING
        return self.config.caps_attention == "none" and not (device.type == "cuda" and few_parents)


class CNN(Network):
    """The plain network of Hinton et al. 2018: two convolutions with max pooling, 1024 units, softmax."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.trunk = nn.Sequential(
            OrderedDict(
                conv1=glorot_conv(config.image_shape[0], 32, 5, padding="same"),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=glorot_conv(32, 64, 5, padding="same"),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
            )
        )
        height, width = _grid(self.trunk, config)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            glorot_linear(64 * height * width, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
            glorot_linear(1024, config.num_classes),
        )

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> CapsOutput:
        """Classify images with values in [0, 1]."""
        probabilities = self.classifier(self.trunk(self.prepare(images))).float().softmax(dim=1)
        return CapsOutput(probabilities, probabilities.new_empty(*probabilities.shape, 0))


def create_model(
    name: str = "da-capsnet",
    image_shape: tuple[int, int, int] = (1, 28, 28),
    num_classes: int = 10,
    **switches: Any,
) -> Network:
    """Build a network with fresh weights, drawn from torch's random numbers.

    Args:
        name: a key of `MODELS`.
        image_shape: channels, height and width of the images, in pixels.
        num_classes: how many classes, at least 2.
        switches: fields of `ModelConfig` that are to differ from the network's own.

    Raises:
        ModelError: an unknown name or switch, a value outside its range, a switch that the
            network does not have, an image too small for it, or too large for this machine's memory.
    """
    _check_name(name)
    known = [field.name for field in dataclasses.fields(ModelConfig)[3:]]
    for switch in switches:
        if switch not in known:
            raise ModelError(f"unknown switch {switch!r} of {name}: choose from {', '.join(known)}")
        if switch in _MISSING_SWITCHES.get(name, ()) and switches[switch] != getattr(MODELS[name], switch):
            raise ModelError(f"{name} has no {switch}: leave that option out")
    config = dataclasses.replace(MODELS[name], image_shape=tuple(image_shape), num_classes=num_classes, **switches)
    _check_memory(config)
    return build_model(config)


def build_model(config: ModelConfig) -> Network:
    """Build the network that a configuration describes; raises ModelError as `create_model` does."""
    _check_name(config.name)
    return CNN(config) if config.name == "cnn" else CapsNet(config)


def _check_name(name: str) -> None:
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")


def _check_memory(config: ModelConfig) -> None:
    """Refuse a network whose weights, gradients and two moments cannot all be held."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    with torch.device("meta"):
        parameters = count_parameters(build_model(config))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 16 * parameters > memory:
        raise ModelError(
            f"{config.name} for images of {_shape_text(config.image_shape)} in {config.num_classes} classes has "
            f"{parameters:,} parameters and needs {16 * parameters / 1e9:.0f} GB to train, this machine has "
            f"{memory / 1e9:.0f} GB: choose --caps-attention shared or a smaller --image-size"
        )


def describe(config: ModelConfig) -> str:
    """A network in a few words: its name and where it differs from what the name stands for."""
    usual = MODELS[config.name]
    words = [config.name]
    for field in dataclasses.fields(config)[3:]:
        if (value := getattr(config, field.name)) != getattr(usual, field.name):
            switch = {"True": "with {}", "False": "no {}"}.get(str(value), "{} {}")
            words.append(switch.format(field.name, value))
    return ", ".join(words)


def count_parameters(model: nn.Module) -> int:
    """How many learned numbers a module holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def _trunk(config: ModelConfig) -> Trunk:
    """The paper's Table 3: its two columns differ in the kernel of the last two convolutions."""
    kernel, width = 2 if min(config.image_shape[1:]) < 32 else 3, config.width
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=glorot_conv(config.image_shape[0], width, 3),
        relu1=nn.ReLU(inplace=True),
        conv2=glorot_conv(width, width, 3),
        relu2=nn.ReLU(inplace=True),
        pool=nn.AvgPool2d(2),
        conv3=glorot_conv(width, 2 * width, kernel),
        relu3=nn.ReLU(inplace=True),
        conv4=glorot_conv(2 * width, 2 * width, kernel),
        relu4=nn.ReLU(inplace=True),
    )
    if config.extra_conv:
        layers |= OrderedDict(conv5=glorot_conv(2 * width, 4 * width, 3), relu5=nn.ReLU())
    return Trunk(layers)


def _sabour_trunk(config: ModelConfig) -> Trunk:
    """Sabour et al. 2017: the second convolution holds 32 types of primary capsules of 8 numbers."""
    return Trunk(
        OrderedDict(
            conv1=glorot_conv(config.image_shape[0], 256, 9),
            relu1=nn.ReLU(inplace=True),
            primary=glorot_conv(256, 256, 9, stride=2),
        )
    )


def _grid(trunk: nn.Sequential, config: ModelConfig) -> tuple[int, int]:
    """Height and width of what the trunk makes of the images."""
    height, width = (_through(trunk, size) for size in config.image_shape[1:])
    if min(height, width) < 1:
        smallest = next(size for size in itertools.count(1) if _through(trunk, size) >= 1)
        raise ModelError(
            f"images of {_shape_text(config.image_shape)} are too small for {config.name}, which takes at least "
            f"{smallest}x{smallest} pixels: enlarge them (--image-size)"
        )
    return height, width


def _through(trunk: nn.Sequential, size: int) -> int:
    """What is left of one side of an image after the trunk; below 1 when it is too small."""
    for layer in trunk:
        if isinstance(layer, nn.Conv2d) and layer.padding != "same":
            size = (size - layer.kernel_size[0]) // layer.stride[0] + 1
        elif isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
            size //= 2
    return size


def _shape_text(shape: tuple[int, ...] | torch.Size) -> str:
    channels, height, width = shape
    return f"{height}x{width} pixels with {channels} channel{'s' if channels > 1 else ''}"
