"""Pixels: `load_data` is the one door to every data set and to a person's own images."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dualcaps.data.catalog import DATA_SETS as DATA_SETS
from dualcaps.data.catalog import DataOptions as DataOptions
from dualcaps.data.catalog import (
    DataSet,
    cache_folder,
    checksum,
    find_files,
    is_official,
    missing,
)
from dualcaps.data.catalog import Split as Split
from dualcaps.data.download import fetch
from dualcaps.data.images import list_classes
from dualcaps.data.images import list_images as list_images
from dualcaps.data.sources.folder import list_parquet, own_source, part_folders, read_labelled
from dualcaps.data.cache import Content, Source, hash_content, load_packed, peek
from dualcaps.data.batches import Augmentation as Augmentation
from dualcaps.data.batches import Part as Part
from dualcaps.errors import DataError


@dataclass(frozen=True)
class ImageData:
    """A data set, split and ready to train on.

    Attributes:
        name: the data set's name, or the folder's.
        train, validation, test: its parts, without an image in common.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class, as far as is known.
        batch_size: images a step in the paper's recipe.
        options: what it was loaded with.
        provenance: where the files came from, whether they are the official ones, and the SHA-256
            of what was loaded and how it was split.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    flip: bool
    batch_size: int
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
    test: float | None = None,
    split_seed: int = 0,
    split: Split | None = None,
    camera: Literal["left", "right", "both"] | None = None,
    objects: int | None = None,
    extra: bool = False,
    download: bool = True,
) -> ImageData:
    """Load a data set by name, or a person's own images.

    A named set's files are looked for as `dualcaps.data.catalog.find_files` says, and fetched into
    the user cache where they are nowhere. Own images are a folder of class sub-folders (perhaps
    below `train/`, `val/` and `test/`), a `.npz` file, or a Parquet file or folder; parts that are
    missing are split off class by class. What was read once is kept in the user cache and mapped
    from there the next time. See `DataOptions` for the arguments; without `download` nothing is fetched.

    Raises:
        DataError: an unknown name, missing or damaged files, images that cannot be used, or an
            option outside its range.
    """
    options = _options(
        source,
        data_dir=data_dir,
        image_size=image_size,
        channels=channels,
        validation=validation,
        test=test,
        split_seed=split_seed,
        split=split,
        camera=camera,
        objects=objects,
        extra=extra,
    )
    images, found = _find(options, download=download)
    content, sha256 = load_packed(images, cache_folder())
    return _image_data(options, content, sha256, found)


def _image_data(options: DataOptions, content: Content, sha256: str, found: str) -> ImageData:
    """What was read, split and brought to the channels that the networks take."""
    data_set = DATA_SETS.get(options.source)
    wanted_channels = options.channels or (data_set.channels if data_set else None)
    parts = _split(content, options)
    if wanted_channels == 3 and content.parts["train"][0].shape[1] == 1:
        parts = {part: Part(data.images.expand(-1, 3, -1, -1), data.labels) for part, data in parts.items()}
    identity = [sha256, wanted_channels, options.validation, options.test, options.split_seed]
    return ImageData(
        options.source if data_set else Path(options.source).stem,
        **parts,
        classes=content.classes,
        flip=data_set.flip if data_set else False,
        batch_size=data_set.batch_size if data_set else 128,
        options=options,
        provenance={
            "from": found,
            "official": content.official,
            "sha256": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            "images": {part: len(data) for part, data in parts.items()},
        },
    )


class CheckedFile(NamedTuple):
    """A file of a data set: its SHA-256 (of what it unpacks to) and whether it is an official one."""

    path: Path
    checksum: str
    verdict: Literal["official", "not official", "own"]


def check_data(source: str | Path, **options: Any) -> tuple[ImageData, list[CheckedFile]]:
    """Read all of a data set anew, whatever is in the cache, and compare its files' checksums.

    Takes what `load_data` takes; fetches nothing and leaves the cache alone.

    Raises:
        DataError: as `load_data`.
    """
    checked = _options(source, **options)
    images, found = _find(checked, download=False)
    content = images.read()

    def verdict(path: Path) -> Literal["official", "not official", "own"]:
        if checked.source not in DATA_SETS:
            return "own"
        return "official" if is_official(checked.source, path) else "not official"

    files = [CheckedFile(path, checksum(path), verdict(path)) for path in images.files]
    return _image_data(checked, content, hash_content(content), found), files


