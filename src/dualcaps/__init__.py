"""Dual-attention capsule networks: train, evaluate and use the networks of Huang & Zhou 2020."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualcaps.config import DataConfig as DataConfig
    from dualcaps.config import ModelConfig as ModelConfig
    from dualcaps.config import TrainConfig as TrainConfig
    from dualcaps.data.augment import Augmentation as Augmentation
    from dualcaps.data.dataset import ImageDataset as ImageDataset
    from dualcaps.data.dataset import ImageSplit as ImageSplit
    from dualcaps.data.load import load_data as load_data
    from dualcaps.data.sources import DataSet as DataSet
    from dualcaps.errors import ConfigError as ConfigError
    from dualcaps.errors import DataError as DataError
    from dualcaps.errors import DualcapsError as DualcapsError
    from dualcaps.errors import ModelError as ModelError
    from dualcaps.errors import RunError as RunError
    from dualcaps.estimator import CapsNetClassifier as CapsNetClassifier
    from dualcaps.hub import from_pretrained as from_pretrained
    from dualcaps.hub import push_to_hub as push_to_hub
    from dualcaps.hub import save_pretrained as save_pretrained
    from dualcaps.inference import Evaluation as Evaluation
    from dualcaps.inference import evaluate as evaluate
    from dualcaps.inference import load_model as load_model
    from dualcaps.inference import predict as predict
    from dualcaps.losses import cross_entropy as cross_entropy
    from dualcaps.losses import margin_loss as margin_loss
    from dualcaps.losses import reconstruction_loss as reconstruction_loss
    from dualcaps.models import MODELS as MODELS
    from dualcaps.models import CapsNet as CapsNet
    from dualcaps.models import CapsOutput as CapsOutput
    from dualcaps.models import Intermediates as Intermediates
    from dualcaps.models import Network as Network
    from dualcaps.models import count_parameters as count_parameters
    from dualcaps.models import create_model as create_model
    from dualcaps.models import list_models as list_models
    from dualcaps.models import wrap_module as wrap_module
    from dualcaps.registry import load_plugin as load_plugin
    from dualcaps.registry import register_dataset as register_dataset
    from dualcaps.registry import register_experiment as register_experiment
    from dualcaps.registry import register_model as register_model
    from dualcaps.registry import register_routing as register_routing
    from dualcaps.registry import register_trunk as register_trunk
    from dualcaps.routing import Routing as Routing
    from dualcaps.routing import route as route
    from dualcaps.routing import squash as squash
    from dualcaps.runs.run import Run as Run
    from dualcaps.training.callbacks import Callback as Callback
    from dualcaps.training.fit import Result as Result
    from dualcaps.training.fit import fit as fit

_MODULES = {
    "config": ("DataConfig", "ModelConfig", "TrainConfig"),
    "data.augment": ("Augmentation",),
    "data.dataset": ("ImageDataset", "ImageSplit"),
    "data.load": ("load_data",),
    "data.sources": ("DataSet",),
    "errors": ("ConfigError", "DataError", "DualcapsError", "ModelError", "RunError"),
    "estimator": ("CapsNetClassifier",),
    "hub": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "inference": ("Evaluation", "evaluate", "load_model", "predict"),
    "losses": ("cross_entropy", "margin_loss", "reconstruction_loss"),
    "models": (
        *("CapsNet", "CapsOutput", "Intermediates", "Network", "count_parameters", "create_model", "list_models"),
        *("wrap_module", "MODELS"),
    ),
    "registry": (
        *("load_plugin", "register_dataset", "register_experiment", "register_model", "register_routing"),
        "register_trunk",
    ),
    "routing": ("Routing", "route", "squash"),
    "runs.run": ("Run",),
    "training.callbacks": ("Callback",),
    "training.fit": ("Result", "fit"),
}
_HOMES = {name: f"dualcaps.{module}" for module, names in _MODULES.items() for name in names}
_FORMER_NAMES = {"ImageData": "ImageDataset", "Part": "ImageSplit"}

# Without the estimator, for which `import *` would import scikit-learn.
__all__ = sorted([*(_HOMES.keys() - {"CapsNetClassifier"}), "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package takes no time."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("dualcaps")
    wanted = _FORMER_NAMES.get(name, name)
    if wanted not in _HOMES:
        raise AttributeError(f"module 'dualcaps' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[wanted]), wanted)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*_HOMES, "__version__"])
