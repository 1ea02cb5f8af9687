"""Options of the command line, derived from the configurations: a new field of one is an option by itself."""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import tyro

from dualcaps.config import OWN_TEST_SHARE, DataConfig, ModelConfig, TrainConfig
from dualcaps.errors import ConfigError, display_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PluginFiles = Annotated[
    tyro.conf.UseAppendAction[tuple[Path, ...]],
    tyro.conf.arg(
        metavar="FILE",
        help="A Python file that registers networks, trunks, routing methods, data sets or experiments.",
        help_behavior_hint="(repeatable)",
    ),
]
Device = Annotated[
    str,
    tyro.conf.arg(metavar="NAME", help="auto (the GPU if there is one), cpu, cuda, cuda:1, mps, …"),
]
DataDir = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER",
        help="Folder to look into first for the files of a named data set.",
        help_behavior_hint="",
    ),
]
RunFolder = Annotated[
    tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help="A run folder, or a trained network's name.")
]
TestData = Annotated[
    tyro.conf.Positional[str | None],
    tyro.conf.arg(
        metavar="[DATA]",
        help="A data set's name or your own images; by default the run's own test images.",
        help_behavior_hint="",
    ),
]


def check_out_folder(out: Path | None) -> None:
    """Raise ConfigError if `--out` is a file."""
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {display_path(out)}: is a file: choose a folder")


_METAVARS = {
    "data_dir": "FOLDER",
    "image_size": "H W",
    "crop": "H W",
    "value_range": "BLACK WHITE",
    "trunk": "NAME",
    "trunk_weights": "FILE",
    "routing": "NAME",
    "class_weight": "balanced|W…",
    "augment": "NAMES",
    "init_from": "RUN",
    "device": "NAME",
}


def attribute_docs(cls: type) -> dict[str, str]:
    """What the section "Attributes" of a class's docstring says of each attribute, in one line.

    Example:
        >>> attribute_docs(DataConfig)["channels"]
        "1 for grey, 3 for colour; by default the data set's, or colour if any image is in colour."
    """
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n\S", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _options_of(
    name: str,
    config: "type[DataclassInstance]",
    *,
    description: str,
    leave_out: Sequence[str] = (),
    replaced: Mapping[str, tuple[Any, Any]] | None = None,
    always_optional: str | None = None,
) -> type:
    """A dataclass with an option for each field of a configuration.

    Args:
        name: the dataclass's name.
        config: the configuration; options have its fields' types, defaults and documentation.
        description: heads the options in the help.
        leave_out: fields without an option.
        replaced: type and default of single fields.
        always_optional: the help's words for the default, if every option but a flag is None by default.
    """
    docs, hints, replaced = attribute_docs(config), typing.get_type_hints(config), replaced or {}
    options: list[Any] = []
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        if field.name in replaced:
            kind, default = replaced[field.name]
            options.append((field.name, kind, dataclasses.field(default=default)))
            continue
        kind, default, doc = hints[field.name], field.default, docs[field.name]
        default_text = "" if default is None else None  # the documentation says what happens by default
        if kind is bool:
            default_text = ""
            if default is True:  # its flag is --no-…
                doc = f"Do not {doc[0].lower()}{doc[1:]}"
        elif always_optional is not None:
            kind, default, default_text = kind | None, None, f"(default: {always_optional})"
        argument = tyro.conf.arg(help=doc, metavar=_METAVARS.get(field.name), help_behavior_hint=default_text)
        options.append((field.name, Annotated[kind, argument], dataclasses.field(default=default)))
    return dataclasses.make_dataclass(name, options, frozen=True, namespace={"__doc__": description})


def _source(metavar: str) -> Any:
    return Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar=metavar, help=attribute_docs(DataConfig)["source"])
    ]


_PACKED_TEST = Annotated[float, tyro.conf.arg(help="The part of all images held out if there is no test part.")]
_PACKED_RANGE = Annotated[
    tuple[float, float] | None,
    tyro.conf.arg(
        metavar="BLACK WHITE",
        help="Pixel values of black and white in images that are not 8-bit, which need them.",
        help_behavior_hint="",
    ),
]
_PACKED_SIZE = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="H W",
        help="Height and width in pixels to bring the images to; by default their common size if it is at most 64 a "
        "side.",
        help_behavior_hint="",
    ),
]

if TYPE_CHECKING:
    DataOptions: TypeAlias = Any
    NamedDataOptions: TypeAlias = Any
    PackOptions: TypeAlias = Any
    NetworkOptions: TypeAlias = Any
    TrainingOptions: TypeAlias = Any
else:
    _WHAT_IMAGES = "What images are loaded and how they are split."
    DataOptions = _options_of(
        "DataOptions", DataConfig, description=_WHAT_IMAGES, replaced={"source": (_source("[DATA]"), "digits")}
    )
    NamedDataOptions = _options_of(
        "NamedDataOptions",
        DataConfig,
        description=_WHAT_IMAGES,
        replaced={"source": (_source("DATA"), dataclasses.MISSING)},
    )
    PackOptions = _options_of(
        "PackOptions",
        DataConfig,
        description="The size of the images and how they are split.",
        leave_out=("source", "data_dir", "split", "camera", "objects", "extra"),
        replaced={
            "image_size": (_PACKED_SIZE, None),
            "test": (_PACKED_TEST, OWN_TEST_SHARE),
            "value_range": (_PACKED_RANGE, None),
        },
    )
    NetworkOptions = _options_of(
        "NetworkOptions",
        ModelConfig,
        description="Where the network differs from the defaults of its name.",
        leave_out=("name", "image_shape", "num_classes", "options"),
        always_optional="the network's own",
    )
    TrainingOptions = _options_of(
        "TrainingOptions",
        TrainConfig,
        description="Where training differs from the recipe.",
        always_optional="the recipe's",
    )


def given_options(options: NetworkOptions | TrainingOptions) -> dict[str, Any]:
    """The options that were given; the others are left to the network or the recipe.

    Example:
        >>> given_options(NetworkOptions(routing="uniform", decoder=False))
        {'decoder': False, 'routing': 'uniform'}
    """
    return {
        field.name: value
        for field in dataclasses.fields(options)
        if (value := getattr(options, field.name)) != field.default
    }


def check_port(port: int) -> None:
    """Raise ConfigError for a number that is no port to listen on."""
    if not 0 < port < 65_536:
        raise ConfigError(f"--port must be from 1 to 65535, got {port}")


def parse_options(pairs: Sequence[str], option: str = "--options") -> dict[str, Any]:
    """Options of a network, trunk or routing method from `name=value`; values are JSON, otherwise text.

    Args:
        pairs: the texts.
        option: that they were given with.

    Raises:
        ConfigError: a text without an equals sign, or a name given twice.

    Example:
        >>> parse_options(["heads=4", "mode=soft", "sizes=[1, 2]", "bias=false"])
        {'heads': 4, 'mode': 'soft', 'sizes': [1, 2], 'bias': False}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option} {pair}: write NAME=VALUE, such as heads=4")
        if name in options:
            raise ConfigError(f"{option} {name}: is given twice")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
