"""`load_data`: loads named data sets and own images."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dualcaps.config import OWN_TEST_SHARE, DataConfig
from dualcaps.data.cache import Content, Source, file_fingerprint, hash_content, load_packed, peek
from dualcaps.data.dataset import ImageDataset, ImageSplit, split_arrays, to_split
from dualcaps.data.download import fetch
from dualcaps.data.images import ValueRange, check_channels, inspect_images
from dualcaps.data.shards import IMAGES, INDEX, PARTS, Shards, is_packed, open_arrays, packed_files, read_index
from dualcaps.data.sources import DataSet, data_set
from dualcaps.data.sources.encoded import natural_size
from dualcaps.data.sources.files import cache_folder, checksum, find_files, is_official, missing
from dualcaps.data.sources.folder import class_name, list_classes, own_source, part_folders, read_labelled, unwrap
from dualcaps.data.sources.parquet import list_parquet
from dualcaps.errors import ConfigError, DataError, display_path, unknown_name
from dualcaps.registry import DATASETS, load_entry_points, lookup


def load_data(source: str | Path = "digits", *, download: bool = True, **options: Any) -> ImageDataset:
    """Load a data set by name, or your own images.

    A named set's files are looked for as `dualcaps.data.sources.files.find_files` says, and fetched into the user
    cache if not found locally. Own images are a folder of class sub-folders (perhaps below `train/`, `val/` and
    `test/`), a `.npz` file, a Parquet file or folder, or a folder that `dualcaps.data.pack.pack` has made; missing
    parts are split off class by class.
    Decoded images are kept in the user cache and memory-mapped the next time.

    Args:
        source: a string is a data set's name, or otherwise a path; a `pathlib.Path` is always a path.
        download: whether to download files that are not found.
        **options: the fields of `DataConfig`.

    Returns:
        The data set; `ImageDataset.notes` reports which files were used and skipped.

    Raises:
        DataError: an unknown name, missing or damaged files, images that cannot be used, or an
            option outside its range.

    Example:
        >>> data = load_data("digits")
        >>> data
        ImageDataset('digits', 10 classes of 28x28x1: 1,295 training, 143 validation, 359 test images)
    """
    config = complete_config(source, **options)
    if _is_named(config) and data_set(config.source) is None:
        return _from_plugin(config)
    if _is_packed(config):
        return _from_packed(config)
    images, found = _find(config, download=download)
    content, sha256 = load_packed(images, cache_folder())
    return _dataset(config, content, sha256, found, images)


def complete_config(source: str | Path, **options: Any) -> DataConfig:
    """Check the options of `load_data` and complete them with absolute paths and the data set's test share.

    Raises:
        DataError: an option outside its range, or that the data set does not have.
    """
    unknown = [name for name in options if name not in {field.name for field in dataclasses.fields(DataConfig)}]
    if unknown:
        known = [field.name for field in dataclasses.fields(DataConfig)]
        raise DataError(unknown_name("option of load_data", unknown[0], known[1:]))
    text = os.fspath(source)
    load_entry_points()
    named = isinstance(source, str) and text in DATASETS
    if not named and Path(text).exists():
        text = str(Path(text).resolve())
    elif isinstance(source, Path) and text in DATASETS:
        raise DataError(f"./{text}: no such folder; for the data set of this name give its name as a string")
    if options.get("data_dir") is not None:
        options["data_dir"] = str(Path(options["data_dir"]).absolute())
    config = DataConfig(text, **{"image_size": None, **options})
    if not named and is_packed(Path(text)):
        return _packed_config(config)
    _check_options(config)
    card = data_set(text) if named else None
    return dataclasses.replace(config, test=config.test or (card.test if card else OWN_TEST_SHARE))


def source_name(config: DataConfig) -> str:
    """The name that a data set has in run folders and tables: of own images the name of their folder or file."""
    return config.source if _is_named(config) else class_name(Path(config.source).stem)


def _is_named(config: DataConfig) -> bool:
    return config.source in DATASETS


def _is_packed(config: DataConfig) -> bool:
    return not _is_named(config) and is_packed(Path(config.source))


def _packed_config(config: DataConfig) -> DataConfig:
    """The options of a packed data set, which were chosen when it was packed; raises DataError for others."""
    index = read_index(Path(config.source))
    channels, *size = index.image_shape
    packed = {**index.options, "image_size": tuple(size), "channels": channels if channels in (1, 3) else None}
    try:
        complete = DataConfig(config.source, **packed)
    except (TypeError, ConfigError, DataError) as error:
        raise DataError(f"{display_path(Path(config.source) / INDEX)}: damaged ({error}): pack again") from error
    for option in dataclasses.fields(DataConfig):
        given, kept = getattr(config, option.name), getattr(complete, option.name)
        if given not in (option.default, kept):
            raise DataError(
                f"{display_path(config.source)}: packed with {option.name} {kept}, not {given}: leave the option out, "
                "or pack the images again"
            )
    return complete


def _from_packed(config: DataConfig) -> ImageDataset:
    folder = Path(config.source)
    index = read_index(folder)
    images, labels, offset = open_arrays(folder, index)
    all_images, all_labels = torch.from_numpy(images), torch.from_numpy(labels)
    splits, start = {}, 0
    for part, found in index.parts.items():
        shards = Shards(folder / IMAGES, offset, index.image_shape, found)
        own = slice(start, start + len(shards))
        splits[part] = ImageSplit(all_images[own], all_labels[own], index.classes, shards=shards)
        start += len(shards)
    return ImageDataset(
        source_name(config),
        **splits,
        classes=index.classes,
        config=config,
        provenance={
            "from": display_path(folder),
            "official": None,
            "source_sha256": index.sha256,
            "packed_from": index.source,
            "images": {part: len(split) for part, split in splits.items()},
        },
        value_range=index.value_range,
        notes=(f"packed images from {index.source}", *index.notes),
    )


def _check_options(config: DataConfig) -> None:
    """Raise DataError for an option that the data set does not have."""
    card = data_set(config.source) if _is_named(config) else None
    if _is_named(config) and card is None:
        return  # checked by the plug-in
    splits = card.splits if card else ()
    if config.split is not None and config.split not in splits:
        choices = ", ".join(splits) or "nothing: leave it out"
        raise DataError(f"split of {display_path(config.source)} must be one of {choices}, got {config.split}")
    for option in ("camera", "objects", "extra"):
        if getattr(config, option) and (card is None or option not in card.options):
            raise DataError(f"{display_path(config.source)} has no option {option}: leave it out")
    if config.camera == "stereo" and config.channels is not None:
        raise DataError("camera stereo has two channels: leave the option channels out")


def _from_plugin(config: DataConfig) -> ImageDataset:
    loaded = lookup(DATASETS, "data set", config.source).value(config)
    if not isinstance(loaded, ImageDataset):
        raise DataError(f"data set {config.source} must return an ImageDataset, got {type(loaded).__name__}")
    provenance = {"from": lookup(DATASETS, "data set", config.source).origin, "official": None, **loaded.provenance}
    return dataclasses.replace(loaded, name=config.source, config=config, provenance=provenance)


def _dataset(config: DataConfig, content: Content, sha256: str, found: str, source: Source) -> ImageDataset:
    """Make a data set from content: split it and convert its channels."""
    card = data_set(config.source) if _is_named(config) else None
    channels = card.channels_of(config) if card else config.channels
    folder = display_path(source.folder)
    # The identity of data and split in runs of format 1.
    identity = [sha256, channels, config.validation, config.test, config.split_seed]
    data = split_arrays(
        content.parts,
        content.classes,
        config,
        name=source_name(config),
        flip=card.flip_of(config) if card else False,
        batch_size=card.batch_size if card else 128,
        together=2 if config.camera == "both" else 1,  # the two pictures of a stereo pair
        provenance={
            "from": display_path(found),
            "official": content.official,
            "source_sha256": sha256,
            "sha256_format_1": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        },
        value_range=content.value_range,
        notes=_shadow_note(config) + source.notes + content.notes,
        files=None
        if content.files is None
        else {part: [f"{folder}{os.sep}{name}" for name in names] for part, names in content.files.items()},
        attributes=source.attributes(),
    )
    if channels == 3 and data.image_shape[0] == 1:
        parts = {
            part: dataclasses.replace(split, images=split.images.expand(-1, 3, -1, -1))
            for part, split in (("train", data.train), ("validation", data.validation), ("test", data.test))
        }
        data = dataclasses.replace(data, **parts)
    return data


def _shadow_note(config: DataConfig) -> tuple[str, ...]:
    if _is_named(config) and Path(config.source).is_dir():
        return (f"the data set {config.source}, not the folder of this name: ./{config.source} names the folder",)
    return ()


class CheckedFile(NamedTuple):
    """A file of a data set with its SHA-256 (decompressed) and whether it is an official one."""

    path: Path
    checksum: str
    verdict: Literal["official", "not official", "own"]


def check_data(source: str | Path, **options: Any) -> tuple[ImageDataset, list[CheckedFile]]:
    """Read a whole data set, ignoring the cache, and compare its files' checksums.

    Takes the arguments of `load_data`; downloads nothing and does not change the cache.

    Raises:
        DataError: as `load_data`.
    """
    config = complete_config(source, **options)
    if _is_named(config) and data_set(config.source) is None:
        return _from_plugin(config), []
    if _is_packed(config):
        data = _from_packed(config)
        for split in (data.train, data.validation, data.test):
            for _ in split.pieces():  # each compared with its hash
                pass
        return data, [CheckedFile(path, checksum(path), "own") for path in packed_files(Path(config.source))]
    images, found = _find(config, download=False)
    content = images.read()
    card = data_set(config.source) if _is_named(config) else None

    def verdict(path: Path) -> Literal["official", "not official", "own"]:
        if card is None:
            return "own"
        return "official" if is_official(card, path) else "not official"

    files = [CheckedFile(path, checksum(path), verdict(path)) for path in images.files]
    return _dataset(config, content, hash_content(content), found, images), files


class SourceInfo(NamedTuple):
    """A description of a data set made without reading pixels.

    name: as `ImageDataset.name`.
    image_shape: channels, height and width.
    classes: class names in the order of the labels.
    train, validation, test: images in each part; where a part is split off class by class, nearly.
    key: changes when files of own images are replaced; "" for named data sets.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    key: str


