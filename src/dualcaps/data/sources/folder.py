"""Own images: a folder with a sub-folder for each class, optionally below a folder for each part."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.cache import Content, Source
from dualcaps.data.dataset import natural_order
from dualcaps.data.images import IMAGE_SUFFIXES, ValueRange, inspect_images, read_images
from dualcaps.data.sources.encoded import read_encoded, relevant_options
from dualcaps.data.sources.npz import npz_source
from dualcaps.data.sources.parquet import list_parquet, parquet_source
from dualcaps.errors import DataError, display_path

_PART_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_PIECE_WORDS = {"fold", "split", "part", "set", "subset", "batch", "shard"}


@dataclass
class Listing:
    """Image files found below a folder, and what was skipped.

    Attributes:
        files: the image files, in order.
        skipped: number of skipped files or folders by reason.
    """

    files: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def own_source(path: Path, config: DataConfig) -> Source:
    """Find own images without reading them.

    Raises:
        DataError: the path contains no images in a supported form.
    """
    if path.is_file() and path.suffix.lower() == ".npz":
        return npz_source(path, config)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return parquet_source({"train": [path]}, config)
    if path.is_file():
        raise DataError(f"{display_path(path)}: neither a folder nor a .npz or .parquet file")
    if parquet := list_parquet(path):
        return parquet_source(by_part(parquet, path), config)
    listed = list_parts(path)
    root, classes, notes = listed.root, listed.classes, listed.notes
    files = [file for by_class in listed.parts.values() for images in by_class.values() for file in images]
    relevant = {"own": True, **relevant_options(config)}
    source = Source(
        files,
        relevant,
        lambda: _read_folder(root, source.folder, listed.parts, classes, config),
        notes,
        lambda: inspect_images(files).sizes,
    )
    return source


class ListedParts(NamedTuple):
    """The images of a folder by part and class, in natural order.

    root: the folder that holds the parts, or the classes.
    parts: by part, by class name, the images.
    classes: their names.
    notes: see `ImageDataset.notes`.
    """

    root: Path
    parts: dict[str, dict[str, list[Path]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def list_parts(path: Path) -> ListedParts:
    """Find the images of a folder of class sub-folders, perhaps below folders of parts.

    Raises:
        DataError: the folder is not arranged like that.
    """
    root, notes = unwrap(path)
    folders = part_folders(root)
    if "train" not in folders:
        named = " and ".join(display_path(folder.name) for folder in folders.values())
        raise DataError(f"{display_path(root)}: holds {named} but no training part: name its folder train")
    skipped: Counter[str] = Counter()
    listed = {part: list_classes(folder, skipped) for part, folder in folders.items()}
    classes = tuple(listed["train"])
    if len(classes) < 2:
        raise DataError(
            f"{display_path(root)}: only one class ({', '.join(classes)}): at least two class sub-folders are needed"
        )
    for part, by_class in listed.items():
        if unknown := sorted(set(by_class) - set(classes)):
            raise DataError(
                f"{display_path(root)}: class {unknown[0]!r} of the {part} part is missing from the training part"
            )
    if folders["train"] == root:
        notes += _note_equal_subfolders(root)
    else:
        used = ", ".join(f"{display_path(folder.name)} as {part}" for part, folder in folders.items())
        notes += (f"parts: {used}",)
    files = [file for by_class in listed.values() for images in by_class.values() for file in images]
    notes += (f"{len(files):,} image files used{skipped_reasons(skipped)}",)
    return ListedParts(root, listed, classes, notes)


def list_classes(folder: Path, skipped: Counter[str] | None = None) -> dict[str, list[Path]]:
    """The images of each class sub-folder, by class name, in natural order.

    Links are followed. Hidden files and files without an image suffix are skipped and counted in `skipped`.
    Folder names that differ only in the encoding of accents are one class.

    Raises:
        DataError: there is no sub-folder, or one without images.
    """
    skipped = Counter() if skipped is None else skipped
    classes: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir(), key=lambda child: natural_order(class_name(child.name))):
        if not child.is_dir():
            if child.suffix.lower() in IMAGE_SUFFIXES and not child.name.startswith("."):
                skipped["beside the class folders"] += 1
            continue
        if child.name.startswith("."):
            skipped["hidden"] += 1
            continue
        listing = list_images(child)
        skipped.update(listing.skipped)
        if not listing.files:
            raise DataError(
                f"{display_path(child)}: no images in this class folder{skipped_reasons(listing.skipped)}: "
                "add some or remove it"
            )
        name = class_name(child.name)
        if name in classes:
            skipped[f"folders named {name} in two encodings, merged into one class"] += 1
        classes.setdefault(name, []).extend(listing.files)
    if not classes:
        raise DataError(
            f"{display_path(folder)}: no class sub-folders: put the images of each class in a folder of their own"
        )
    return classes


def list_images(folder: Path) -> Listing:
    """Find all image files below a folder, in order, following links; a folder reached twice is read once."""
    listing = Listing()
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            listing.skipped["links to a folder already read"] += 1
            continue
        visited.add(real)
        hidden = [name for name in folders if name.startswith(".")]
        listing.skipped["hidden"] += len(hidden)
        folders[:] = sorted(name for name in folders if name not in hidden)
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith("."):
                listing.skipped["hidden"] += 1
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                listing.skipped[f"{display_path(path.suffix.lower()) or 'without a suffix'}, not read as images"] += 1
            elif not path.exists():
                listing.skipped["broken links"] += 1
            else:
                listing.files.append(path)
    listing.skipped = +listing.skipped
    listing.files.sort()
    return listing


def class_name(folder_name: str) -> str:
    """A folder's name as a class name: composed characters (NFC), and escapes for bytes that are not text."""
    text = folder_name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    composed = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in composed)


