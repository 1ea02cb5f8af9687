"""Bounded reading: files and archives are read only as far as their size can justify.

Sizes in headers are trusted only as far as the file's own size and what it unpacks to support them;
archives are read member by member, and nothing in them is ever written.
"""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np

from dualcaps.errors import DataError

CHUNK = 1 << 22
SMALL = 150_000_000
MOST_EXPANSION = 20


class Stream(Protocol):
    """What the readers read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""
        ...


def read_file(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped; raises DataError as the readers do."""
    with unpacked(path) as stream:
        return read_up_to(stream, largest_content(path.stat().st_size))


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive, whose damages become a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, KeyError),
        *(struct.error, OverflowError, MemoryError),
    ) as error:
        raise DataError(f"{path}: damaged archive ({' '.join(str(error).split())}): fetch it again") from error


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, path: Path) -> bytes:
    """A member's content; raises DataError where it would be larger than `most` bytes."""
    if member.file_size > most:
        raise DataError(f"{path}: {member.filename} would take {member.file_size:,} bytes: not a file to trust")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {member.filename} is packed in a way that is not read: pack it with zip's own")
    with archive.open(member) as opened:
        return read_up_to(opened, member.file_size)


@contextmanager
def unpacked(path: Path, small: int = SMALL) -> Iterator["LimitedStream"]:
    """The file's content, unpacked if it is gzipped, and never much more than it can rightly hold.

    `small` is how many bytes any file may hold, however small it is.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.open(raw) as unpacked:
                    yield LimitedStream(unpacked, path, small)
            else:
                yield LimitedStream(raw, path, small)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error


class LimitedStream:
    """A stream that ends in a DataError where a small file unpacks to a huge one."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, path: Path, small: int) -> None:
        self.stream, self.path = stream, path
        self.size = path.stat().st_size
        self.left = largest_content(self.size, small)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        if size > self.left:
            raise_too_large(self.path, self.size)
        content = self.stream.read(size)
        self.left -= len(content)
        return content


def largest_content(file_size: int, small: int = SMALL) -> int:
    """How many bytes a file of this size may unpack to."""
    return max(small, MOST_EXPANSION * file_size)


def raise_too_large(path: Path, size: int) -> NoReturn:
    """Refuse a file that claims to hold far more than its size allows."""
    raise DataError(f"{path}: its {size:,} bytes claim to hold far more: not a file to trust")


def read_sizes(stream: Stream, kind: str, count: int, path: Path) -> tuple[int, ...]:
    """Numbers of a header."""
    header = stream.read(4 * count)
    if len(header) < 4 * count:
        raise DataError(f"{path}: truncated in the header: fetch it again")
    return tuple(int(size) for size in np.frombuffer(header, kind))


def read_rest(stream: Stream, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> np.ndarray:
    """The array of this shape that the rest of the stream must hold exactly."""
    expected = math.prod(shape) * dtype.itemsize
    body = read_up_to(stream, expected)
    if len(body) < expected:
        raise_wrong_length(path, expected, "fewer")
    if stream.read(1):
        raise_wrong_length(path, expected, "more")
    return np.frombuffer(body, dtype).reshape(shape)


def raise_wrong_length(path: Path, expected: int, relation: str) -> NoReturn:
    """Refuse a file that is shorter or longer than its header says."""
    raise DataError(f"{path}: holds {relation} than the {expected} bytes its header promises: fetch it again")


def read_up_to(stream: Any, size: int) -> bytes:
    """`size` bytes or what there is; in pieces, so that a size that lies costs no memory."""
    body = bytearray()
    while len(body) < size and (piece := stream.read(min(CHUNK, size - len(body)))):
        body += piece
    return bytes(body)