def data_state(name: str, data_dir: str | Path | None = None) -> str:
    """Where a named data set is and whether it is official, in words; nothing is read or fetched."""
    options = _options(name, data_dir=data_dir)
    if DATA_SETS[name].folders and find_files(DATA_SETS[name], options) is None:
        return "not found"
    images, found = _find(options, download=False)
    if not DATA_SETS[name].folders:
        return f"embedded ({found})"
    content = peek(images, cache_folder())
    verdict = "not checked yet" if content is None else "official" if content.official else "not official"
    return f"{found} ({verdict})"


def get_data(name: str, *, extra: bool = False) -> Path | str:
    """Fetch a named data set's files into the user cache; the folder they are in.

    Raises:
        DataError: an unknown name, or files that cannot be fetched.
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    if not data_set.downloads:
        return f"{name} comes with scikit-learn: nothing to fetch"
    if found := find_files(data_set, DataOptions(name, extra=extra)):
        return f"{found.paths[0].parent} (it was there already)"
    try:
        return fetch(data_set, extra=extra)
    except DataError as error:
        raise missing(data_set, DataOptions(name, extra=extra), str(error)) from error


def load_labelled(source: str | Path, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> Part:
    """A person's own labelled images, for a network that knows its classes.

    Their test part if they have one, otherwise all of them; they need not show every class.

    Raises:
        DataError: nothing there, images that cannot be read, or a class not in `classes`.
    """
    root = Path(source)
    if not root.exists():
        raise unknown_source(str(source))
    if root.is_file() or list_parquet(root):
        channels, height, width = image_shape
        content = own_source(root, DataOptions(str(root), image_size=(height, width), channels=channels)).read()
        _check_known(content.classes, classes, root)
        numbers = np.array([classes.index(name) for name in content.classes])
        images, labels = content.parts.get("test", content.parts["train"])
        return _part(images.repeat(channels // images.shape[1], axis=1), numbers[labels])
    root = part_folders(root).get("test", root)
    by_class = list_classes(root)
    _check_known(by_class, classes, root)
    return _part(*read_labelled(by_class, classes, image_shape))


def _check_known(found: Iterable[str], classes: tuple[str, ...], root: Path) -> None:
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{root}: class {unknown[0]!r} is not one of the run's: {', '.join(classes)}")


def unknown_source(source: str) -> DataError:
    """The error for a source that is neither a data set's name nor a path."""
    return DataError(
        f"unknown data set {source!r}: choose one of {', '.join(DATA_SETS)}, or name an existing folder of class "
        "sub-folders, .npz or .parquet file"
    )


def _options(source: str | Path, **options: Any) -> DataOptions:
    """The options, checked, with absolute paths and the data set's own test part."""
    data_dir, size = options.pop("data_dir", None), options.pop("image_size", None)
    checked = DataOptions(
        os.fspath(source),
        None if data_dir is None else str(Path(data_dir).absolute()),
        None if size is None else (size[0], size[1]),
        **options,
    )
    _check(checked)
    data_set = DATA_SETS.get(checked.source)
    if data_set is None and Path(checked.source).exists():
        checked = dataclasses.replace(checked, source=str(Path(checked.source).resolve()))
    return dataclasses.replace(checked, test=checked.test or (data_set.test if data_set else 0.2))


def _find(options: DataOptions, *, download: bool = True) -> tuple[Source, str]:
    """The images, found but not read, and where they are."""
    if options.source in DATA_SETS:
        return _named_source(DATA_SETS[options.source], options, download)
    if Path(options.source).exists():
        return own_source(Path(options.source), options), options.source
    raise unknown_source(options.source)


