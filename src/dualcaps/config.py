"""Configurations of networks, data and training, each option declared once.

The options of the command line, the files of a run and the identity of a run derive from these
dataclasses. Nothing here imports torch, which keeps `--help` fast.
"""

import dataclasses
import functools
import hashlib
import json
import math
import numbers
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from dualcaps.errors import ConfigError, DataError, DualcapsError, ModelError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CapsAttentionKind = Literal["none", "element", "capsule", "shared"]
Gate = Literal["tanh", "sigmoid", "additive"]
VotesKind = Literal["grid", "position", "primary"]
Update = Literal["accumulate", "replace"]
Split = Literal["official", "random", "views", "azimuth", "elevation"]
Camera = Literal["left", "right", "both", "stereo"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one-cycle", "step"]
Protocol = Literal["clean", "paper", "last"]
TestTimeAugmentation = Literal["none", "policy", "flip", "shift", "flip-shift"]
RecipeName = Literal["paper", "strong", "fast", "photos"]
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "always", "never"]

OWN_TEST_SHARE = 0.2
"""The part of own images that is held out for the test if they have no test part."""

AUGMENTATIONS = ("shift", "crop", "flip", "rotate", "colour", "erase", "mixup", "overlap")
"""Augmentations by name, see `dualcaps.data.augment`."""

_T = TypeVar("_T", bound="DataclassInstance")


