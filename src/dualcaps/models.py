"""The networks: assembly of the layers, with all sizes derived from the images' shape."""

import dataclasses
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.config import ModelConfig
from dualcaps.errors import ModelError, unknown_name
from dualcaps.losses import cross_entropy, margin_loss, reconstruction_loss
from dualcaps.nn import (
    CapsAttention,
    ConvAttention,
    Decoder,
    GridVotes,
    LayerStack,
    MaxPool2d,
    PositionVotes,
    PrimaryVotes,
    crop_images,
    glorot_conv,
    glorot_linear,
    has_hooks,
    standardise_images,
    to_unit_range,
    training_mode,
)
from dualcaps.nn.trunks import TIMM_PREFIX, build_trunk, describe_shape, feature_shape
from dualcaps.nn.trunks.residual import residual_trunk
from dualcaps.nn.trunks.timm import load_trunk_weights
from dualcaps.registry import MODELS as MODELS
from dualcaps.registry import TRUNKS, load_entry_points, lookup, register_model
from dualcaps.routing import RoutingIteration, RoutingLayer, iterates, method_options, route_children
from dualcaps.runs.run import Run

PARENT_DIM = 16
_SABOUR_CHILD_DIM = 8
_PRIMARY_TYPES, _PRIMARY_DIM = 32, 16
_FIRST_LENGTH = 0.3  # of the parents; those of the paper's trunk start between 0.15 and 0.6, depending on the images
_FIRST_IMAGES = 256  # that the first length is computed from
_EXPLICIT_VOTES = 1024  # votes' dimensions per child up to which explicit votes are faster on CUDA


class CapsOutput(NamedTuple):
    """Output of a network.

    lengths: score of each class in [0, 1]: the length of the class's pose, or the softmax of a network without
        capsules.
    poses: the parent capsules; for networks without capsules `dim` is 0.
    """

    lengths: Float[Tensor, "batch classes"]
    poses: Float[Tensor, "batch classes dim"]


class Intermediates(NamedTuple):
    """Output of a network with its intermediate results; None for parts that it does not have.

    lengths, poses: as in `CapsOutput`.
    features: the trunk's feature map, before Conv-Attention.
    conv_gates: Conv-Attention's gates a, one for each channel.
    gated_features: the feature map after Conv-Attention.
    votes: before Caps-Attention.
    caps_gates: Caps-Attention's gates a; the last axis has the votes' dimension, or 1.
    gated_votes: the votes after Caps-Attention, which are routed.
    couplings: of the last routing iteration.
    iterations: logits, couplings and parents of each routing iteration, if the method provides them.
    """

    lengths: Float[Tensor, "batch classes"]
    poses: Float[Tensor, "batch classes dim"]
    features: Float[Tensor, "batch channels rows columns"] | None = None
    conv_gates: Float[Tensor, "batch channels"] | None = None
    gated_features: Float[Tensor, "batch channels rows columns"] | None = None
    votes: Float[Tensor, "batch classes children dim"] | None = None
    caps_gates: Float[Tensor, "batch classes children gate_dim"] | None = None
    gated_votes: Float[Tensor, "batch classes children dim"] | None = None
    couplings: Float[Tensor, "batch classes children"] | None = None
    iterations: tuple[RoutingIteration, ...] = ()


