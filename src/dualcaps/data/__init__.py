"""Pixels: `load_data` is the one door to every data set and to a person's own images."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dualcaps.data.catalog import DATA_SETS as DATA_SETS
from dualcaps.data.catalog import DataSet, find_files
from dualcaps.data.formats import inspect_images, list_classes, read_idx, read_images
from dualcaps.data.pipeline import Augmentation as Augmentation
from dualcaps.data.pipeline import Part as Part
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


@dataclass(frozen=True)
class DataOptions:
    """What a data set is loaded with; kept in a run, so that it can be loaded again.

    Attributes:
        source: a name in `DATA_SETS`, or the path of a folder of class sub-folders.
        data_dir: the folder looked into first for the files of a named data set.
        image_size: height and width in pixels; None keeps the images' own size where they all
            have one of at most 64 pixels a side, and takes 32x32 otherwise.
        channels: 1 (grey) or 3 (colour); None takes colour where any image has it.
        validation: the part of the training images held out, above 0 and below 1.
        test: the part of all images held out where the data set has no test part of its own.
        split_seed: seed of the held-out choice, at least 0.
    """

    source: str = "digits"
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 0


@dataclass(frozen=True)
class ImageData:
    """A data set, split and ready to train on.

    Attributes:
        name: the data set's name, or the folder's.
        train, validation, test: its parts, without an image in common.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class, as far as is known.
        options: what it was loaded with.
        provenance: where the files came from and the SHA-256 of what was loaded.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    flip: bool
    options: DataOptions
    provenance: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load_data(
    source: str | Path = "digits",
    *,
    data_dir: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
) -> ImageData:
    """Load a data set by name, or a folder of class sub-folders of images.

    A folder may hold `train/` and, if wanted, `val/` and `test/` with the class folders in
    each; parts that are missing are split off class by class. See `DataOptions` for the
    arguments.

    Raises:
        DataError: an unknown name, missing or damaged files, a folder that cannot be used, or
            an option outside its range.
    """
    options = DataOptions(
        os.fspath(source),
        None if data_dir is None else str(Path(data_dir).absolute()),
        None if image_size is None else (image_size[0], image_size[1]),
        channels,
        validation,
        test,
        split_seed,
    )
    _check(options)
    if options.source in DATA_SETS:
        data_set = DATA_SETS[options.source]
        labelled, found = _load_digits() if data_set.name == "digits" else _load_idx(data_set, options)
        labelled = {part: _brought_to(part_data, options) for part, part_data in labelled.items()}
        name, classes, flip = data_set.name, data_set.classes, data_set.flip
    elif Path(options.source).is_dir():
        folder = Path(options.source).resolve()
        options = dataclasses.replace(options, source=str(folder))
        labelled, classes = _load_folder(folder, options)
        name, flip, found = folder.name, False, str(folder)
    else:
        raise unknown_source(options.source)
    parts = _split(labelled, classes, options)
    return ImageData(
        name, **parts, classes=classes, flip=flip, options=options, provenance=_provenance(found, parts, classes)
    )