def part_folders(folder: Path) -> dict[str, Path]:
    """Find the sub-folder of each part by its name; a folder of classes alone is the training part.

    Raises:
        DataError: two folders have names of the same part, or a folder of images lies beside the parts, or
            sub-folders look like parts but their names do not say which.
    """
    parts: dict[str, Path] = {}
    others: list[Path] = []
    for child in _visible_folders(folder):
        part = _part_by_name(child.name)
        if part is None or not _visible_folders(child):
            others.append(child)
            continue
        if part in parts:
            both = f"{display_path(parts[part].name)} and {display_path(child.name)}"
            raise DataError(f"{display_path(folder)}: {both} are both the {part} part: keep one")
        parts[part] = child
    if not parts:
        _refuse_pieces(folder, others)
        return {"train": folder}
    for child in others:
        if list_images(child).files:
            known = " and ".join(display_path(path.name) for path in parts.values())
            raise DataError(
                f"{display_path(folder)}: {display_path(child.name)} holds images but is not the training, validation "
                f"or test part, as {known} are: rename it or move it away"
            )
    return parts


def _part_by_name(name: str) -> str | None:
    words = re.split(r"[\W_\d]+", name.lower())
    found = {_PART_WORDS[word] for word in words if word in _PART_WORDS}
    return found.pop() if len(found) == 1 else None


def _refuse_pieces(folder: Path, children: Sequence[Path]) -> None:
    """Raise DataError for folders such as fold1 and fold2 that contain the same sub-folders."""
    pieces = [
        child
        for child in children
        if _PIECE_WORDS & set(re.split(r"[\W_\d]+", child.name.lower())) and _visible_folders(child)
    ]
    if len(pieces) > 1 and len(pieces) == len(children):
        inside = [{path.name for path in _visible_folders(child)} for child in pieces]
        if len(inside[0]) > 1 and all(names == inside[0] for names in inside):
            both = f"{display_path(pieces[0].name)} and {display_path(pieces[1].name)}"
            raise DataError(
                f"{display_path(folder)}: {both} hold the same sub-folders: name the parts train, val and test, or "
                "point to one of them"
            )


def _note_equal_subfolders(root: Path) -> tuple[str, ...]:
    """A note if every class folder contains the same sub-folders, which may be the intended classes."""
    inside = [{path.name for path in _visible_folders(child)} for child in _visible_folders(root)]
    if len(inside) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        names = ", ".join(sorted(map(class_name, inside[0]))[:4])
        return (f"every class folder holds the same sub-folders ({names}); their images are taken together",)
    return ()


def unwrap(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder below one that contains nothing else, as is common for unpacked archives."""
    notes: tuple[str, ...] = ()
    while len(inside := _visible_folders(folder)) == 1:
        below = _visible_folders(inside[0])
        direct = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        images_inside = [p for p in inside[0].iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        if len(below) < 2 or direct or images_inside:
            break
        folder = inside[0]
        notes = (f"classes taken from {display_path(folder)}",)
    return folder, notes


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def by_part(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Parquet or tar files by the part that their names or folders tell; a single file is the training part.

    Raises:
        DataError: a name does not tell the part, or there is no training part.
    """
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part_of(file, root) if len(files) > 1 else "train", []).append(file)
    if "train" not in parts:
        raise DataError(f"{display_path(root)}: no file of a training part (named train-…{files[0].suffix})")
    return parts


def _part_of(file: Path, root: Path) -> str:
    words = [*file.relative_to(root).parent.parts, *re.split(r"[-_.]", file.stem)]
    parts = {part for word in words if (part := _PART_WORDS.get(word.lower()))}
    if len(parts) != 1:
        raise DataError(
            f"{display_path(file)}: its name does not say train, validation or test: name it like train-…{file.suffix}"
        )
    return parts.pop()


def skipped_reasons(skipped: Mapping[str, int]) -> str:
    """What was skipped in folders and why, to append to a message; nothing if nothing was."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()) if count)
    return f"; skipped: {reasons}" if reasons else ""


def read_labelled(
    by_class: dict[str, list[Path]],
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    value_range: ValueRange | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read the images of class folders at a shape (channels, height, width), with their class numbers."""
    paths = [path for images in by_class.values() for path in images]
    labels = [classes.index(name) for name, images in by_class.items() for _ in images]
    return read_images(paths, shape, value_range=value_range), np.array(labels)


def _read_folder(
    root: Path, common: str, listed: dict[str, dict[str, list[Path]]], classes: tuple[str, ...], config: DataConfig
) -> Content:
    parts = {
        part: (
            [path for images in by_class.values() for path in images],
            np.array([classes.index(name) for name, images in by_class.items() for _ in images]),
        )
        for part, by_class in listed.items()
    }
    read, value_range, notes, kept = read_encoded(parts, config, display_path(root))
    for label, name in enumerate(classes):
        if not (read["train"][1] == label).any():
            raise DataError(f"{display_path(root)}: no image of class {name} can be read: replace them")
    files = {
        part: tuple(
            display_path(os.path.relpath(path, common)) for path, keep in zip(paths, kept[part], strict=True) if keep
        )
        for part, (paths, _) in parts.items()
    }
    return Content(read, classes, None, notes, value_range, files)
