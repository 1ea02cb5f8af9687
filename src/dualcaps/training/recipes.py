"""Recipes: ways to train by name, each with a network and training options.

A recipe is a starting point: options given beside it take precedence.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from dualcaps.config import DataConfig, ModelConfig, TrainConfig
from dualcaps.data.augment import parse_augmentation
from dualcaps.data.batches import training_batches
from dualcaps.data.dataset import ImageSplit
from dualcaps.data.load import image_sizes, inspect_source
from dualcaps.data.sources.encoded import natural_size
from dualcaps.errors import ConfigError, unknown_name
from dualcaps.inference import choose_device, choose_precision
from dualcaps.models import build_model
from dualcaps.registry import DATASETS
from dualcaps.training.optimizers import build_optimizer, default_learning_rate
from dualcaps.training.step import TrainingStep


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
        summary: what it is for, in one line.
        model: the network's registered name.
        network: switches of the network that differ from the defaults of its name.
        training: the training options.
        images: where set, the number of epochs follows from the data: so many training images are shown in all, in
            at least `fewest_epochs` and at most `most_epochs` epochs.
    """

    summary: str
    model: str
    training: TrainConfig
    network: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    fewest_epochs: int = 15
    most_epochs: int = 100

    def switches(self, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The switches of a network: the given ones, and the recipe's where it is the recipe's network.

        Width and grid belong to the recipe's trunk; with another trunk they are left out.
        """
        own = dict(self.network) if model == self.model else {}
        if given.get("trunk", "residual") != "residual":
            own = {name: value for name, value in own.items() if name not in ("width", "grid")}
        return {**own, **given}

    def training_config(self, given: Mapping[str, Any]) -> TrainConfig:
        """The recipe's training options with the given ones in their place.

        The recipe's learning rate is for its own optimizer; with another one it is the default of that.
        """
        own = self.training
        if given.get("optimizer", own.optimizer) != own.optimizer:
            own = dataclasses.replace(own, lr=None)
        return dataclasses.replace(own, **given)

    def epochs(self, training_images: int) -> int:
        """The number of epochs for so many training images."""
        if self.images is None:
            return self.training.epochs
        return min(max(round(self.images / training_images), self.fewest_epochs), self.most_epochs)


_RESIDUAL = TrainConfig(
    optimizer="sgd",  # with Nesterov momentum 0.9
    lr=0.1,  # for the cross-entropy in batches of 128
    schedule="one-cycle",  # ends at zero, so that the last epoch is the best or close to it
    weight_decay=5e-4,
    label_smoothing=0.1,
    augment="policy,erase",
    tta="policy",
    protocol="last",
)
_LINEAR = {"readout": "linear"}  # on CIFAR-10 after 6 epochs 88.7 %, by the lengths 87.9 % (docs/log.md)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "paper": Recipe(
            "the paper's network and training: Adam, the data set's shifts and mirroring, 100 epochs",
            model="da-capsnet",
            training=TrainConfig(),
        ),
        "strong": Recipe(
            "the highest accuracy: da-capsnet-r, all training images, the last epoch kept",
            model="da-capsnet-r",
            network=_LINEAR,
            training=dataclasses.replace(_RESIDUAL, epochs=40),
        ),
        "fast": Recipe(
            "a good accuracy in a tenth of the time: da-capsnet-r of half the width, 10 epochs",
            model="da-capsnet-r",
            network={"width": 32, **_LINEAR},
            training=dataclasses.replace(_RESIDUAL, epochs=10),
        ),
        "photos": Recipe(
            "your own photographs: da-capsnet-r, image size and epochs from the data and the time",
            model="da-capsnet-r",
            # An object may be anywhere, so that no position gets parameters of its own.
            network={"width": 32, "grid": 1},
            training=dataclasses.replace(
                _RESIDUAL,
                lr=0.15,  # for the margin loss
                batch_size=32,  # of few images there would be few larger batches
                augment="policy,flip,colour,erase",
                protocol="clean",
            ),
            images=200_000,
        ),
    }
)
"""The recipes by name."""

PHOTO_SIDES = (64, 96, 128, 160, 192, 224)
"""Sides of images in pixels that `plan_photos` chooses from."""

_PRETRAINED_RATE = 0.02  # a higher one would destroy the weights
_SOFTMAX_RATE = 0.025  # 0.1 in batches of 128, in proportion to the batch
_BATCH_SIZE, _TIMED_STEPS = 128, 4


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> recipe("fast").model
        'da-capsnet-r'
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, RECIPES))
    return RECIPES[name]


def default_recipe(source: str, model: str | None) -> str:
    """The recipe for a data set where none is named: `photos` for own images, otherwise `paper`.

    With another network than that of `photos`, own images are trained on by `paper` too.
    """
    own = source not in DATASETS
    return "photos" if own and model in (None, RECIPES["photos"].model) else "paper"


def photos_rate(network: ModelConfig, *, softmax: bool) -> tuple[float | None, str]:
    """The learning rate of the recipe `photos` for a network, and why it is not the recipe's own; otherwise empty.

    Args:
        network: its configuration.
        softmax: whether its outputs are those of a softmax.
    """
    if network.trunk_weights is not None:
        return _PRETRAINED_RATE, "the trunk is pretrained"
    if softmax:
        return _SOFTMAX_RATE, f"{network.name} ends in a softmax"
    return RECIPES["photos"].training.lr, ""


class PhotoPlan(NamedTuple):
    """What `photos` chooses for own images.

    image_size: height and width to resize to.
    epochs: how many.
    seconds: how long training takes on this machine, estimated.
    reason: why this size, in a few words.
    """

    image_size: tuple[int, int]
    epochs: int
    seconds: float
    reason: str


def plan_photos(
    data: DataConfig,
    network: Callable[[tuple[int, int, int], int], ModelConfig],
    training: TrainConfig,
    *,
    epochs: int | None = None,
    minutes: float = 15.0,
) -> PhotoPlan:
    """Choose the size of own images for the recipe `photos`.

    Images of one size of at most 64 pixels a side keep it. Others become square, of the largest of `PHOTO_SIDES` that
    is not above the median of their shorter sides and at which training takes at most so many minutes on this machine
    by the duration of a few steps; of the smallest where none is.

    Args:
        data: which images; a size given there is kept.
        network: the network's configuration for an image shape and a number of classes.
        training: the training options.
        epochs: their number; by default the recipe's.
        minutes: how long training may take.

    Raises:
        DataError: the images cannot be found or read.
        ModelError: the network cannot be built.
    """
    info = inspect_source(dataclasses.replace(data, image_size=data.image_size or (PHOTO_SIDES[0],) * 2))
    epochs = epochs or RECIPES["photos"].epochs(info.train)

    def seconds(side: tuple[int, int]) -> float:
        shape = (info.image_shape[0], *side)
        return info.train * epochs / training_rate(network(shape, len(info.classes)), training)

    if data.image_size is not None:
        return PhotoPlan(data.image_size, epochs, seconds(data.image_size), "as given")
    sizes = image_sizes(data)
    natural = natural_size(set(sizes) or {(1, 1)})
    if len(sizes) == 1 and natural in sizes:
        return PhotoPlan(natural, epochs, seconds(natural), "the images' own")
    median = statistics.median_low(min(size) for size in sizes.elements()) if sizes else 0
    fitting = [side for side in PHOTO_SIDES if side <= median] or [PHOTO_SIDES[0]]
    too_long = ""
    for side in reversed(fitting):
        needed = seconds((side, side))
        if needed <= 60 * minutes or side == fitting[0]:
            return PhotoPlan((side, side), epochs, needed, f"median of their shorter sides {median}{too_long}")
        too_long = f", {side}x{side} would take {needed / 60:.0f} minutes"
    raise AssertionError("the smallest side is always taken")


def training_rate(network: ModelConfig, training: TrainConfig) -> float:
    """Images per second that a network trains on this machine, by the fastest of a few steps, augmentation included.

    Raises:
        ModelError: the network cannot be built.
        ConfigError: the device is not available.
    """
    device = choose_device(training.device)
    network = dataclasses.replace(network, trunk_weights=None)
    batch = training.batch_size or _BATCH_SIZE
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = build_model(network).place(device).train()
        images = torch.randint(256, (_TIMED_STEPS * batch, *network.image_shape), dtype=torch.uint8)
        split = ImageSplit(images, torch.arange(len(images)) % network.num_classes).to(device)
        lr = default_learning_rate(training.optimizer, network)
        step = TrainingStep(
            model,
            build_optimizer(model, training, lr),
            batch_size=batch,
            steps=_TIMED_STEPS,
            reconstruction_weight=training.reconstruction_weight,
            bfloat16=choose_precision(training.precision, device) == "bfloat16",
            compile="never",
            log=lambda _: None,
        )
        augmentation, generator = parse_augmentation(training.augment, flip=True), torch.Generator(device)
        durations = []
        started = time.perf_counter()
        for drawn in training_batches(split, batch, augmentation, generator, network.num_classes):
            step(drawn.images, drawn.labels).loss.item()  # waits for the device
            durations.append(time.perf_counter() - started)
            started = time.perf_counter()
    return batch / min(durations)
