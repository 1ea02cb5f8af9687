"""Image files and folders of them: any size, any mode, one array out."""

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dualcaps.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[number] for number in (5, 6, 7, 8)}

# Pillow's other formats are not asked for, and some of them start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_MOST_BYTES = 190_000_000  # that decoding may take over the file's own size
_LARGE_BYTES = 100_000_000  # pictures that take more are decoded one at a time
_one_large_picture = threading.Lock()
_MOST_SCANS = 64  # of a progressive JPEG, each decoded over the whole picture


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


Encoded = Path | bytes
"""An image file: where it is, or its content."""


def inspect_images(images: Sequence[Encoded], name: str = "") -> tuple[set[tuple[int, int]], bool]:
    """The sizes (height, width) that occur, and whether any image is in colour, from the headers alone.

    `name` is what errors call images that are given by their content.

    Raises:
        DataError: a file that is no image that can be read.
    """

    def header(number: int) -> tuple[tuple[int, int], bool]:
        with _opened(images[number], _name(images[number], name, number)) as image:
            size = image.size if _turn(image) in _SIDEWAYS else (image.height, image.width)
            return size, image.mode in _COLOUR_MODES

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(header, range(len(images))))
    return {size for size, _ in headers}, any(colour for _, colour in headers)


def read_images(
    images: Sequence[Encoded], shape: tuple[int, int, int], name: str = "", unread: dict[int, str] | None = None
) -> np.ndarray:
    """Read images into one uint8 array [N, C, H, W], each brought to `shape` (C, H, W).

    `name` is what errors call images that are given by their content. See `read_image`; raises as
    it does, unless there is `unread` to note an image's number and the reason in: then it is black.
    """
    pixels = np.zeros((len(images), *shape), np.uint8)

    def decode(number: int) -> None:
        try:
            pixels[number] = read_image(images[number], shape, _name(images[number], name, number))
        except DataError as error:
            if unread is None:
                raise
            unread[number] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(images))):
            pass
    return pixels


def read_image(image_file: Encoded, shape: tuple[int, int, int], name: str | None = None) -> np.ndarray:
    """Read one image file as uint8 [C, H, W].

    The EXIF rotation is applied, transparency becomes white, 16-bit grey loses its low byte;
    colour becomes grey by luminance where one channel is asked for. Images are stretched to the
    size as `resize` does; a JPEG at least four times larger is decoded at a half, a quarter or an
    eighth of its size first.

    Args:
        image_file: its path or content.
        shape: channels (1 or 3), height and width to bring it to.
        name: what errors call it, by default its path.

    Raises:
        DataError: no image that can be read.
    """
    name = name or _name(image_file, "image")
    with _opened(image_file, name) as image, _room_for(image, shape):
        return _read(image, shape, name)


@contextmanager
def _room_for(image: Image.Image, shape: tuple[int, int, int]) -> Iterator[None]:
    """Memory to decode an opened image in; large ones wait for each other."""
    needed = 6 * image.width * image.height if image.info.get("progressive") else 0
    longest = max(shape[1:])
    image.draft(None, (2 * longest, 2 * longest))
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    needed += (16 if image.format == "WEBP" else 4 if plain else 8) * image.width * image.height
    if needed > _MOST_BYTES + image.info["bytes"]:
        raise ValueError(f"{image.width}x{image.height} pixels take {needed / 1e6:,.0f} MB to decode: shrink it")
    with _one_large_picture if needed > _LARGE_BYTES else nullcontext():
        try:
            yield
        finally:
            image.close()  # gives the pixels back before the next one is let in


def _read(image: Image.Image, shape: tuple[int, int, int], name: str) -> np.ndarray:
    image.load()
    turn = _turn(image)
    size = (shape[2], shape[1]) if turn in _SIDEWAYS else shape[1:]
    if image.mode == "F":
        raise DataError(f"{name}: images of floating-point numbers are not read: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = _resized(_in_mode(image, "RGBA"), size)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", "LA"):
        image = _in_mode(image, "RGB")  # some modes have no way to grey but this
    grey = shape[0] == 1 or image.mode != "RGB"
    image = _in_mode(_resized(_in_mode(image, "L") if grey else image, size), "L" if shape[0] == 1 else "RGB")
    return _to_array(image.transpose(turn) if turn is not None else image)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF data say to turn the picture."""
    if image.format == "PNG" and "exif" not in image.info:  # asked for it, Pillow would decode the picture
        return None
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch a uint8 image [C, H, W] to (height, width): by area where it shrinks, else bilinearly."""
    if image.shape[1:] == size:
        return image
    return _to_array(_resized(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)), size))


def to_grey(images: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R 601) of uint8 images [N, 3, H, W], as uint8 [N, 1, H, W]."""
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for start in range(0, len(images), 1000):  # in pieces, as the sums take four bytes a number
        red, green, blue = images[start : start + 1000].astype(np.uint32).transpose(1, 0, 2, 3)
        grey[start : start + 1000, 0] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if (image.height, image.width) == size:
        return image
    shrinks = image.width >= width and image.height >= height
    return image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)


def _to_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _name(image: Encoded, container: str, number: int | None = None) -> str:
    if isinstance(image, Path):
        return str(image)
    return container if number is None else f"{container}: image {number}"


@contextmanager
def _opened(image_file: Encoded, name: str) -> Iterator[Image.Image]:
    """The image, opened; whatever goes wrong with it becomes a DataError that names the file."""
    try:
        content = image_file if isinstance(image_file, bytes) else image_file.read_bytes()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.info["bytes"] = len(content)
            if image.format == "JPEG" and content.count(b"\xff\xda") > _MOST_SCANS:
                raise ValueError("more scans than any picture needs: not a file to trust")
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image that can be read: replace or remove it") from error
    except (
        *(OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError, EOFError, struct.error, zlib.error),
        *(MemoryError, Image.DecompressionBombError),
    ) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{name}: cannot be read ({reason}): replace or remove it") from error
