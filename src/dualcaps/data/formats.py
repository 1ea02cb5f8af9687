"""Bytes to arrays: the readers of file formats, each strict, each telling what is wrong in one line."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dualcaps.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
_CHUNK = 1 << 24


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, the format of MNIST, gzipped or not.

    Raises:
        DataError: the file is not IDX, holds other numbers than unsigned bytes, or is shorter or
            longer than its header says.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _parse_idx(raw, path)
            with gzip.open(raw) as unpacked:
                return _parse_idx(unpacked, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error


def _parse_idx(stream: BinaryIO | gzip.GzipFile, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
        raise DataError(f"{path}: not an IDX file (it starts with {magic.hex() or 'nothing'})")
    if magic[2] != 0x08:
        raise DataError(f"{path}: IDX type 0x{magic[2]:02x} is not unsigned bytes (0x08)")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path}: truncated in the header: fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    expected = math.prod(shape)
    # Read in pieces, so that a header that lies costs no more memory than the file holds.
    body = bytearray()
    while len(body) <= expected and (piece := stream.read(min(_CHUNK, expected + 1 - len(body)))):
        body += piece
    if len(body) != expected:
        relation = "fewer" if len(body) < expected else "more"
        raise DataError(f"{path}: holds {relation} than the {expected} bytes its header promises: fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class sub-folder, by class name, both sorted.

    Files that do not end like an image are passed over, and so are hidden files and folders.

    Raises:
        DataError: there is no sub-folder, or one without images.
    """
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            classes[child.name] = list_images(child)
            if not classes[child.name]:
                raise DataError(f"{child}: no images in this class folder: add some or remove it")
    if not classes:
        raise DataError(f"{folder}: no class sub-folders: put the images of each class in a folder of their own")
    return classes


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, hidden ones left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def inspect_images(paths: Sequence[Path]) -> tuple[set[tuple[int, int]], bool]:
    """The sizes (height, width) that occur, and whether any image is in colour, from the headers alone.

    Raises:
        DataError: a file that is no image that can be read.
    """

    def header(path: Path) -> tuple[tuple[int, int], bool]:
        with _opened(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
            size = image.size if turned else (image.height, image.width)
            return size, image.mode in _COLOUR_MODES

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(header, paths))
    return {size for size, _ in headers}, any(colour for _, colour in headers)


def read_images(paths: Sequence[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Read images into one uint8 array [N, C, H, W], each brought to `shape` (C, H, W).

    See `read_image`; raises as it does.
    """
    pixels = np.empty((len(paths), *shape), np.uint8)

    def decode(index: int) -> None:
        pixels[index] = read_image(paths[index], shape)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass
    return pixels


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read one image file as uint8 [C, H, W].

    The EXIF rotation is applied, transparency becomes white, 16-bit grey loses its low byte;
    colour becomes grey by luminance where one channel is asked for. Images are stretched to the
    size, by area where they shrink and bilinearly where they grow.

    Raises:
        DataError: a file that is no image that can be read.
    """
    channels, height, width = shape
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise DataError(f"{path}: images of floating-point numbers are not read: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", "LA"):
        image = image.convert("RGB")  # some modes have no way to grey but this
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        shrinks = image.width >= width and image.height >= height
        image = image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, opened; whatever goes wrong with it becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that can be read: replace or remove it") from error
    except (
        *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
        Image.DecompressionBombError,
    ) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{path}: cannot be read ({reason}): replace or remove it") from error
