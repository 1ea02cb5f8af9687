"""The pack cache: what was read once is kept as arrays that are mapped, not read, the next time.

    packs/<key>/        the arrays of one source read with one set of options, and meta.json
    index/<print>.json  which pack belongs to files of these paths, sizes and times

The key is a hash of the files' content and the options, so files that were moved or touched are
hashed again but not packed again. A pack appears by a rename, complete, or not at all; one
process at a time writes it. Packs that were not opened for 90 days are removed.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from dualcaps.runs.files import write_json, write_with

FORMAT = 3
"""Version of the packs' layout and of how images are read; a change makes all older packs unused."""

_KEPT_SECONDS = 90 * 24 * 3600  # a pack that nobody opened for so long goes when another is made

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError)  # what a missing or damaged pack can raise


class Content(NamedTuple):
    """What a source holds, read.

    parts: for each part uint8 [N, C, H, W] and int64 labels.
    classes: class names, in the order of the labels.
    official: whether the files are the official ones; None where there are none.
    notes: what was done with the images that a user should know.
    value_range: the pixel values that stand for black and white, where they are not 0 and 255 of 8 bits.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...]
    official: bool | None
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Source:
    """Images that can be read, before anything is.

    Attributes:
        files: all that reading depends on.
        options: all else that it depends on; goes through JSON.
        read: reads; raises DataError.
        notes: what was done in finding the files that a user should know.
    """

    files: Sequence[Path]
    options: dict[str, Any]
    read: Callable[[], Content]
    notes: tuple[str, ...] = ()


def load_packed(source: Source, cache: Path) -> tuple[Content, str]:
    """The source's content, mapped from the cache, or read and put there.

    A cache that cannot be written is not used.

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
    """What `load_packed` returns if the source is packed and unchanged, as far as paths, sizes and times tell."""
    return _mapped(source, cache)


def file_fingerprint(source: Source) -> str:
    """A hash that changes whenever a file is replaced, as far as paths, sizes and times tell."""
    return _fingerprint(source)


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
    return cache / "index" / f"{_fingerprint(source)}.json"


class _CacheError(Exception):
    """The cache cannot be used."""


def _pack(source: Source, cache: Path) -> tuple[Content, str]:
    index = _index(source, cache)  # before the content is read, so that it never stands for older content
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
    """Remove packs and drafts that were left alone for long, with what belongs to them."""
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
        "sha256": hash_content(content),
    }
    write_json(folder / "meta.json", meta)


def _open(folder: Path) -> tuple[Content, str]:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    parts = {}
    for part, shape in meta["parts"].items():
        images, labels = (
            # Copy on write: the tensors made of these are not marked read-only, and the files stay as they are.
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


def _fingerprint(source: Source) -> str:
    """Changes whenever a file is replaced, as far as paths, sizes and times tell."""
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
    common = os.path.commonpath([file.parent for file in source.files]) if source.files else ""
    for file in source.files:
        digest.update(f"{os.path.relpath(file, common)}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
