"""WebDataset tar files, read and written: samples whose files share a name up to its first dot.

    000000123.png   the image, in a format that is read as an image file
    000000123.cls   its label: a class number or name
    000000123.json  instead of .cls, or beside it: {"label": 3, "class": "cat"}, where the name is preferred

The order of the files of a sample is free, but they follow each other. Files are local or at URLs that fsspec opens
(s3://, gs://, hf://, https://, …), and are read from beginning to end.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import fsspec
import numpy as np
from PIL import Image

from dualcaps.data.dataset import ImageDataset
from dualcaps.data.images import IMAGE_SUFFIXES
from dualcaps.errors import DataError, display_path, one_line
from dualcaps.runs.files import write_with

_LARGEST_MEMBER = 190_000_000  # bytes of an image
_LARGEST_LABEL = 1 << 16
_SAMPLES_IN_A_FILE = 10_000
_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class Sample(NamedTuple):
    """An image of a tar file.

    image: the content of its file.
    label: a number or a name.
    name: in messages.
    number: the place of the label among the classes, if there is also a name.
    """

    image: bytes
    label: int | str
    name: str
    number: int | None = None


def is_url(source: str) -> bool:
    """Whether a source is a URL rather than a path."""
    return "://" in source


@contextmanager
def opened(url: str, mode: str) -> Iterator[IO[bytes]]:
    """Open a local file or a URL by fsspec.

    Raises:
        DataError: it cannot be opened, or the package for this kind of URL is not installed.
    """
    try:
        file = fsspec.url_to_fs(url)[0].open(url, mode)
    except ImportError as error:
        raise DataError(f"{display_path(url)}: {error}") from error
    except Exception as error:  # file systems raise errors of their own
        raise DataError(f"{display_path(url)}: cannot be opened ({one_line(error)})") from error
    with file:
        yield file


def read_tar(url: str) -> Iterator[Sample]:
    """The samples of a tar file, one after the other.

    Args:
        url: a path or a URL.

    Raises:
        DataError: it cannot be read, is damaged, or a sample has no image, two, or no label.
    """
    name = display_path(url)
    key, members = None, {}
    try:
        with opened(url, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                following, suffix = f"{folder}/{stem}", suffix.lower()
                if key is not None and following != key:
                    yield _sample(members, f"{name}: {display_path(key.lstrip('/'))}")
                    members = {}
                key = following
                most = _LARGEST_MEMBER if suffix in _SUFFIXES else _LARGEST_LABEL
                if suffix in _SUFFIXES or suffix in ("cls", "json"):
                    if member.size > most:
                        raise DataError(f"{name}: {display_path(member.name)} has {member.size:,} bytes, too many")
                    content = archive.extractfile(member)
                    assert content is not None
                    members[suffix] = content.read()
            if key is None:
                raise DataError(f"{name}: no files in this tar file")
            yield _sample(members, f"{name}: {display_path(key.lstrip('/'))}")
    except DataError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: not a tar file that can be read ({one_line(error)}): fetch it again") from error


def _sample(members: dict[str, bytes], name: str) -> Sample:
    images = [content for suffix, content in members.items() if suffix in _SUFFIXES]
    if len(images) != 1:
        raise DataError(f"{name}: {len(images)} images, one is expected")
    if "json" in members:
        try:
            content = json.loads(members["json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}.json: not JSON") from error
        if isinstance(content, dict):
            number, label = content.get("label"), content.get("class")
            if isinstance(label, str):
                return Sample(images[0], label, name, number if type(number) is int else None)
            if isinstance(number, int | str):
                return Sample(images[0], number, name)
    if "cls" not in members:
        raise DataError(f"{name}: no label: a .cls file, or a .json file with a label or class, is expected")
    try:
        text = members["cls"].decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}.cls: not text") from error
    if not text:
        raise DataError(f"{name}.cls: empty")
    return Sample(images[0], int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text, name)


def write_tars(data: ImageDataset, folder: str) -> Iterator[str]:
    """Write a data set as WebDataset tar files with PNG images, `train-000000.tar` and so on for each part.

    A file of a local folder appears when it is complete. The same data give the same files.

    Args:
        data: with 1 or 3 channels.
        folder: a path or a URL.

    Yields:
        The path or URL of each file, when it is written.

    Raises:
        DataError: images of other channels, or the files cannot be written.
        OSError: as DataError.
    """
    if data.image_shape[0] not in (1, 3):
        raise DataError(f"{data.name}: {data.image_shape[0]} channels: PNG images have 1 or 3")
    if not is_url(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation", "test"):
        split = getattr(data, part)
        numbers, number, held = split.labels.tolist(), 0, []
        for piece in split.pieces():
            for image in piece.split(1):
                held.append((number, image[0].numpy(), numbers[number]))
                number += 1
                if len(held) == _SAMPLES_IN_A_FILE or number == len(numbers):
                    url = f"{folder.rstrip('/')}/{part}-{(number - 1) // _SAMPLES_IN_A_FILE:06d}.tar"
                    _write(url, held, data.classes)
                    yield url
                    held = []


def _write(url: str, samples: Sequence[tuple[int, np.ndarray, int]], classes: Sequence[str]) -> None:
    if is_url(url):
        with opened(url, "wb") as stream:
            _write_samples(stream, samples, classes)
    else:
        write_with(Path(url), lambda stream: _write_samples(stream, samples, classes))


def _write_samples(stream: IO[bytes], samples: Sequence[tuple[int, np.ndarray, int]], classes: Sequence[str]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for number, pixels, label in samples:
            grey = len(pixels) == 1
            picture = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            about = json.dumps({"label": label, "class": classes[label]})
            for suffix, content in (
                ("png", encoded.getvalue()),
                ("cls", str(label).encode()),
                ("json", about.encode()),
            ):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
