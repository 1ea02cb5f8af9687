"""The pack cache: decoded images are kept as arrays that are memory-mapped the next time.

    packs/<key>/        the arrays of one source read with one set of options, and meta.json
    index/<hash>.json   the pack that belongs to files of these paths, sizes and times

The key is a hash of the files' content and the options, so files that were moved or touched are
hashed again but not decoded again. A pack appears complete, by a rename, or not at all; one
process at a time writes it. Packs not opened for 90 days are removed.
"""

import functools
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import filelock
import numpy as np

from dualcaps.runs.files import write_json, write_with

FORMAT = 4
"""Version of the packs' layout and of image decoding; older packs are ignored."""

_KEPT_SECONDS = 90 * 24 * 3600

# Raised by missing or damaged packs; the last two by damaged headers of arrays.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, TokenError)


class Content(NamedTuple):
    """The content of a source.

    parts: for each part uint8 [N, C, H, W] and int64 labels.
    classes: class names, in the order of the labels.
    official: whether the files are the official ones; None if there are no official files.
    notes: see `ImageDataset.notes`.
    value_range: the pixel values of black and white, if the images are not 8-bit.
    files: for each part the file of each image, relative to `Source.folder`; None if images have no files of their own.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...]
    official: bool | None
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    files: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Source:
    """Images that can be read, before they are.

    Attributes:
        files: all files that the content depends on.
        options: all options that the content depends on; JSON-serialisable.
        read: reads the content; raises DataError.
        notes: see `ImageDataset.notes`; about finding the files.
        sizes: counts own images of each size (height, width) before resizing; raises DataError.
        attributes: reads what is known of the images besides their labels, which is not packed; see `ImageSplit`.
    """

    files: Sequence[Path]
    options: dict[str, Any]
    read: Callable[[], Content]
    notes: tuple[str, ...] = ()
    sizes: Callable[[], Counter[tuple[int, int]]] = Counter
    attributes: Callable[[], dict[str, dict[str, np.ndarray]]] = dict

    @functools.cached_property
    def folder(self) -> str:
        """The folder that contains all files."""
        return os.path.commonpath([file.parent for file in self.files]) if self.files else ""


def load_packed(source: Source, cache: Path) -> tuple[Content, str]:
    """Load a source's content, memory-mapped from the cache, or read and stored there.

    A cache that cannot be written to is ignored.

    Returns:
        The content, and the SHA-256 of its arrays and class names.

    Raises:
        DataError: the source cannot be read.
    """
    if opened := _mapped(source, cache):
        return opened
    try:
        return _pack(source, cache)
    except _CacheError:
        content = source.read()
        return content, hash_content(content)


def peek(source: Source, cache: Path) -> tuple[Content, str] | None:
    """The result of `load_packed` if the source is packed and unchanged, judged by paths, sizes and times."""
    return _mapped(source, cache)


def _mapped(source: Source, cache: Path) -> tuple[Content, str] | None:
    try:
        pack = cache / "packs" / json.loads(_index(source, cache).read_text(encoding="utf-8"))["pack"]
        opened = _open(pack)
    except _UNREADABLE:
        return None  # never packed, or damaged
    with suppress(OSError):
        os.utime(pack)
    return opened


def _index(source: Source, cache: Path) -> Path:
    return cache / "index" / f"{file_fingerprint(source)}.json"


class _CacheError(Exception):
    """The cache cannot be used."""


def _pack(source: Source, cache: Path) -> tuple[Content, str]:
    index = _index(source, cache)  # before reading, so that it never refers to older content
    key = _content_key(source)
    pack, draft = cache / "packs" / key, cache / "packs" / f".{key}.draft"
    try:
        for folder in (pack.parent, index.parent):
            folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(pack.parent / f".{key}.lock").acquire()
    except OSError as error:
        raise _CacheError from error
    with lock:
        opened = None
        with suppress(*_UNREADABLE):
            opened = _open(pack)
        if opened is None:
            content = source.read()
            if _index(source, cache) != index:  # replaced while it was read
                return content, hash_content(content)
            try:
                for leftover in (draft, pack):
                    if leftover.exists():
                        shutil.rmtree(leftover)
                _write(draft, content)
                draft.replace(pack)
                opened = _open(pack)
                _remove_unused(cache)
            except BaseException as error:
                shutil.rmtree(draft, ignore_errors=True)
                if not isinstance(error, OSError):
                    raise
                return content, hash_content(content)
        with suppress(OSError):
            write_json(index, {"pack": key})
    return opened


def _remove_unused(cache: Path) -> None:
    """Remove packs and drafts that were not used for long, and their index entries."""
    oldest = time.time() - _KEPT_SECONDS
    with suppress(OSError):
        for path in (cache / "packs").iterdir():
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for path in (cache / "index").iterdir():
            if (
                path.stat().st_mtime < oldest
                and not (cache / "packs" / json.loads(path.read_text(encoding="utf-8"))["pack"]).exists()
            ):
                path.unlink(missing_ok=True)


def _write(folder: Path, content: Content) -> None:
    folder.mkdir()
    shapes = {}
    for part, (images, labels) in content.parts.items():
        for name, array in ((f"{part}-images.npy", images), (f"{part}-labels.npy", labels)):
            saved = np.ascontiguousarray(array)
            write_with(folder / name, lambda stream, saved=saved: np.save(stream, saved))
        shapes[part] = list(images.shape)
    meta = {
        "format": FORMAT,
        "parts": shapes,
        "classes": content.classes,
        "official": content.official,
        "notes": content.notes,
        "value_range": content.value_range,
        "files": content.files,
        "sha256": hash_content(content),
    }
    write_json(folder / "meta.json", meta)


def _open(folder: Path) -> tuple[Content, str]:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    parts = {}
    for part, shape in meta["parts"].items():
        images, labels = (
            # Copy on write, so that tensors of these arrays are writable without changing the files.
            np.load(folder / f"{part}-{what}.npy", mmap_mode="c", allow_pickle=False)
            for what in ("images", "labels")
        )
        if list(images.shape) != shape or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise ValueError(f"{folder}: damaged")
        parts[part] = images, labels
    value_range = meta["value_range"]
    content = Content(
        parts,
        tuple(meta["classes"]),
        meta["official"],
        tuple(meta["notes"]),
        None if value_range is None else (value_range[0], value_range[1]),
        None if meta["files"] is None else {part: tuple(names) for part, names in meta["files"].items()},
    )
    return content, meta["sha256"]


def hash_content(content: Content) -> str:
    """SHA-256 of the arrays and class names."""
    digest = hashlib.sha256(json.dumps(content.classes).encode())
    for part, (images, labels) in sorted(content.parts.items()):
        digest.update(json.dumps([part, images.shape]).encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()


def file_fingerprint(source: Source) -> str:
    """A hash of paths, sizes and times, which changes when a file is replaced."""
    digest = hashlib.sha256(json.dumps([FORMAT, source.options], sort_keys=True).encode())
    for file in source.files:
        status = file.stat()
        digest.update(
            f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()


def _content_key(source: Source) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, source.options], sort_keys=True).encode())
    folder = source.folder
    for file in source.files:
        digest.update(f"{os.path.relpath(file, folder)}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