def inspect_source(config: DataConfig, *, download: bool = False) -> SourceInfo:
    """Describe a named data set by its card, and own images by their pack or their headers.

    Args:
        config: see `complete_config`.
        download: whether to download files that are not found.

    Raises:
        DataError: as `load_data`, as far as it is noticed without reading pixels.
    """
    if _is_named(config):
        card = data_set(config.source)
        if card is None:
            data = _from_plugin(config)
            sizes = (len(data.train), len(data.validation), len(data.test))
            return SourceInfo(data.name, data.image_shape, data.classes, *sizes, data.fingerprint)
        if card.folders and find_files(card, config) is None:
            _find(config, download=download)
        height, width = config.image_size or card.size
        shape = (card.channels_of(config), height, width)
        return SourceInfo(card.name, shape, card.classes_of(config), *_shares(card.counts(config), config), "")
    name = source_name(config)
    if _is_packed(config):
        index = read_index(Path(config.source))
        train, validation, test = (sum(shard.images for shard in index.parts[part]) for part in PARTS)
        return SourceInfo(name, index.image_shape, index.classes, train, validation, test, index.sha256)
    images, _ = _find(config, download=False)
    key = file_fingerprint(images)  # the same before and after the images are packed
    if packed := peek(images, cache_folder()):
        content, _ = packed
        counts = {part: len(labels) for part, (_, labels) in content.parts.items()}
        channels, height, width = content.parts["train"][0].shape[1:]
        shape = (config.channels or channels, height, width)
        return SourceInfo(name, shape, content.classes, *_shares(counts, config), key)
    root = Path(config.source)
    if root.is_file() or list_parquet(root):
        content, _ = load_packed(images, cache_folder())  # these files have to be read
        counts = {part: len(labels) for part, (_, labels) in content.parts.items()}
        channels, height, width = content.parts["train"][0].shape[1:]
        shape = (config.channels or channels, height, width)
        return SourceInfo(name, shape, content.classes, *_shares(counts, config), key)
    inspected = inspect_images(images.files)
    height, width = config.image_size or natural_size(set(inspected.sizes) or {(1, 1)})
    shape = (config.channels or (3 if inspected.colour else 1), height, width)
    by_part = {part: list_classes(folder) for part, folder in part_folders(unwrap(root)[0]).items()}
    counts = {part: sum(map(len, by_class.values())) for part, by_class in by_part.items()}
    return SourceInfo(name, shape, tuple(by_part["train"]), *_shares(counts, config), key)


