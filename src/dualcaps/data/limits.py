"""Bounded reading of files and archives.

Sizes in headers are trusted only as far as the size of the file justifies; archives are read member by member
and never extracted to disk.
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
    """Input of the readers."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""
        ...


def read_file(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped; raises DataError as the readers do."""
    with unpacked(path) as stream:
        return read_up_to(stream, largest_content(path.stat().st_size))


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; errors of a damaged archive are converted to a DataError."""
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
    """Read a member; raises DataError if it is larger than `most` bytes."""
    if member.file_size > most:
        raise DataError(f"{path}: {member.filename} would take {member.file_size:,} bytes: not a trustworthy file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {member.filename} is compressed by an unsupported method: use deflate")
    with archive.open(member) as opened:
        return read_up_to(opened, member.file_size)


@contextmanager
def unpacked(path: Path, small: int = SMALL) -> Iterator["LimitedStream"]:
    """Open a file, decompressed if it is gzipped, with a limit on its content.

    `small` is the number of bytes that even the smallest file may contain.
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
    """A stream that raises DataError if a small file decompresses to a huge one."""

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
    """Number of bytes that a file of this size may decompress to."""
    return max(small, MOST_EXPANSION * file_size)


def raise_too_large(path: Path, size: int) -> NoReturn:
    """Raise DataError for a file that claims far more content than its size allows."""
    raise DataError(f"{path}: its {size:,} bytes claim to hold far more: not a trustworthy file")


def read_sizes(stream: Stream, kind: str, count: int, path: Path) -> tuple[int, ...]:
    """Numbers of a header."""
    header = stream.read(4 * count)
    if len(header) < 4 * count:
        raise DataError(f"{path}: truncated in the header: fetch it again")
    return tuple(int(size) for size in np.frombuffer(header, kind))


def read_rest(stream: Stream, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> np.ndarray:
    """Read an array of this shape, which must be exactly the rest of the stream."""
    expected = math.prod(shape) * dtype.itemsize
    body = read_up_to(stream, expected)
    if len(body) < expected:
        raise_wrong_length(path, expected, "fewer")
    if stream.read(1):
        raise_wrong_length(path, expected, "more")
    return np.frombuffer(body, dtype).reshape(shape)


def raise_wrong_length(path: Path, expected: int, relation: str) -> NoReturn:
    """Raise DataError for a file that is shorter or longer than its header says."""
    raise DataError(f"{path}: holds {relation} than the {expected} bytes its header promises: fetch it again")


def read_up_to(stream: Any, size: int) -> bytes:
    """Read up to `size` bytes, in chunks, so that a wrong size does not allocate memory."""
    body = bytearray()
    while len(body) < size and (piece := stream.read(min(CHUNK, size - len(body)))):
        body += piece
    return bytes(body)