def _named_source(data_set: DataSet, options: DataOptions, download: bool) -> tuple[Source, str]:
    """A named data set's files, found or fetched but not read, and where they are.

    Raises:
        DataError: they are nowhere and cannot be fetched.
    """
    wanted = dataclasses.replace(options, image_size=options.image_size or data_set.size)
    relevant = {
        "name": data_set.name,
        "image_size": wanted.image_size,
        "grey": options.channels == 1,
        "split": options.split,
        "split_seed": options.split_seed if options.split == "views" else None,
        **{name: getattr(options, name) for name in sorted(data_set.options)},
    }
    if not data_set.folders:  # it comes with a library
        relevant["version"] = metadata.version("scikit-learn")

        def read_embedded() -> Content:
            return Content(data_set.layouts[0].read((), wanted), data_set.classes, None)

        return Source((), relevant, read_embedded), "scikit-learn, enlarged from 8x8 pixels"
    found = find_files(data_set, options)
    if found is None and download:
        try:
            fetch(data_set, extra=options.extra)
        except DataError as error:
            raise missing(data_set, options, str(error)) from error
        found = find_files(data_set, options)
    if found is None:
        raise missing(data_set, options)
    paths, layout = found
    files = found.all_files()

    def read_files() -> Content:
        parts = layout.read(paths, wanted)
        classes = data_set.classes_of(options)
        for part, (_, labels) in parts.items():
            if not len(labels):
                raise DataError(f"{paths[0].parent}: no images in the {part} part: fetch the files again")
            if not 0 <= (wrong := labels.min() if labels.min() < 0 else labels.max()) < len(classes):
                raise DataError(f"{paths[0].parent}: label {wrong} is not one of the {len(classes)} classes")
        return Content(parts, classes, all(is_official(data_set.name, path) for path in files))

    return Source(files, relevant, read_files), str(paths[0].parent)


def _check(options: DataOptions) -> None:
    """Raise DataError for an option outside its range, or that the data set does not have."""
    for option, value in (("validation", options.validation), ("test", options.test)):
        if value is not None and not 0 < value < 1:
            raise DataError(f"{option} must be above 0 and below 1, got {value}")
    if options.split_seed < 0:
        raise DataError(f"split_seed must be at least 0, got {options.split_seed}")
    if options.channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {options.channels}")
    if options.image_size is not None and not all(1 <= side <= 4096 for side in options.image_size):
        raise DataError(f"image_size must be two numbers of pixels from 1 to 4096, got {options.image_size}")
    data_set = DATA_SETS.get(options.source)
    for option, unset, allowed in (
        ("camera", None, ("left", "right", "both")),
        ("objects", None, (10, 20)),
        ("extra", False, (True,)),
        ("split", None, data_set.splits if data_set else ()),
    ):
        value = getattr(options, option)
        if value == unset:
            continue
        if option != "split" and (data_set is None or option not in data_set.options):
            raise DataError(f"{options.source} has no option {option}: leave it out")
        if value not in allowed:
            choices = ", ".join(map(str, allowed)) or "nothing: leave it out"
            raise DataError(f"{option} of {options.source} must be one of {choices}, got {value}")


def _split(content: Content, options: DataOptions) -> dict[str, Part]:
    parts = dict(content.parts)
    for part, fraction in (("test", options.test), ("validation", options.validation)):
        if part not in parts and fraction is not None:
            images, labels = parts["train"]
            together = 2 if options.camera == "both" else 1  # the two pictures of a stereo pair
            try:
                chosen = stratified_split(labels[::together], fraction, options.split_seed, content.classes)
            except DataError as error:
                raise DataError(f"{options.source}: {error}") from error
            kept, held = ((which[:, None] * together + np.arange(together)).ravel() for which in chosen)
            parts["train"], parts[part] = (images[kept], labels[kept]), (images[held], labels[held])
    return {part: _part(*parts[part]) for part in ("train", "validation", "test")}


def _part(images: np.ndarray, labels: np.ndarray) -> Part:
    return Part(
        torch.from_numpy(np.require(images, requirements=["C", "W"])), torch.from_numpy(np.asarray(labels, np.int64))
    )


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