def image_sizes(config: DataConfig) -> Counter[tuple[int, int]]:
    """The number of own images of each size (height, width), before resizing; none for named data sets.

    Raises:
        DataError: the files cannot be found or read.
    """
    if _is_packed(config):
        index = read_index(Path(config.source))
        return Counter({index.image_shape[1:]: sum(shard.images for part in PARTS for shard in index.parts[part])})
    images, _ = _find(config, download=False)
    return images.sizes()


def _shares(counts: dict[str, int], config: DataConfig) -> tuple[int, int, int]:
    counts = dict(counts)
    for part, share in (("test", config.test), ("validation", config.validation)):
        if part not in counts and share is not None:
            counts[part] = round(counts["train"] * share)
            counts["train"] -= counts[part]
    return counts["train"], counts["validation"], counts["test"]


def data_state(name: str, data_dir: str | Path | None = None) -> str:
    """Describe where a named data set was found and whether it is official, without reading or downloading."""
    config = complete_config(name, data_dir=data_dir)
    card = data_set(name)
    if card is None:
        return f"plug-in {DATASETS[name].origin}"
    if card.folders and find_files(card, config) is None:
        return "not found"
    images, found = _find(config, download=False)
    if not card.folders:
        return f"embedded ({found})"
    packed = peek(images, cache_folder())
    verdict = "not checked yet" if packed is None else "official" if packed[0].official else "not official"
    return f"{found} ({verdict})"