class Network(nn.Module):
    """Base class of all networks: input scaling, loss and reconstruction.

    A subclass defines `forward(images, intermediates=False)`, which begins with `self.prepare(images)` and
    returns a `CapsOutput`, or `Intermediates` where they are asked for. It is constructed with a `ModelConfig`
    and, if it has any, options of its own as keyword arguments; `@register_model(name)` makes it known by name.

    Attributes:
        config: its configuration.
        classes: class names in the order of the labels; numbers until training sets them.
        value_range: the pixel values of black and white in image files that are not 8-bit; None for 8-bit images.
        decoder: the decoder, or None.
        softmax: whether the lengths are a softmax, trained with cross-entropy instead of the margin loss.
    """

    softmax = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(str(number) for number in range(config.num_classes))
        self.value_range: tuple[float, float] | None = None
        self.decoder: Decoder | None = None

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:  # noqa: ARG002
        """Classify images.

        Args:
            images: uint8 [B, C, H, W] from 0 to 255, or floats in [0, 1].
            intermediates: whether to return `Intermediates` instead of `CapsOutput`.

        Raises:
            ModelError: images of another shape or type.
        """
        raise ModelError(f"{type(self).__name__} must define forward(images, intermediates=False)")

    def loss(
        self,
        output: CapsOutput,
        labels: Tensor,
        images: Tensor | None = None,
        reconstructions: Tensor | None = None,
        *,
        reconstruction_weight: float = 0.0005,
        label_smoothing: float = 0.0,
        class_weight: Float[Tensor, "classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean loss of a batch: margin loss, plus the weighted reconstruction loss if there are reconstructions.

        Args:
            output: the network's output.
            labels: class numbers [B], or soft labels [B, classes] in [0, 1].
            images: targets of the reconstructions, values in [0, 1].
            reconstructions: the result of `reconstruct` for the labels.
            reconstruction_weight: weight of the reconstruction loss.
            label_smoothing: share of each label spread over all classes.
            class_weight: weight of each class.
        """
        loss = self.classification_loss(
            output.lengths, labels, label_smoothing=label_smoothing, class_weight=class_weight
        )
        if reconstructions is not None and images is not None:
            loss = loss + reconstruction_weight * reconstruction_loss(reconstructions.float(), images)
        return loss

    def classification_loss(
        self, lengths: Tensor, labels: Tensor, *, label_smoothing: float, class_weight: Tensor | None
    ) -> Tensor:
        """The margin loss of the lengths, or their cross-entropy if they are a softmax."""
        loss = cross_entropy if self.softmax else margin_loss
        return loss(lengths, labels, label_smoothing=label_smoothing, class_weight=class_weight)

    def reconstruct(
        self, poses: Float[Tensor, "batch classes dim"], labels: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Reconstruct images, values in [0, 1], from one pose of each sample.

        Args:
            poses: `CapsOutput.poses`.
            labels: the class whose pose to decode; by default the one with the longest pose.

        Raises:
            ModelError: the network was built without a decoder.
        """
        if self.decoder is None:
            raise ModelError(f"{self.config.name} has no decoder: build a capsule network with decoder=True")
        return self.decoder(poses, poses.norm(dim=-1).argmax(dim=1) if labels is None else labels)

    def initialise_from_data(self, images: Tensor) -> None:
        """Set weights that are computed from training images; `fit` calls it before the first epoch.

        Trunks that define `initialise_from_data(images)`, images as floats in [0, 1], are called; others have none.

        Args:
            images: a sample of the training images, uint8 [B, C, H, W].
        """
        initialise = getattr(getattr(self, "trunk", None), "initialise_from_data", None)
        if initialise is not None:
            initialise(self.prepare(images))

    def place(self, device: torch.device) -> "Network":
        """Move to a device, with weights in the memory format channels last, which is fastest for convolutions."""
        return self.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def prepare(self, images: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Convert images to the layers' input: floats in [0, 1], channels last in memory.

        With `crop`, a part of them; with `standardise`, with mean 0 and standard deviation 1 instead.

        Args:
            images: uint8 from 0 to 255, which are divided by 255, or floats in [0, 1].

        Raises:
            ModelError: images of another shape or type than the network was built for.
        """
        if tuple(images.shape[1:]) != self.config.image_shape:
            wanted = describe_shape(self.config.image_shape)
            got = describe_shape(images.shape[1:]) if images.ndim == 4 else f"a tensor of shape {tuple(images.shape)}"
            raise ModelError(f"{self.config.name} was built for images of {wanted}, got {got}: resize them")
        if images.dtype == torch.uint8:
            images = to_unit_range(images)
        elif not images.is_floating_point():
            raise ModelError(f"{self.config.name} takes uint8 images or floats in [0, 1], got {images.dtype}")
        if self.config.crop is not None:
            images = crop_images(images, self.config.crop, random=self.training)
        if self.config.standardise:
            images = standardise_images(images)
        if torch.compiler.is_compiling():
            return images
        if images.shape[1] == 1:
            # With one channel both memory formats coincide, but oneDNN is 20 times slower unless the strides say last.
            height, width = images.shape[2:]
            return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
        return images.contiguous(memory_format=torch.channels_last)


_RESIDUAL: dict[str, Any] = {"trunk": "residual", "votes": "primary", "iterations": 2, "decoder": False}


@register_model(
    "sabour-capsnet",
    lacks=("conv_attention", "caps_attention", "gate", "width", "extra_conv", "trunk", "trunk_weights", "votes"),
    trunk="sabour",
    votes="position",
    squash_constant=1.0,
)
@register_model("da-capsnet-r", conv_attention=True, caps_attention="capsule", attention_width=32, **_RESIDUAL)
@register_model("capsnet-r-caps-att", caps_attention="capsule", attention_width=32, **_RESIDUAL)
@register_model("capsnet-r-conv-att", conv_attention=True, **_RESIDUAL)
@register_model("capsnet-r", **_RESIDUAL)
@register_model("da-capsnet", conv_attention=True, caps_attention="element")
@register_model("capsnet-caps-att", caps_attention="element")
@register_model("capsnet-conv-att", conv_attention=True)
@register_model("capsnet")
class CapsNet(Network):
    """Trunk, Conv-Attention, votes, Caps-Attention, routing; each attention module optional.

    Args:
        config: the configuration.
        attention_width: width of the first layer of Caps-Attention; by default as in `CapsAttention`.
        readout: how poses become scores: "length", trained with the margin loss, or "linear", the softmax over the
            classes of one linear layer that all classes share, trained with cross-entropy.
        **options: options of the trunk and of the routing method, by name.

    Attributes:
        num_children: number of child capsules.
    """

    def __init__(
        self, config: ModelConfig, attention_width: int | None = None, readout: str = "length", **options: Any
    ) -> None:
        super().__init__(config)
        if attention_width is not None and not (isinstance(attention_width, int) and attention_width >= 1):
            raise ModelError(f"attention_width must be a whole number of at least 1, got {attention_width!r}")
        if readout not in ("length", "linear"):
            raise ModelError(f"readout must be one of length, linear, got {readout!r}")
        parents = config.num_classes
        inner = _inside(config)
        self.trunk = build_trunk(inner, {name: options[name] for name in options if _is_of_trunk(name, config)})
        if config.trunk_weights is not None:
            warnings.warn(load_trunk_weights(self.trunk, config.trunk_weights), stacklevel=2)
        channels, rows, columns = feature_shape(self.trunk, inner)
        if config.votes == "position":
            if channels % _SABOUR_CHILD_DIM:
                raise ModelError(
                    f"votes position needs a trunk whose channels are a multiple of {_SABOUR_CHILD_DIM}, got {channels}"
                )
            positions = rows * columns
            self.votes = PositionVotes(
                channels, positions, _SABOUR_CHILD_DIM, parents, PARENT_DIM, config.squash_constant
            )
            children = positions * channels // _SABOUR_CHILD_DIM
        elif config.votes == "primary":
            children = rows * columns * _PRIMARY_TYPES
            self.votes = PrimaryVotes(channels, rows * columns, parents, PARENT_DIM, _PRIMARY_TYPES, _PRIMARY_DIM)
        else:
            self.votes = GridVotes(channels, parents, PARENT_DIM, scaled=config.trunk != "paper")
            children = rows * columns
        self.num_children = children
        self.conv_attention = ConvAttention(channels, config.gate) if config.conv_attention else nn.Identity()
        self.caps_attention = (
            nn.Identity()
            if config.caps_attention == "none"
            else CapsAttention(config.caps_attention, parents, children, PARENT_DIM, config.gate, attention_width)
        )
        self.readout = nn.Linear(PARENT_DIM, 1) if readout == "linear" else None
        self.softmax = readout == "linear"
        if config.decoder:
            self.decoder = Decoder(parents, PARENT_DIM, config.image_shape)
        self.routing = RoutingLayer(
            config.routing, parents, children, PARENT_DIM, config.iterations, _routing_options(config, options)
        )

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        """Classify images; see `Network.forward`."""
        features = self.trunk(self.prepare(images))
        gated_features = self.conv_attention(features)
        if intermediates:
            return self._with_intermediates(features, gated_features)
        if isinstance(self.votes, GridVotes) and self._use_implicit_routing(gated_features.device):
            poses = route_children(
                self.votes.child_vectors(gated_features),
                self.votes.matrices(),
                self.config.iterations,
                squash_constant=self.config.squash_constant,
                update=self.config.update,
            ).parents
        else:
            poses = self.routing(self.caps_attention(self.votes(gated_features))).parents
        return CapsOutput(self._scores(poses), poses)

    @torch.no_grad()
    def initialise_from_data(self, images: Tensor) -> None:
        """Set weights that are computed from training images; see `Network.initialise_from_data`.

        On another trunk than the paper's, the children of grid votes are scaled so that the parents' lengths start
        small. If they start close to 1, as with features that were normalised, the margin loss shrinks all of them to
        zero, where the squash has no gradient.
        """
        super().initialise_from_data(images)
        if isinstance(self.votes, GridVotes) and self.votes.scale is not None:
            buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}  # BatchNorm's averages
            with training_mode(self, True), torch.random.fork_rng([]):
                votes = self.votes(self.conv_attention(self.trunk(self.prepare(images[:_FIRST_IMAGES]))))
            for name, buffer in self.named_buffers():
                buffer.copy_(buffers[name])
            inputs = votes.sum(dim=2).norm(dim=-1).square().mean().sqrt() / self.config.num_classes
            wanted = (self.config.squash_constant * _FIRST_LENGTH / (1 - _FIRST_LENGTH)) ** 0.5
            if inputs > 0:
                self.votes.scale.mul_(wanted / inputs)

    def reconstruct(self, poses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstruct images; see `Network.reconstruct`. By default of the class with the highest score."""
        return super().reconstruct(poses, self._scores(poses).argmax(dim=1) if labels is None else labels)

    def _scores(self, poses: Tensor) -> Tensor:
        if self.readout is None:
            return poses.norm(dim=-1)
        return self.readout(poses.to(self.readout.weight.dtype)).squeeze(-1).float().softmax(dim=1)

    def _with_intermediates(self, features: Tensor, gated_features: Tensor) -> Intermediates:
        votes = self.votes(gated_features)
        gated_votes = self.caps_attention(votes)
        iterations: list[RoutingIteration] = []
        found = self.routing(gated_votes, couplings=True, trace=iterations)
        conv_attention, caps_attention = self.conv_attention, self.caps_attention
        return Intermediates(
            lengths=self._scores(found.parents),
            poses=found.parents,
            features=features,
            conv_gates=conv_attention.gate(features) if isinstance(conv_attention, ConvAttention) else None,
            gated_features=gated_features,
            votes=votes,
            caps_gates=caps_attention.gate(votes) if isinstance(caps_attention, CapsAttention) else None,
            gated_votes=gated_votes,
            couplings=found.couplings,
            iterations=tuple(iterations),
        )

    def _use_implicit_routing(self, device: torch.device) -> bool:
        """Whether to route without explicit votes, which requires dynamic routing without Caps-Attention.

        On the CPU this takes less memory at any size, and less time except for eager bfloat16 in batches below 64.
        On CUDA a fused kernel routes explicit votes, so it only saves memory, for many parents. It bypasses
        modules, so it is not used if any of them has hooks or another type.
        """
        if self.config.routing != "dynamic" or type(self.caps_attention) is not nn.Identity:
            return False
        if device.type == "cuda" and self.config.num_classes * PARENT_DIM <= _EXPLICIT_VOTES:
            return False
        transform = self.votes.transform
        if (
            type(self.votes) is not GridVotes
            or type(transform) is not nn.Linear
            or type(self.routing) is not RoutingLayer
        ):
            return False
        bypassed = (self.votes, transform, self.caps_attention, self.routing)
        return torch.compiler.is_compiling() or not any(map(has_hooks, bypassed))


def _inside(config: ModelConfig) -> ModelConfig:
    """The configuration of the layers, whose images are those that `Network.prepare` returns."""
    return dataclasses.replace(config, image_shape=config.input_shape, crop=None)


def _is_of_trunk(option: str, config: ModelConfig) -> bool:
    return option in _trunk_options(config) or (
        config.trunk.startswith(TIMM_PREFIX) and option not in method_options(config.routing)
    )


def _routing_options(config: ModelConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the routing method: its own, and the configuration's fields that it takes."""
    known = method_options(config.routing)
    fields = {"squash_constant": config.squash_constant, "update": config.update}
    own = {name: value for name, value in options.items() if not _is_of_trunk(name, config)}
    return {name: value for name, value in fields.items() if name in known} | own


def _trunk_options(config: ModelConfig) -> tuple[str, ...]:
    if config.trunk.startswith(TIMM_PREFIX):
        return ("stage", "grid")
    return _keywords(lookup(TRUNKS, "trunk", config.trunk).value)


_UNUSED_BY_TRUNK = {"residual": ("extra_conv",), "sabour": ("width", "extra_conv"), "timm": ("width", "extra_conv")}

_OWN_OPTIONS = ("attention_width", "readout")  # of CapsNet


_CAPSULE_FIELDS = (
    *("conv_attention", "caps_attention", "gate", "width", "extra_conv", "iterations", "squash_constant", "update"),
    *("decoder", "trunk", "trunk_weights", "votes", "routing"),
)


@register_model("cnn", lacks=_CAPSULE_FIELDS, decoder=False)
class CNN(Network):
    """The plain network of Hinton et al. 2018: two convolutions with max pooling, 1024 units, softmax (D2)."""

    softmax = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.trunk = LayerStack(
            OrderedDict(
                conv1=glorot_conv(config.image_shape[0], 32, 5, padding="same"),
                relu1=nn.ReLU(),
                pool1=MaxPool2d(),
                conv2=glorot_conv(32, 64, 5, padding="same"),
                relu2=nn.ReLU(),
                pool2=MaxPool2d(),
            )
        )
        _, rows, columns = feature_shape(self.trunk, _inside(config))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            glorot_linear(64 * rows * columns, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
            glorot_linear(1024, config.num_classes),
        )

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        """Classify images; see `Network.forward`."""
        features = self.trunk(self.prepare(images))
        output = _softmax_output(self.classifier(features))
        return Intermediates(*output, features=features) if intermediates else output


@register_model(
    "resnet-r", lacks=tuple(sorted({*_CAPSULE_FIELDS} - {"conv_attention", "gate", "width"})), decoder=False
)
class ResidualNet(Network):
    """The trunk of `da-capsnet-r` with a linear layer and softmax instead of capsules, as a control."""

    softmax = True

    def __init__(self, config: ModelConfig, grid: int = 2) -> None:
        super().__init__(config)
        inner = _inside(config)
        self.trunk = residual_trunk(inner, grid)
        channels, rows, columns = feature_shape(self.trunk, inner)
        self.conv_attention = ConvAttention(channels, config.gate) if config.conv_attention else nn.Identity()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * rows * columns, config.num_classes))

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        """Classify images; see `Network.forward`."""
        features = self.trunk(self.prepare(images))
        gated_features = self.conv_attention(features)
        output = _softmax_output(self.classifier(gated_features))
        if not intermediates:
            return output
        gates = self.conv_attention.gate(features) if isinstance(self.conv_attention, ConvAttention) else None
        return Intermediates(*output, features=features, conv_gates=gates, gated_features=gated_features)


class WrappedModule(Network):
    """A plain `torch.nn.Module` that maps images to class logits, as a network."""

    softmax = True

    def __init__(self, config: ModelConfig, module: nn.Module) -> None:
        super().__init__(config)
        self.module = module

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        """Classify images; see `Network.forward`."""
        logits = self.module(self.prepare(images))
        wanted = (len(images), self.config.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"{self.config.name} must return logits [batch, classes] = {wanted}, got {got}")
        output = _softmax_output(logits)
        return Intermediates(*output) if intermediates else output


def wrap_module(module: nn.Module, image_shape: Sequence[int], num_classes: int, *, name: str = "") -> Network:
    """A plain `torch.nn.Module` as a network that `fit`, `evaluate` and `predict` take.

    It is trained with cross-entropy. To load a run of it by `load_model(run)` or on the command line, register a
    function that builds it with `@register_model`; otherwise pass it: `load_model(run, model=...)`.

    Args:
        module: maps float images [B, C, H, W] in [0, 1] to logits [B, classes].
        image_shape: channels, height and width.
        num_classes: number of classes.
        name: the network's name in its runs; by default the module's class name.

    Example:
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> wrap_module(module, (1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).lengths.shape
        torch.Size([2, 10])
    """
    channels, height, width = image_shape
    shape = (channels, height, width)
    return WrappedModule(ModelConfig(name or type(module).__name__, shape, num_classes, decoder=False), module)


def _softmax_output(logits: Tensor) -> CapsOutput:
    probabilities = logits.float().softmax(dim=1)
    return CapsOutput(probabilities, probabilities.new_empty(*probabilities.shape, 0))


def create_model(
    name: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    *,
    pretrained: str | Path | None = None,
    **switches: Any,
) -> Network:
    """Build a network, with fresh weights, drawn from torch's random numbers, or with those of a trained one.

    Args:
        name: a registered name, see `list_models`; by default "da-capsnet".
        image_shape: channels, height and width of the images, in pixels; by default (1, 28, 28).
        num_classes: number of classes, at least 2; by default 10.
        pretrained: a run folder, or the name of a trained network (see `dualcaps.runs.run.trained_networks`). Name,
            shape, number of classes and switches are then by default its own, and its weights are loaded; layers whose
            shape differs, such as those of the classes if their number does, keep fresh weights.
        **switches: fields of `ModelConfig` other than the name's defaults, and options of the network, its trunk
            or its routing method.

    Raises:
        ModelError: an unknown name or switch, a value outside its range, a switch that the network does not have,
            images too small for its layers, more parameters than this machine's memory can train, or none of the
            weights of `pretrained` fit.
        RunError: `pretrained` is missing or damaged.

    Example:
        >>> model = create_model("capsnet", (3, 32, 32), num_classes=5, routing="uniform")
        >>> model(torch.zeros(2, 3, 32, 32)).poses.shape
        torch.Size([2, 5, 16])
    """
    run = None if pretrained is None else Run.open(pretrained)
    like = ModelConfig("da-capsnet") if run is None else run.model
    if run is not None and name in (None, like.name):
        left_out = ("name", "image_shape", "num_classes", "options", "trunk_weights")
        own = {switch: value for switch, value in vars(like).items() if switch not in left_out}
        switches = {**own, **dict(like.options), **switches}
    name = name or like.name
    config = configure(name, image_shape or like.image_shape, num_classes or like.num_classes, **switches)
    if lookup(MODELS, "model", name).origin == "dualcaps":  # building others twice may have side effects
        check_memory(build_on_meta(config))
    model = build_model(config)
    if run is not None:
        if len(load_fitting(model, run.weights())) == len(model.state_dict()):
            raise ModelError(f"pretrained={str(pretrained)!r}: none of its weights fit {name}")
        if model.config.num_classes == run.model.num_classes:
            model.classes = run.classes
    return model


def load_fitting(model: Network, weights: Mapping[str, Tensor]) -> list[str]:
    """Load weights where name and shape fit; returns the names of the tensors that were left as they are."""
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def configure(
    name: str, image_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10, **switches: Any
) -> ModelConfig:
    """The configuration that `create_model` builds; raises the same errors, except about sizes."""
    entry = lookup(MODELS, "model", name)
    fields = [field.name for field in dataclasses.fields(ModelConfig)][3:-1]
    for switch in switches:
        if switch in entry.lacks and switches[switch] != default_switches(name)[switch]:
            raise ModelError(f"{name} has no {switch}: leave that option out")
    given = {**entry.defaults, **switches}
    values = {switch: given[switch] for switch in given if switch in fields}
    options = {switch: given[switch] for switch in given if switch not in fields}
    config = ModelConfig(name, image_shape, num_classes, **values)
    known = _option_names(config)
    for option in options:
        if known is not None and option not in known:
            raise ModelError(unknown_name(f"switch of {name}", option, dict.fromkeys([*fields, *known])))
    if entry.value is CapsNet:
        available = method_options(config.routing)
        if iterates(config.routing):
            available = (*available, "iterations")
        for switch in _UNUSED_BY_TRUNK.get(config.trunk.partition(":")[0], ()):
            if switch in switches and switches[switch] != default_switches(name)[switch]:
                raise ModelError(f"trunk {config.trunk} has no {switch}: leave that option out")
        for switch in ("iterations", "squash_constant", "update"):
            if switch in switches and switch not in available and switches[switch] != default_switches(name)[switch]:
                raise ModelError(f"routing {config.routing} has no {switch}: leave that option out")
    return dataclasses.replace(config, options=tuple(sorted(options.items())))


def build_model(config: ModelConfig) -> Network:
    """Build the network of a configuration; raises ModelError as `create_model`."""
    built = lookup(MODELS, "model", config.name).value(config, **dict(config.options))
    if not isinstance(built, Network):
        raise ModelError(
            f"model {config.name} must be a dualcaps.Network, got {type(built).__name__}: return "
            "wrap_module(module, config.image_shape, config.num_classes)"
        )
    built.config = config
    return built


def list_models() -> list[str]:
    """Names of all registered networks, including those of installed plug-ins.

    Example:
        >>> "da-capsnet" in list_models()
        True
    """
    load_entry_points()
    return list(MODELS)


def default_switches(name: str) -> dict[str, Any]:
    """Defaults of a registered name for the fields of `ModelConfig`, without name and geometry.

    A name that is not registered has the defaults of `ModelConfig`.
    """
    given = MODELS[name].defaults if name in MODELS else {}
    return {field.name: given.get(field.name, field.default) for field in dataclasses.fields(ModelConfig)[3:-1]}


def describe(config: ModelConfig) -> str:
    """A readable description of a network: its name and the switches that differ from the name's defaults."""
    usual = default_switches(config.name)
    differing = {name: getattr(config, name) for name in usual if getattr(config, name) != usual[name]}
    defaults = MODELS[config.name].defaults if config.name in MODELS else {}
    options = dict(pair for pair in config.options if pair not in defaults.items())
    return ", ".join([config.name, *describe_switches(differing | options)])


def describe_switches(switches: Mapping[str, Any]) -> list[str]:
    """Readable descriptions of switches."""
    return [
        f"with {name}" if value is True else f"no {name}" if value is False else f"{name} {value}"
        for name, value in switches.items()
        if name != "trunk_weights"
    ]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a module.

    Example:
        >>> count_parameters(create_model("capsnet", (1, 28, 28), 10, decoder=False))
        156608
    """
    return sum(parameter.numel() for parameter in model.parameters())


def _option_names(config: ModelConfig) -> tuple[str, ...] | None:
    """Options that a network takes in addition to the fields of `ModelConfig`; None if it takes any."""
    registered = MODELS[config.name].value
    if registered is CapsNet:
        if config.trunk.startswith(TIMM_PREFIX):
            return None
        return (*_OWN_OPTIONS, *_trunk_options(config), *method_options(config.routing))
    parameters = inspect.signature(registered).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return _keywords(registered)


def _keywords(builder: Any) -> tuple[str, ...]:
    """The parameters of a builder after the configuration."""
    return tuple(inspect.signature(builder).parameters)[1:]


def check_memory(model: Network) -> None:
    """Raise ModelError if a network's weights, gradients and two moments do not fit into memory.

    Args:
        model: built on the meta device.
    """
    try:
        import psutil

        memory = psutil.virtual_memory().total
    except (ImportError, AttributeError, OSError):  # unsupported platform
        return
    config, parameters = model.config, count_parameters(model)
    if 16 * parameters > memory:
        raise ModelError(
            f"{config.name} for images of {describe_shape(config.image_shape)} in {config.num_classes} classes has "
            f"{parameters:,} parameters and needs {16 * parameters / 1e9:.0f} GB to train, this machine has "
            f"{memory / 1e9:.0f} GB: choose --caps-attention shared or a smaller --image-size"
        )


def build_on_meta(config: ModelConfig) -> Network:
    """Build a network without memory for its weights, to count or check; raises ModelError as `create_model`."""
    with torch.device("meta"):
        return build_model(dataclasses.replace(config, trunk_weights=None))