@dataclass(frozen=True)
class ModelConfig:
    """One network, complete: `create_model` takes a name's defaults from the registry.

    Attributes:
        name: The network's registered name, which determines the other defaults.
        image_shape: Channels, height and width of the images, in pixels.
        num_classes: Number of classes, and so of parent capsules.
        crop: Height and width of the part of each image that is used: at a random position in training, otherwise the
            centre.
        standardise: Scale each image, after the crop, to mean 0 and standard deviation 1.
        conv_attention: Gate the channels of the feature map (Eqs. 8-12).
        caps_attention: Gate the votes (Eqs. 13-16): every element, every vote, or the same layers for each
            vote; see `dualcaps.nn.CapsAttention`.
        gate: Form of the gates of both attention modules: the paper's u + u tanh(…), squeeze and excitation's
            u sigmoid(…), or u + tanh(…), a control with the same layers that is no attention.
        width: Channels of the first two convolutions of the trunk `paper`, of which the next two have twice as many;
            of the first group of the trunk `residual`, of which the other two have four times as many.
        extra_conv: Add the convolution 256 3x3 that the paper's Table 3 lists and its text lacks.
        iterations: Routing iterations.
        squash_constant: The constant k of the squash.
        update: Whether dynamic routing adds agreement to the logits (Eq. 7) or replaces them.
        decoder: Add the decoder, which reconstructs the image from one class's pose.
        trunk: The layers from the images to the feature map: paper, sabour, residual, timm:NAME or a registered name.
        trunk_weights: A safetensors file of pretrained weights for the trunk, read when the network is created.
        votes: One matrix for all positions (Eq. 5), one for each child and parent (Sabour et al. 2017), or the
            latter with 32 normalised primary capsules of 16 dimensions at each position.
        routing: The routing method: dynamic, em, self-attention, inverted-attention, self-routing, uniform
            or a registered name.
        options: Further options of the network, trunk or routing method, as pairs of name and value.

    Raises:
        ModelError: a value of the wrong type or outside its range.
    """

    name: str
    image_shape: tuple[int, int, int] = (1, 28, 28)
    num_classes: int = 10
    crop: tuple[int, int] | None = None
    standardise: bool = False
    conv_attention: bool = False
    caps_attention: CapsAttentionKind = "none"
    gate: Gate = "tanh"
    width: int = 64
    extra_conv: bool = False
    iterations: int = 3
    squash_constant: float = 0.5
    update: Update = "accumulate"
    decoder: bool = True
    trunk: str = "paper"
    trunk_weights: str | None = None
    votes: VotesKind = "grid"
    routing: str = "dynamic"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _check_types(self, ModelError)
        if any(size < 1 for size in self.image_shape):
            raise ModelError(f"image_shape must be channels, height and width of at least 1, got {self.image_shape}")
        if self.num_classes < 2:
            raise ModelError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.crop is not None and not all(
            1 <= side <= of for side, of in zip(self.crop, self.image_shape[1:], strict=True)
        ):
            size = " x ".join(map(str, self.image_shape[1:]))
            raise ModelError(f"crop must be two numbers of pixels within the images' {size}, got {self.crop}")
        for name, value in (("iterations", self.iterations), ("width", self.width)):
            if value < 1:
                raise ModelError(f"{name} must be at least 1, got {value}")
        if not 0 < self.squash_constant < math.inf:
            raise ModelError(f"squash_constant must be a number above 0, got {self.squash_constant}")
        if self.gate != "tanh" and not self.conv_attention and self.caps_attention == "none":
            raise ModelError(f"{self.name} has no attention module that a {self.gate} gate could be in")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the layers see: the images' shape, or the crop's."""
        return (self.image_shape[0], *(self.crop or self.image_shape[1:]))


@dataclass(frozen=True)
class DataConfig:
    """What images are loaded and how they are split; kept in a run, so that they can be loaded again.

    Attributes:
        source: A data set's name; a folder with a sub-folder of images for each class; a .npz or Parquet file.
        data_dir: Folder to search first for the files of a named data set.
        image_size: Height and width in pixels to resize the images to; by default the data set's, for own images
            their common size if it is at most 64 a side, otherwise 32 32.
        channels: 1 for grey, 3 for colour; by default the data set's, or colour if any image is in colour.
        validation: The part of the training images held out, above 0 and below 1.
        test: The part of all images held out if there is no test part; by default a tenth for coil-20 and a
            fifth for others.
        split_seed: Seed of the choice of held-out images.
        split: How test images are chosen: smallnorb official (other toys), random (half of all pairs, the same toys),
            azimuth, elevation (other toys from viewpoints not trained on); coil-20 random, views (a quarter turn of
            each object).
        camera: smallnorb: the camera, by default the left; both takes the two pictures of a pair as two images, stereo
            as two channels of one.
        objects: coil-20: number of objects, by default the first 10.
        extra: svhn: also train on extra_32x32.mat.
        skip_damaged: Leave out image files that cannot be read instead of refusing them.
        value_range: Pixel values of black and white in own images that are not 8-bit; by default taken from all
            of them together.

    Raises:
        DataError: a value of the wrong type or outside its range.
    """

    source: str = "digits"
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    validation: float = 0.1
    test: float | None = None
    split_seed: int = 0
    split: Split | None = None
    camera: Camera | None = None
    objects: Literal[10, 20] | None = None
    extra: bool = False
    skip_damaged: bool = False
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_types(self, DataError)
        for option, value in (("validation", self.validation), ("test", self.test)):
            if value is not None and not 0 < value < 1:
                raise DataError(f"{option} must be above 0 and below 1, got {value}")
        if self.split_seed < 0:
            raise DataError(f"split_seed must be at least 0, got {self.split_seed}")
        if self.image_size is not None and not all(1 <= side <= 4096 for side in self.image_size):
            raise DataError(f"image_size must be two numbers of pixels from 1 to 4096, got {self.image_size}")
        if self.value_range is not None and not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise DataError(f"value_range must be two increasing numbers, got {self.value_range}")


INCIDENTAL = ("device", "compile", "deterministic", "checkpoint_minutes")
"""Options of `TrainConfig` that are not part of a run's identity."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the recipe `paper` (Adam as in the Keras example).

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step; by default the data set's, 16 for coil-20 and 128 for others.
        optimizer: Adam, AdamW, or SGD with Nesterov momentum.
        lr: Learning rate, the maximum of the schedule; by default 1e-3 for Adam and AdamW and 0.05 for SGD,
            lower in proportion for networks wider than the paper's.
        schedule: Learning-rate schedule: constant; cosine to zero; one-cycle (linear up to 30 % of the steps,
            then cosine to zero); step (a tenth after each third of the epochs).
        warmup_epochs: Epochs of linear warm-up from zero before the schedule.
        weight_decay: Decay of the weights; added to the gradient by Adam and SGD, decoupled in AdamW.
        momentum: SGD's momentum.
        beta1: Adam's decay of the mean gradient.
        beta2: Adam's decay of the mean squared gradient.
        epsilon: Adam's epsilon.
        grad_clip: Maximum norm of the gradient over all parameters; by default it is not clipped.
        label_smoothing: Share of each label that is spread over all classes, at least 0 and below 1.
        class_weight: Weight of each class in the loss: none, balanced (inverse to its training images), or the
            weights themselves in the order of the classes.
        ema: Decay of an exponential moving average of the weights, which is then evaluated and kept.
        reconstruction_weight: Weight of the reconstruction loss, a sum of squared differences.
        augment: policy moves images up to 10 % and mirrors them where that keeps the class; paper-literal
            always mirrors; none; or names joined by commas of policy, shift, crop, flip, rotate, colour, erase,
            mixup, overlap. shift=0.15 moves by up to this share of the side.
        tta: Test-time augmentation: the test accuracy, `evaluate` and `predict` average over mirrored images and over
            images shifted by a 32nd of their side (flip, shift or both); policy is both, without flip where a mirrored
            image would belong to another class.
        protocol: clean selects the epoch on held-out training images and reads the test images once; paper
            trains on all training images and selects the epoch on the test images; last trains on all training
            images and keeps the last epoch, whatever its accuracy.
        patience: Stop after this many epochs without a better accuracy on the images that the epoch is selected on.
        init_from: A run folder with weights to start from; layers of other shapes are initialised.
        precision: Number type of the layers; auto is bfloat16 if the machine is fast at it.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1, mps, …
        compile: auto compiles the training step if the run is long enough to save time.
        deterministic: Repeat the run to the bit on the same machine, also when it is stopped and resumed: deterministic
            operations, the number of threads that the run began with, and no compilation unless compile is always.
        checkpoint_minutes: Minutes between checkpoints within an epoch; one is also written after each epoch and when
            the training is interrupted.
        seed: Seed of order, augmentation and dropout, and on the command line of the initial weights.

    Raises:
        ConfigError: a value of the wrong type or outside its range.
    """

    epochs: int = 100
    batch_size: int | None = None
    optimizer: Optimizer = "adam"
    lr: float | None = None
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    class_weight: Literal["balanced"] | tuple[float, ...] | None = None
    ema: float | None = None
    reconstruction_weight: float = 0.0005
    augment: str = "policy"
    tta: TestTimeAugmentation = "none"
    protocol: Protocol = "clean"
    patience: int | None = None
    init_from: str | None = None
    precision: PrecisionChoice = "auto"
    device: str = "auto"
    compile: Compile = "auto"
    deterministic: bool = False
    checkpoint_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self, ConfigError)
        for name in ("epochs", "batch_size", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "epsilon", "grad_clip", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}")
        for name in ("beta1", "beta2", "momentum", "label_smoothing", "ema"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {value}")
        for name in ("reconstruction_weight", "weight_decay", "warmup_epochs"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} must be at least 0, got {value}")
        if self.protocol == "last" and self.patience is not None:
            raise ConfigError("patience needs a protocol that selects the epoch: leave it out with protocol last")
        if isinstance(self.class_weight, tuple) and not all(0 <= weight < math.inf for weight in self.class_weight):
            raise ConfigError(f"class_weight must be weights of at least 0, got {self.class_weight}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 4294967295, got {self.seed}")
        if self.augment not in ("policy", "paper-literal", "none"):
            names = self.augment.split(",")
            if unknown := [name for name in names if _without_amount(name) not in ("policy", *AUGMENTATIONS)]:
                raise ConfigError(
                    f"augment: {unknown[0]!r} is not one of policy, paper-literal, none, {', '.join(AUGMENTATIONS)}"
                )
            if {"mixup", "overlap"} <= set(names):
                raise ConfigError("augment: mixup and overlap both combine images: choose one of them")


def _without_amount(name: str) -> str:
    """The name of an augmentation without a valid amount, as in "shift=0.15"; only shift has one."""
    return "shift" if re.fullmatch(r"shift=0?\.\d+", name) else name


def to_json(config: "DataclassInstance") -> dict[str, Any]:
    """A configuration as a JSON-serialisable dictionary, in the order of its fields."""
    section = dataclasses.asdict(config)
    if "options" in section:
        section["options"] = dict(section["options"])
    return section


def from_json(cls: type[_T], section: Mapping[str, Any]) -> _T:
    """A configuration from the result of `to_json`; fields with a default may be missing.

    Raises:
        ValueError: other fields are missing or unknown.
        DualcapsError: an invalid value.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    if not required <= set(section) <= known:
        odd = sorted((required - set(section)) | (set(section) - known))
        raise ValueError(f"fields of {cls.__name__} are missing or unknown: {', '.join(odd)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}
    if isinstance(options := values.get("options"), Mapping):
        values["options"] = tuple(sorted((name, _frozen(value)) for name, value in options.items()))
    return cls(**values)


def config_hash(*configs: "DataclassInstance", leave_out: tuple[str, ...] = ()) -> str:
    """The identity of configurations: SHA-256 of their values, without the fields named in `leave_out`."""
    sections = [
        {type(config).__name__: {k: v for k, v in to_json(config).items() if k not in leave_out}} for config in configs
    ]
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _check_types(config: "DataclassInstance", error: type[DualcapsError]) -> None:
    """Convert values to their fields' types, such as lists to tuples; raise `error` if that is not possible."""
    for name, hint in _field_types(type(config)):
        value = getattr(config, name)
        if type(value) is hint and hint is not float:
            continue
        value = _plain(value)
        if not _is_of(value, hint):
            raise error(f"{name} must be {_type_text(hint)}, got {value!r}")
        object.__setattr__(config, name, _with_floats(value, hint))


@functools.cache  # a plan of all experiments makes a thousand configurations
def _field_types(cls: type["DataclassInstance"]) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _plain(value: Any) -> Any:
    """Convert numpy numbers, lists and paths to built-in types."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _with_floats(value: Any, hint: Any) -> Any:
    """Convert whole numbers to floats where the type is float, so that equal configurations have equal hashes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is float:
        return float(value) + 0.0  # converts -0.0 to 0.0
    if origin in (typing.Union, types.UnionType):
        return _with_floats(value, next(argument for argument in arguments if _is_of(value, argument)))
    if origin is tuple:
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(map(_with_floats, value, hints))
    return value


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_is_of(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_is_of, value, arguments))
    if hint is float:
        return isinstance(value, float) or (_is_of(value, int) and abs(value) <= sys.float_info.max)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"several of: {_type_text(arguments[0])}"
        return f"{len(arguments)} of: {_type_text(arguments[0])}"
    return {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}.get(hint, str(hint))
