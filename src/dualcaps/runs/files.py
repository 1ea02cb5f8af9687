"""Atomic writing: after a kill, and for every reader, a file has its old content or the new one."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file in one step: write beside it, synchronise, rename.

    Raises:
        OSError: it cannot be written; the old file is kept and no temporary file remains.
    """
    write_with(file, lambda stream: stream.write(content))


def write_with(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """As `write_bytes`, for content that `write` writes to a stream."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    _synchronise_folder(file.parent)


def write_json(file: Path, content: Any) -> None:
    """Replace a JSON file in one step; indented and ASCII only, so that any name can be stored."""
    write_bytes(file, (json.dumps(content, indent=2) + "\n").encode())


def write_text(file: Path, content: str) -> None:
    """Replace a UTF-8 text file in one step; bytes of file names that are not UTF-8 are kept unchanged."""
    write_bytes(file, content.encode("utf-8", "surrogateescape"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder that appears complete or not at all.

    Yields:
        A temporary folder to write into; it is renamed to `path` at the end.

    Raises:
        OSError: the disk is full or not writable, or `path` exists and is not an empty folder; nothing
            is left behind, parent folders included.
    """
    created = [parent for parent in path.parents if not parent.exists()]
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        draft.chmod(0o755)
        yield draft
        draft.replace(path)
    except BaseException as error:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        remove_empty(created)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _synchronise_folder(path.parent)


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _synchronise_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_drafts(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process writes to."""
    for draft in folder.glob(".*.draft"):
        draft.unlink(missing_ok=True)


def write_csv(file: Path, columns: Sequence[str], lines: Iterable[Iterable[object]]) -> None:
    """Replace a CSV file in one step; raises OSError where it cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text(file, text.getvalue())
