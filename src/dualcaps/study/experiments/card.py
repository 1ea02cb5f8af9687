"""Experiment cards: networks as variants of registered ones, and the data sets they are trained on."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dualcaps.config import ModelConfig, Split
from dualcaps.models import build_on_meta, configure, count_parameters, default_switches, describe_switches
from dualcaps.registry import DATASETS


class DataKey(NamedTuple):
    """The identity of a data set.

    source: a data set's name, or the name of a folder or file of own images.
    split: how test images are chosen; "" for the data set's default.
    place: distinguishes own images of the same name in several places; "" for named data sets.
    """

    source: str
    split: str = ""
    place: str = ""

    def __str__(self) -> str:
        name = f"{self.source} (own)" if self.place and self.source in DATASETS else self.source
        return f"{name} ({self.split})" if self.split else name


@dataclass(frozen=True)
class Variant:
    """A registered network and its differing switches: the identity of networks in a study.

    Attributes:
        model: the registered name.
        switches: fields of `ModelConfig`, or options, that differ from the name's defaults, in the order of the
            fields. Switches equal to their defaults are dropped, so that equal networks compare equal.
    """

    model: str
    switches: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        usual = default_switches(self.model)
        order = {name: number for number, name in enumerate(usual)}
        differing = [(name, value) for name, value in self.switches if name not in usual or usual[name] != value]
        differing.sort(key=lambda switch: (order.get(switch[0], len(order)), switch[0]))
        object.__setattr__(self, "switches", tuple(differing))

    @classmethod
    def of(cls, config: ModelConfig) -> "Variant":
        """The variant of a configuration, independent of image shape and classes."""
        usual = default_switches(config.name)
        return cls(config.name, (*((name, getattr(config, name)) for name in usual), *config.options))

    def __str__(self) -> str:
        return ", ".join([self.model, *describe_switches(dict(self.switches))])

    @property
    def plain(self) -> bool:
        """Whether all switches have their defaults."""
        return not self.switches

    def configure(self, image_shape: tuple[int, int, int], classes: int) -> ModelConfig:
        """The network's configuration for some images."""
        return configure(self.model, image_shape, classes, **dict(self.switches))


@dataclass(frozen=True)
class Matched:
    """A network widened to have as many parameters as another.

    Attributes:
        variant: the network.
        other: the network to match.
    """

    variant: Variant
    other: Variant

    def __str__(self) -> str:
        return f"{self.variant}, as large as {self.other}"

    def configure(self, image_shape: tuple[int, int, int], classes: int) -> ModelConfig:
        """The configuration with the nearest number of parameters."""
        width = width_to_match(self.variant.model, self.other.model, image_shape, classes)
        return variant(self.variant.model, **dict(self.variant.switches), width=width).configure(image_shape, classes)


def variant(model: str, **switches: Any) -> Variant:
    """A variant by its model and switches."""
    return Variant(model, tuple(switches.items()))


@functools.cache
def width_to_match(model: str, other: str, image_shape: tuple[int, int, int], classes: int) -> int:
    """The width at which `model` has the number of parameters nearest to that of `other`."""

    def count(name: str, **switches: Any) -> int:
        return count_parameters(build_on_meta(configure(name, image_shape, classes, **switches)))

    wanted = count(other)
    # The number of parameters is a polynomial of the second degree in the width.
    widths = np.array([16, 64, 256])
    polynomial = np.polyfit(widths, [count(model, width=int(width)) for width in widths], 2)
    root = max(np.roots(polynomial - [0, 0, wanted]).real)
    near = (max(1, math.floor(root)), max(1, math.ceil(root)))
    return min(near, key=lambda width: abs(count(model, width=width) - wanted))


Place = tuple[str, Split | Literal[""]]
"""A data set and its split, "" for its own."""


@dataclass(frozen=True)
class Experiment:
    """A card: the question, data sets, networks, and the paper's answer.

    Attributes:
        asks: the question.
        printed: the paper's answer.
        networks: the networks to train.
        data: data sets, each with its split ("" for the default).
        any_data: whether other data sets, own images included, can be chosen.
        control: whether it is a control that the paper does not have.
        hours: estimated duration of 5 seeds of 100 epochs with both protocols, two runs at a time on 2 cores of
            an Intel Xeon with AMX, from measured epochs.
    """

    asks: str
    printed: str
    networks: tuple[Variant | Matched, ...]
    data: tuple[Place, ...]
    any_data: bool = False
    control: bool = False
    hours: float = field(kw_only=True)


CNN, CAPSNET, CONV_ATT, CAPS_ATT, DA_CAPSNET = (
    Variant(name) for name in ("cnn", "capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet")
)
FOUR = (CAPSNET, CONV_ATT, CAPS_ATT, DA_CAPSNET)
"""The paper's four networks."""
ADDITIVE = variant("da-capsnet", gate="additive")

EVERYWHERE: tuple[Place, ...] = (
    *(("digits", ""), ("coil-20", ""), ("coil-20", "views"), ("mnist", ""), ("fashion-mnist", "")),
    *(("smallnorb", ""), ("svhn", ""), ("cifar-10", "")),
)
"""All data sets."""
CONTROLLED: tuple[Place, ...] = (("digits", ""), ("coil-20", "views"), ("fashion-mnist", ""))
"""The data sets of the controls."""


def data_key(source: str, split: str | None = None, place: str = "") -> DataKey:
    """The key of a data set by its name, or of own images by their path or name."""
    if source in DATASETS and not place:
        return DataKey(source, split or "")
    path = Path(source)
    name = path.name.removesuffix(path.suffix if path.suffix in (".npz", ".parquet") else "")
    return DataKey(name, split or "", place)


def as_mapping(experiments: Mapping[str, Any]) -> dict[str, Experiment]:
    """The cards of registered experiments, by name."""
    return {name: entry.value() for name, entry in experiments.items()}
