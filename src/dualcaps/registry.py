"""Registries of networks, trunks, routing methods, data sets and experiments, open to plug-ins.

Each registry is a dictionary from name to `Entry`, filled by a decorator. Plug-ins are Python files
(`load_plugin("mine.py")`, on the command line `--plugin mine.py`) or installed distributions with an
entry point in the group `dualcaps.plugins`, which are imported when a name is not found or all names
are listed.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from dualcaps.errors import ConfigError, DataError, DualcapsError, ModelError, unknown_name

_T = TypeVar("_T")

ENTRY_POINTS = "dualcaps.plugins"


@dataclass(frozen=True)
class Entry:
    """One registered object.

    Attributes:
        value: what was registered: a class, a function or a description.
        origin: where it comes from: "dualcaps", the name of an installed distribution, or a file.
        defaults: values of the configuration that the name stands for.
        lacks: options of the configuration that do not apply to it.
    """

    value: Any
    origin: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


MODELS: dict[str, Entry] = {}
TRUNKS: dict[str, Entry] = {}
ROUTING_METHODS: dict[str, Entry] = {}
DATASETS: dict[str, Entry] = {}
EXPERIMENTS: dict[str, Entry] = {}

_ERRORS: dict[str, type[DualcapsError]] = {
    "model": ModelError,
    "trunk": ModelError,
    "routing method": ModelError,
    "data set": DataError,
    "experiment": ConfigError,
}
_origins: list[str] = []  # of the plug-ins that are being imported, innermost last
_entry_points_loaded = False
_plugin_files: dict[Path, str] = {}


def register_model(name: str, *, lacks: tuple[str, ...] = (), **defaults: Any) -> Callable[[_T], _T]:
    """Register a whole network under a name of `create_model`.

    Args:
        name: the network's name.
        lacks: fields of `ModelConfig` that do not apply to it; setting one is an error.
        **defaults: values of `ModelConfig` fields, and of the network's own options, that the name
            stands for.

    Returns:
        A decorator for a subclass of `Network`, or a function that returns one, called with a
        `ModelConfig` and the network's own options as keyword arguments.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> @register_model("my-network", decoder=False)
        ... def my_network(config):
        ...     module = nn.Sequential(nn.Flatten(), nn.Linear(784, config.num_classes))
        ...     return wrap_module(module, config.image_shape, config.num_classes)
        >>> create_model("my-network", (1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).lengths.shape
        torch.Size([2, 10])
    """
    return _register(MODELS, "model", name, defaults, lacks)


def register_trunk(name: str) -> Callable[[_T], _T]:
    """Register a trunk under a name of `ModelConfig.trunk`.

    Returns:
        A decorator for a function or class that is called with a `ModelConfig`, and with own options as
        keyword arguments, and returns a `torch.nn.Module` that maps images [B, C, H, W] in [0, 1] to a
        feature map [B, channels, rows, columns].

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> @register_trunk("my-trunk")
        ... def my_trunk(config, channels=16):
        ...     return nn.Conv2d(config.image_shape[0], channels, 7, stride=4)
        >>> model = create_model("capsnet", (1, 28, 28), 10, trunk="my-trunk", channels=32)
    """
    return _register(TRUNKS, "trunk", name)


def register_routing(name: str) -> Callable[[_T], _T]:
    """Register a routing method under a name of `route` and `ModelConfig.routing`.

    Returns:
        A decorator for a function `(votes, **options) -> Routing`, or, for a method with parameters, a
        `torch.nn.Module` class constructed with `(parents, children, dim, **options)` whose `forward(votes)`
        returns `Routing`. Votes are float [B, parents, children, dim]. A function or `forward` that has arguments
        named `iterations`, `couplings` and `trace` is given them as in `route`.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> @register_routing("my-routing")
        ... def route_by_mean(votes, scale=1.0):
        ...     return Routing(squash(scale * votes.mean(dim=2)))
        >>> route(torch.ones(2, 10, 100, 16), method="my-routing", scale=2.0).parents.shape
        torch.Size([2, 10, 16])
    """
    return _register(ROUTING_METHODS, "routing method", name)


def register_dataset(name: str) -> Callable[[_T], _T]:
    """Register a data set under a name of `load_data`.

    Returns:
        A decorator for a function without arguments that returns a `dualcaps.data.sources.DataSet`, or for a
        function that returns an `ImageDataset`, called with a `DataConfig`.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> @register_dataset("my-data")
        ... def my_data(config):
        ...     images = np.arange(60 * 144, dtype=np.uint8).reshape(60, 12, 12)
        ...     return ImageDataset.from_arrays(images, ["even", "odd"] * 30)
        >>> load_data("my-data")
        ImageDataset('my-data', 2 classes of 12x12x1: 44 training, 4 validation, 12 test images)
    """
    return _register(DATASETS, "data set", name)


def register_experiment(name: str) -> Callable[[_T], _T]:
    """Register an experiment under a name of `dualcaps reproduce`.

    Returns:
        A decorator for a function without arguments that returns a `dualcaps.study.experiments.Experiment`.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> from dualcaps.study.experiments import Experiment, variant
        >>> @register_experiment("my-experiment")
        ... def my_experiment():
        ...     networks = (variant("capsnet"), variant("capsnet", routing="em"))
        ...     question = "Does EM routing help?"
        ...     return Experiment(question, "not in the paper", networks, data=(("digits", ""),), hours=1)
    """
    return _register(EXPERIMENTS, "experiment", name)


def lookup(registry: dict[str, Entry], kind: str, name: str) -> Entry:
    """The entry of a name; entry points are imported if it is not registered yet.

    Args:
        registry: one of this module's dictionaries.
        kind: what messages call its entries: "model", "trunk", "routing method", "data set", "experiment".
        name: the name.

    Raises:
        ModelError, DataError, ConfigError: by kind, an unknown name; the message names the nearest one.
    """
    if name not in registry:
        load_entry_points()
    if name not in registry:
        raise _ERRORS[kind](unknown_name(kind, name, registry))
    return registry[name]


def load_plugin(path: str | Path) -> None:
    """Import a Python file that registers networks, trunks, routing methods, data sets or experiments.

    A file is imported only once.

    Raises:
        ConfigError: the file does not exist, or importing it fails.

    Example:
        >>> load_plugin("examples/my_routing.py")  # doctest: +SKIP
    """
    file = Path(path).resolve()
    if file in _plugin_files:
        return
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"--plugin {path}: no such Python file")
    name = f"dualcaps_plugin_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        with _importing(str(path)):
            specification.loader.exec_module(module)
    except DualcapsError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    _plugin_files[file] = name


def loaded_plugins() -> tuple[str, ...]:
    """Absolute paths of the plug-in files imported so far."""
    return tuple(map(str, _plugin_files))


def load_entry_points() -> None:
    """Import the plug-ins of installed distributions, once; the others are imported even if one fails.

    Raises:
        ConfigError: a plug-in cannot be imported; the message names its distribution.
    """
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    failed: DualcapsError | None = None
    for point in metadata.entry_points(group=ENTRY_POINTS):
        origin = point.dist.name if point.dist else point.value
        try:
            with _importing(origin):
                point.load()
        except DualcapsError as error:
            failed = failed or error
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            failed = failed or ConfigError(f"plug-in {origin}: {reason}: repair or uninstall it")
            failed.__cause__ = failed.__cause__ or error
    if failed is not None:
        raise failed


def _register(
    registry: dict[str, Entry],
    kind: str,
    name: str,
    defaults: Mapping[str, Any] | None = None,
    lacks: tuple[str, ...] = (),
) -> Callable[[_T], _T]:
    def decorate(value: _T) -> _T:
        # The module that registers, not that of the value: a plug-in may register one of our classes.
        module = sys._getframe(1).f_globals.get("__name__", "__main__")
        ours = module.partition(".")[0] == "dualcaps"
        origin = "dualcaps" if ours else _origins[-1] if _origins else module
        run_again = name in registry and origin == registry[name].origin == "__main__"  # a notebook's cell
        if name in registry and not run_again:
            raise ConfigError(f"{kind} {name!r} is already registered by {registry[name].origin}: choose another name")
        registry[name] = Entry(value, origin, dict(defaults or {}), lacks)
        return value

    return decorate


@contextmanager
def _importing(origin: str):
    """Record `origin` for parts registered meanwhile; remove them if the import fails, so that it can be repeated."""
    registries = (MODELS, TRUNKS, ROUTING_METHODS, DATASETS, EXPERIMENTS)
    before = [set(registry) for registry in registries]
    _origins.append(origin)
    try:
        yield
    except BaseException:
        for registry, known in zip(registries, before, strict=True):
            for name in set(registry) - known:
                if registry[name].origin == origin:  # not parts of dualcaps or of other plug-ins that it imported
                    del registry[name]
        raise
    finally:
        _origins.pop()
