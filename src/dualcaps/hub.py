"""Trained networks as folders in the layout of the Hugging Face hub: saved, loaded, uploaded.

    config.json         the network's configuration, classes and preprocessing
    model.safetensors   weights
    README.md           model card

Nothing that is loaded is unpickled.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dualcaps.config import ModelConfig, from_json, to_json
from dualcaps.errors import ConfigError, ModelError, RunError, first_line
from dualcaps.inference import choose_device
from dualcaps.models import Network, build_model
from dualcaps.runs.files import new_folder, write_bytes, write_json, write_text

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
"""Version of the folder's layout."""


def save_pretrained(
    model: Network, folder: str | Path, *, card: str = "", half: bool = False, facts: Mapping[str, Any] | None = None
) -> Path:
    """Save a network as a folder.

    Args:
        model: the network.
        folder: a folder that does not exist or is empty; it appears complete or not at all.
        card: the text of the model card.
        half: whether weights are stored in half precision, which takes half the space.
        facts: what else `config.json` is to hold, such as the data and the accuracy.

    Raises:
        RunError: the folder exists and is not empty.
        ModelError: the network is a wrapped module, which no configuration describes.

    Example:
        >>> from dualcaps import create_model
        >>> model = create_model("capsnet", (1, 28, 28), num_classes=10)
        >>> folder = save_pretrained(model, Path(tempfile.mkdtemp()) / "digits", card="# Digits")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists already: choose another folder or remove it")
    try:
        build_model(model.config)
    except ModelError as error:
        raise ModelError(f"a network that is not registered cannot be saved by its configuration: {error}") from error
    weights = {
        name: tensor.detach().cpu().contiguous().to(torch.half if half and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    config = {
        "format": FORMAT,
        "library_name": "dualcaps",
        "model": to_json(model.config),
        "classes": list(model.classes),
        "value_range": model.value_range,
        "preprocessing": preprocessing(model),
        **(facts or {}),
    }
    with new_folder(folder) as draft:
        write_json(draft / CONFIG, config)
        write_bytes(draft / WEIGHTS, safetensors.torch.save(weights))
        write_text(draft / CARD, card)
    return folder


def preprocessing(model: Network) -> str:
    """How images are brought to the network's input, in one sentence."""
    channels, height, width = model.config.image_shape
    black, white = model.value_range or (0, 255)
    kind = "grey" if channels == 1 else "colour" if channels == 3 else f"{channels}-channel"
    scaled = (
        "" if (black, white) == (0, 255) else f", where 0 stands for {black:g} in the original and 255 for {white:g}"
    )
    return (
        f"{kind} images of {height}x{width} pixels, uint8 from 0 (black) to 255 (white){scaled}; all else is done in "
        "the network"
    )


def from_pretrained(source: str | Path, *, device: str = "auto", revision: str | None = None) -> Network:
    """Load a network from a folder, or from the Hugging Face hub.

    Args:
        source: a folder that `save_pretrained` wrote, or a repository's name on the hub, such as "user/name".
        device: see `dualcaps.inference.choose_device`.
        revision: of the repository.

    Raises:
        RunError: the folder is incomplete or damaged, or its weights are not those of its configuration.
        ModelError: the network is not registered.
        ConfigError: huggingface_hub is not installed, or the repository cannot be loaded.

    Example:
        >>> from dualcaps import create_model
        >>> folder = save_pretrained(create_model("capsnet"), Path(tempfile.mkdtemp()) / "model")
        >>> from_pretrained(folder).config.name
        'capsnet'
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), revision)
    config = _read_config(folder)
    model = build_model(config["model"])
    model.classes, model.value_range = config["classes"], config["value_range"]
    file = folder / WEIGHTS
    try:
        weights = safetensors.torch.load_file(file)
    except FileNotFoundError as error:
        raise RunError(f"{folder}: {WEIGHTS} is missing: save or download it again") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{file}: damaged, or not in the format safetensors ({error}): save or download it again"
        ) from error
    own = model.state_dict()
    odd = sorted(own.keys() ^ weights.keys()) + [
        name for name in own if name in weights and own[name].shape != weights[name].shape
    ]
    if odd:
        raise RunError(
            f"{file}: not the weights of the network in {CONFIG} ({odd[0]} differs): save or download it again"
        )
    if any(not tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point()):
        raise RunError(f"{file}: weights that are not finite numbers: save or download it again")
    model.load_state_dict(weights)
    return model.place(choose_device(device)).eval()


def push_to_hub(model: Network, name: str, *, private: bool = True, **options: Any) -> str:
    """Upload a network to the Hugging Face hub; returns its address.

    Args:
        model: the network.
        name: the repository, such as "user/name"; it is created if it does not exist.
        private: whether a repository that is created is private.
        **options: as for `save_pretrained`.

    Raises:
        ConfigError: huggingface_hub is not installed, or the upload failed.

    Example:
        >>> push_to_hub(model, "user/digits", card="# Digits")  # doctest: +SKIP
        'https://huggingface.co/user/digits'
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as parent:
        folder = save_pretrained(model, Path(parent) / "model", **options)
        try:
            hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=str(folder))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name}: cannot be uploaded: {first_line(error)}") from error
    return f"https://huggingface.co/{name}"


def _download(name: str, revision: str | None) -> Path:
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise RunError(f"{name}: no such folder")
    try:
        return Path(_hub().snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: no such folder, and not found on the hub: {first_line(error)}") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("the Hugging Face hub needs huggingface_hub: pip install 'dualcaps[hub]'") from error
    return huggingface_hub


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{file}: format {content['format']}: use the dualcaps version that wrote it")
        model = from_json(ModelConfig, content["model"])
        classes = tuple(map(str, content["classes"]))
        value_range = content["value_range"]
        known = None if value_range is None else (float(value_range[0]), float(value_range[1]))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: {CONFIG} is missing: save or download it again") from error
    except RunError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"{file}: damaged ({error}): save or download it again") from error
    if len(classes) != model.num_classes:
        raise RunError(f"{file}: {len(classes)} class names for {model.num_classes} classes: save or download it again")
    return {"model": model, "classes": classes, "value_range": known}