def get_data(name: str, *, extra: bool = False) -> Path | str:
    """Download a named data set's files into the user cache and return the folder.

    Raises:
        DataError: an unknown name, or files that cannot be downloaded.
    """
    card = data_set(name)
    if card is None:
        return f"{name} comes with a plug-in: nothing to download"
    if not card.downloads:
        return f"{name} comes with scikit-learn: nothing to download"
    if found := find_files(card, DataConfig(name, extra=extra)):
        return f"{found.paths[0].parent} (it was there already)"
    try:
        return fetch(card, extra=extra)
    except DataError as error:
        raise missing(card, DataConfig(name, extra=extra), str(error)) from error


def load_labelled(
    source: str | Path,
    classes: tuple[str, ...],
    image_shape: tuple[int, int, int],
    *,
    value_range: ValueRange | None = None,
) -> ImageSplit:
    """Load your own labelled images for a network whose class names are known.

    Their test part is used if they have one, otherwise all images; classes may be missing.

    Args:
        source: a folder of class sub-folders, a `.npz` file, or a Parquet file or folder.
        classes: the network's class names.
        image_shape: channels, height and width to bring the images to.
        value_range: of images that are not of 8 bits.

    Raises:
        DataError: the path does not exist, images cannot be read, or a class is not in `classes`.
    """
    root = Path(source)
    if not root.exists():
        raise unknown_source(str(source))
    channels, height, width = image_shape
    if is_packed(root):
        test = _from_packed(_packed_config(DataConfig(str(root)))).test
        if tuple(test.images.shape[1:]) != image_shape:
            shape = "x".join(map(str, test.images.shape[1:]))
            raise DataError(
                f"{display_path(root)}: packed at {shape}, the network takes {'x'.join(map(str, image_shape))}"
            )
        _check_known(test.classes or (), classes, root)
        return test
    check_channels(channels)
    if root.is_file() or list_parquet(root):
        grey_or_colour = 1 if channels == 1 else 3
        config = DataConfig(str(root), image_size=(height, width), channels=grey_or_colour, value_range=value_range)
        content = own_source(root, config).read()
        _check_known(content.classes, classes, root)
        numbers = np.array([classes.index(name) for name in content.classes])
        images, labels = content.parts.get("test", content.parts["train"])
        return to_split(images.repeat(channels // images.shape[1], axis=1), numbers[labels], classes)
    folders = part_folders(root)
    by_class = list_classes(folders.get("test", folders.get("train", folders.get("validation", root))))
    _check_known(by_class, classes, root)
    files = tuple(display_path(path) for paths in by_class.values() for path in paths)
    return to_split(*read_labelled(by_class, classes, image_shape, value_range), classes, files)


def _check_known(found: Iterable[str], classes: tuple[str, ...], root: Path) -> None:
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{display_path(root)}: class {unknown[0]!r} is not one of the run's: {', '.join(classes)}")


def unknown_source(source: str) -> DataError:
    """The error for a source that is neither a data set's name nor a path."""
    return DataError(
        f"{unknown_name('data set', display_path(source), DATASETS)}; or name an existing folder of class sub-folders, "
        ".npz or .parquet file"
    )


def _find(config: DataConfig, *, download: bool = True) -> tuple[Source, str]:
    """Find the images without reading them; returns the source and its location."""
    if _is_named(config):
        card = data_set(config.source)
        assert card is not None
        return _named_source(card, config, download)
    if Path(config.source).exists():
        return own_source(Path(config.source), config), config.source
    raise unknown_source(config.source)


def _named_source(card: DataSet, config: DataConfig, download: bool) -> tuple[Source, str]:
    """Find or download a named data set's files without reading them; returns the source and its location.

    Raises:
        DataError: they are not found and cannot be downloaded.
    """
    wanted = dataclasses.replace(config, image_size=config.image_size or card.size)
    relevant = {
        "name": card.name,
        "image_size": wanted.image_size,
        "grey": config.channels == 1,
        "split": config.split,
        "split_seed": config.split_seed if config.split in ("views", "random") else None,
        **{name: getattr(config, name) for name in sorted(card.options)},
    }
    if not card.folders:  # included in a library
        relevant["version"] = metadata.version("scikit-learn")

        def read_embedded() -> Content:
            return Content(card.layouts[0].read((), wanted), card.classes, None)

        return Source((), relevant, read_embedded), "scikit-learn, enlarged from 8x8 pixels"
    found = find_files(card, config)
    if found is None and download:
        try:
            fetch(card, extra=config.extra)
        except DataError as error:
            raise missing(card, config, str(error)) from error
        found = find_files(card, config)
    if found is None:
        raise missing(card, config)
    paths, layout = found
    files = found.all_files()

    def read_files() -> Content:
        parts = layout.read(paths, wanted)
        classes = card.classes_of(config)
        for part, (_, labels) in parts.items():
            if not len(labels):
                raise DataError(f"{paths[0].parent}: no images in the {part} part: fetch the files again")
            if not 0 <= (wrong := labels.min() if labels.min() < 0 else labels.max()) < len(classes):
                raise DataError(f"{paths[0].parent}: label {wrong} is not one of the {len(classes)} classes")
        return Content(parts, classes, all(is_official(card, path) for path in files), layout.notes(paths))

    return Source(files, relevant, read_files, attributes=lambda: layout.attributes(paths, wanted)), str(
        paths[0].parent
    )