def load_labelled_folder(folder: str | Path, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> Part:
    """Labelled images of a folder of class sub-folders, for a network that knows its classes.

    Of a folder with `train/` and `test/` the test part, otherwise all of it; it need not hold
    every class.

    Raises:
        DataError: no such folder, images that cannot be read, or a class not in `classes`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise unknown_source(str(folder))
    root = _part_folders(root).get("test", root)
    by_class = list_classes(root)
    if unknown := sorted(set(by_class) - set(classes)):
        raise DataError(f"{root}: class {unknown[0]!r} is not one of the run's: {', '.join(classes)}")
    return _part(*_read_classes(by_class, classes, image_shape))


def unknown_source(source: str) -> DataError:
    """The error for a source that is neither a data set's name nor a folder."""
    return DataError(
        f"unknown data set {source!r}: choose one of {', '.join(DATA_SETS)}, or name an existing folder of class "
        "sub-folders"
    )


def _check(options: DataOptions) -> None:
    for option, value in (("validation", options.validation), ("test", options.test)):
        if not 0 < value < 1:
            raise DataError(f"{option} must be above 0 and below 1, got {value}")
    if options.split_seed < 0:
        raise DataError(f"split_seed must be at least 0, got {options.split_seed}")
    if options.channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {options.channels}")
    if options.image_size is not None and min(options.image_size) < 1:
        raise DataError(f"image_size must be two numbers of pixels of at least 1, got {options.image_size}")


_Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""For each part that the source has: images uint8 [N, C, H, W] and labels."""


def _load_digits() -> tuple[_Labelled, str]:
    import sklearn.datasets  # takes a second to import

    bunch: Any = sklearn.datasets.load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)) for image in grey]
    return {"train": (np.stack(large)[:, None], bunch.target)}, "scikit-learn, enlarged from 8x8 to 28x28"


def _load_idx(data_set: DataSet, options: DataOptions) -> tuple[_Labelled, str]:
    paths = find_files(data_set, Path(options.data_dir) if options.data_dir else None)
    parts = {}
    for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
        images, labels = read_idx(image_path), read_idx(label_path)
        if images.ndim != 3 or 0 in images.shape:
            raise DataError(f"{image_path}: holds an array of shape {images.shape}, not images")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{label_path}: {labels.size} labels for the {len(images)} images in {image_path.name}")
        if labels.max() >= len(data_set.classes):
            raise DataError(f"{label_path}: label {labels.max()} is not one of the {len(data_set.classes)} classes")
        parts[part] = images[:, None], labels
    if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
        raise DataError(f"{paths[2]}: images of another size than in {paths[0].name}")
    return parts, str(paths[0].parent)


def _load_folder(folder: Path, options: DataOptions) -> tuple[_Labelled, tuple[str, ...]]:
    listed = {part: list_classes(part_folder) for part, part_folder in _part_folders(folder).items()}
    classes = (*listed["train"],)
    if len(classes) < 2:
        raise DataError(f"{folder}: only one class ({', '.join(classes)}): at least two class sub-folders are needed")
    for part, by_class in listed.items():
        if unknown := sorted(set(by_class) - set(classes)):
            raise DataError(f"{folder}: class {unknown[0]!r} of the {part} part is missing from the training part")
    sizes, colour = inspect_images(
        [path for by_class in listed.values() for images in by_class.values() for path in images]
    )
    height, width = options.image_size or _natural_size(sizes)
    shape = (options.channels or (3 if colour else 1), height, width)
    return {part: _read_classes(by_class, classes, shape) for part, by_class in listed.items()}, classes


def _read_classes(
    by_class: dict[str, list[Path]], classes: tuple[str, ...], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    paths = [path for images in by_class.values() for path in images]
    labels = [classes.index(name) for name, images in by_class.items() for _ in images]
    return read_images(paths, shape), np.array(labels)


def _part_folders(folder: Path) -> dict[str, Path]:
    """The sub-folder of each part; a folder of classes alone is all training part."""
    parts: dict[str, Path] = {}
    for child in sorted(folder.iterdir()):
        part = _PART_NAMES.get(child.name.lower())
        if part and child.is_dir() and any(grandchild.is_dir() for grandchild in child.iterdir()):
            if part in parts:
                raise DataError(f"{folder}: {parts[part].name} and {child.name} are both the {part} part: keep one")
            parts[part] = child
    return parts if "train" in parts else {"train": folder}


def _natural_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= _LARGEST_KEPT_SIDE:
        return size
    return _RESIZED_SIDE, _RESIZED_SIDE


def _brought_to(labelled: tuple[np.ndarray, np.ndarray], options: DataOptions) -> tuple[np.ndarray, np.ndarray]:
    """Grey images at the size and with the channels asked for."""
    images, labels = labelled
    if options.image_size is not None and images.shape[2:] != options.image_size:
        height, width = options.image_size
        shrinks = images.shape[2] >= height and images.shape[3] >= width
        how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        images = np.stack([np.asarray(Image.fromarray(image[0]).resize((width, height), how)) for image in images])
        images = images[:, None]
    return (images.repeat(3, axis=1) if options.channels == 3 else images), labels


def _split(labelled: _Labelled, classes: tuple[str, ...], options: DataOptions) -> dict[str, Part]:
    parts = dict(labelled)
    for part, fraction in (("test", options.test), ("validation", options.validation)):
        if part not in parts:
            images, labels = parts["train"]
            kept, held = stratified_split(labels, fraction, options.split_seed, classes)
            parts["train"], parts[part] = (images[kept], labels[kept]), (images[held], labels[held])
    return {part: _part(*parts[part]) for part in ("train", "validation", "test")}


def _part(images: np.ndarray, labels: np.ndarray) -> Part:
    return Part(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept and held out, both sorted: `fraction` of each class, but at least one image.

    Raises:
        DataError: a class with a single image, which cannot be split.
    """
    random = np.random.default_rng(seed)
    held = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise DataError(f"class {name!r} has too few images to hold some out: at least 3 are needed")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(random.permutation(members)[: max(count, 0)])
    out = np.zeros(len(labels), bool)
    out[np.concatenate(held)] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def _provenance(found: str, parts: dict[str, Part], classes: tuple[str, ...]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps([classes, [list(part.images.shape) for part in parts.values()]]).encode())
    for part in parts.values():
        digest.update(part.images.numpy().data)
        digest.update(part.labels.numpy().data)
    return {"from": found, "sha256": digest.hexdigest(), "images": {name: len(part) for name, part in parts.items()}}
