"""A person's own images: a folder of class folders, a .npz file, Parquet files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualcaps.data.catalog import DataOptions, Labelled
from dualcaps.data.formats import name_classes, read_npz, read_parquet
from dualcaps.data.images import Encoded, inspect_images, list_classes, read_images, resize, to_grey
from dualcaps.data.cache import Content, Source
from dualcaps.errors import DataError

_LARGEST_KEPT_SIDE = 64
_RESIZED_SIDE = 32
_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def own_source(path: Path, options: DataOptions) -> Source:
    """A person's own images, found but not read.

    Raises:
        DataError: the path holds no images in a form that is read.
    """
    if path.is_file() and path.suffix == ".npz":
        return Source([path], _relevant(options), lambda: _read_npz(path, options))
    if path.is_file() and path.suffix == ".parquet":
        return Source([path], _relevant(options), lambda: _read_parquet({"train": [path]}, options))
    if path.is_file():
        raise DataError(f"{path}: neither a folder nor a .npz or .parquet file")
    if parquet := list_parquet(path):
        parts: dict[str, list[Path]] = {}
        for file in parquet:
            parts.setdefault(_part_of(file, path) if len(parquet) > 1 else "train", []).append(file)
        if "train" not in parts:
            raise DataError(f"{path}: no Parquet file of a training part (train-….parquet)")
        return Source(parquet, _relevant(options), lambda: _read_parquet(parts, options))
    listed = {part: list_classes(folder) for part, folder in part_folders(path).items()}
    classes = (*listed["train"],)
    if len(classes) < 2:
        raise DataError(f"{path}: only one class ({', '.join(classes)}): at least two class sub-folders are needed")
    for part, by_class in listed.items():
        if unknown := sorted(set(by_class) - set(classes)):
            raise DataError(f"{path}: class {unknown[0]!r} of the {part} part is missing from the training part")
    files = [file for by_class in listed.values() for images in by_class.values() for file in images]
    return Source(files, _relevant(options), lambda: _read_folder(listed, classes, options))


def list_parquet(folder: Path) -> list[Path]:
    """The Parquet files of a folder and of its sub-folders, sorted."""
    return sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in folder.glob(pattern))


def _part_of(file: Path, root: Path) -> str:
    """The part that a Parquet file belongs to, by its folder's name or a word of its own."""
    words = [*file.relative_to(root).parent.parts, *re.split(r"[-_.]", file.stem)]
    parts = {part for word in words if (part := _PART_NAMES.get(word.lower()))}
    if len(parts) != 1:
        raise DataError(f"{file}: its name does not tell train, validation or test: name it like train-….parquet")
    return parts.pop()


def part_folders(folder: Path) -> dict[str, Path]:
    """The sub-folder of each part; a folder of classes alone is all training part.

    Raises:
        DataError: two folders bear names of the same part.
    """
    parts: dict[str, Path] = {}
    for child in sorted(folder.iterdir()):
        part = _PART_NAMES.get(child.name.lower())
        if part and child.is_dir() and any(grandchild.is_dir() for grandchild in child.iterdir()):
            if part in parts:
                raise DataError(f"{folder}: {parts[part].name} and {child.name} are both the {part} part: keep one")
            parts[part] = child
    return parts if "train" in parts else {"train": folder}


def read_labelled(
    by_class: dict[str, list[Path]], classes: tuple[str, ...], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The images of class folders at a shape (channels, height, width), and their class numbers."""
    paths = [path for images in by_class.values() for path in images]
    labels = [classes.index(name) for name, images in by_class.items() for _ in images]
    return read_images(paths, shape), np.array(labels)


def _relevant(options: DataOptions) -> dict[str, object]:
    """The options that reading depends on; where the files are is not one of them."""
    return {"own": True, "image_size": options.image_size, "channels": options.channels}


def _read_folder(listed: dict[str, dict[str, list[Path]]], classes: tuple[str, ...], options: DataOptions) -> Content:
    files = [file for by_class in listed.values() for images in by_class.values() for file in images]
    shape = _shape(files, options, "")
    return Content({part: read_labelled(by_class, classes, shape) for part, by_class in listed.items()}, classes, None)


def _read_parquet(parts: dict[str, list[Path]], options: DataOptions) -> Content:
    encoded: dict[str, list[bytes]] = {}
    labels: dict[str, np.ndarray] = {}
    names = None
    for part, files in parts.items():
        tables = [read_parquet(file) for file in files]
        encoded[part] = [image for images, _, _ in tables for image in images]
        labels[part] = np.concatenate([numbers for _, numbers, _ in tables])
        names = tables[0][2] if names is None else names
    first = parts["train"][0]
    classes, numbers = name_classes(labels, names, first)
    shape = _shape([image for images in encoded.values() for image in images], options, str(first))
    read = {part: (read_images(images, shape, str(parts[part][0])), numbers[part]) for part, images in encoded.items()}
    return Content(read, classes, None)


def _read_npz(path: Path, options: DataOptions) -> Content:
    parts, classes = read_npz(path)
    read: Labelled = {}
    size = options.image_size or _natural_size({images.shape[2:] for images, _ in parts.values()})
    for part, (images, labels) in parts.items():
        if images.shape[2:] != size:
            images = np.stack([resize(np.ascontiguousarray(image), size) for image in images])
        read[part] = (to_grey(images) if options.channels == 1 and images.shape[1] == 3 else images), labels
    return Content(read, classes, None)


def _shape(images: Sequence[Encoded], options: DataOptions, name: str) -> tuple[int, int, int]:
    sizes, colour = inspect_images(images, name)
    height, width = options.image_size or _natural_size(sizes)
    return options.channels or (3 if colour else 1), height, width


def _natural_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= _LARGEST_KEPT_SIDE:
        return size
    return _RESIZED_SIDE, _RESIZED_SIDE
