"""Decoding of image files of any size and mode into one uint8 array.

8-bit images are not changed. Others (16-bit and 32-bit integers, floats) are scaled from the range of values of
the whole data set, or from a given range.
"""

import functools
import io
import math
import os
import shutil
import struct
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from PIL import Image, ImageOps, UnidentifiedImageError

from dualcaps.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tga", ".pcx", ".jp2", ".j2k", ".avif"),
    }
)
"""Suffixes of files that are read as images."""

ValueRange = tuple[float, float]
"""The pixel values of black and white."""

_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})

_ORIENTATION = 0x0112  # EXIF tag

# Pillow's other formats are not needed, and some of them start external programs; JPEG includes MPO.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA", "PCX", "JPEG2000", "AVIF")
_DEEP_MODES = ("I", "F")  # and I;16 with its byte orders
_MOST_BYTES = 190_000_000  # that decoding may take over the file's own size
_LARGE_BYTES = 100_000_000  # pictures that take more are decoded one at a time
_one_large_picture = threading.Lock()
_IN_MEMORY = 1 << 28  # bytes of an array that is not in a file
_COPIED_AT_ONCE = 256  # images
_MOST_SCANS = 64  # of a progressive JPEG, each decoded over the whole picture


Encoded = Path | bytes
"""An image file: its path or its content."""


class Inspected(NamedTuple):
    """Information from the headers of images.

    sizes: the number of images of each size (height, width).
    colour: whether any image is in colour.
    deep: indices of images with more than 8 bits per channel.
    unread: reasons, by index, why images cannot be read.
    """

    sizes: Counter[tuple[int, int]]
    colour: bool
    deep: list[int]
    unread: dict[int, str]


def inspect_images(images: Sequence[Encoded], name: str | Sequence[str] = "") -> Inspected:
    """Read the headers of images.

    `name` is used in messages for images that are given by their content; or the name of each image.
    """
    unread: dict[int, str] = {}

    def header(number: int) -> tuple[tuple[int, int], bool, bool] | None:
        try:
            with _opened(images[number], _name(images[number], name, number)) as image:
                size = (image.width, image.height) if _is_sideways(image) else (image.height, image.width)
                return size, image.mode in _COLOUR_MODES, is_deep(image)
        except DataError as error:
            unread[number] = str(error)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(header, range(len(images))))
    known = [found for found in headers if found]
    deep = [number for number, found in enumerate(headers) if found and found[2]]
    return Inspected(Counter(size for size, _, _ in known), any(colour for _, colour, _ in known), deep, unread)


def find_value_range(images: Sequence[Encoded], name: str = "") -> tuple[ValueRange | None, dict[int, str]]:
    """Find the common range of values of images that are not 8-bit.

    Returns:
        The range by `choose_value_range`, or None if no image can be read; and, by index, the reasons why images
        cannot be read.
    """
    unread: dict[int, str] = {}

    def extremes(number: int) -> tuple[float, float, bool] | None:
        try:
            with _opened(images[number], _name(images[number], name, number)) as image, _room_for(image, None):
                image.load()
                pixels = np.asarray(image)
                if not np.isfinite(pixels).all():
                    raise ValueError("values that are not finite numbers")
                return float(pixels.min()), float(pixels.max()), pixels.dtype.kind == "f"
        except DataError as error:
            unread[number] = str(error)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [values for values in pool.map(extremes, range(len(images))) if values]
    if not found:
        return None, unread
    low, high = min(values[0] for values in found), max(values[1] for values in found)
    return choose_value_range(low, high, any(values[2] for values in found), name or "images"), unread


def choose_value_range(low: float, high: float, floats: bool, name: str) -> ValueRange:
    """Choose the range for values from `low` to `high`: 0 to 1 for floats, or 8, 12 or 16 bits.

    Raises:
        DataError: no such range contains the values.
    """
    if low >= 0:
        for largest in ((1.0,) if floats else ()) + (255.0, 4095.0, 65535.0):
            if high <= largest:
                return 0.0, largest
    raise DataError(f"{name}: values from {low:g} to {high:g}: give the values of black and white (--value-range)")


def scale_values(pixels: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Scale values from a range to uint8; values outside are clipped. Of 16 bits the low byte is dropped."""
    low, high = value_range
    if value_range == (0.0, 65535.0) and pixels.dtype.kind in "iu":
        return (pixels.clip(0, 0xFFFF) >> 8).astype(np.uint8)
    scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def read_images(
    images: Sequence[Encoded],
    shape: tuple[int, int, int],
    name: str | Sequence[str] = "",
    unread: dict[int, str] | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Read images into one uint8 array [N, C, H, W], each brought to `shape` (C, H, W).

    Args:
        images, shape, value_range: see `read_image`.
        name: used in messages for images that are given by their content; or the name of each image.
        unread: if given, filled with the reasons, by index, why images cannot be read; these images are black.

    Raises:
        DataError: an image that cannot be read, without `unread`; or `shape` has other than 1 or 3 channels.
    """
    check_channels(shape[0])
    pixels = new_pixels((len(images), *shape))

    def decode(number: int) -> None:
        try:
            pixels[number] = read_image(images[number], shape, _name(images[number], name, number), value_range)
        except DataError as error:
            if unread is None:
                raise
            unread[number] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(images))):
            pass
    return pixels


def check_channels(channels: int) -> None:
    """Raise DataError if image files cannot have so many channels, as those of a stereo pair."""
    if channels not in (1, 3):
        raise DataError(
            f"image files have 1 or 3 channels, the network takes {channels}: call predict or evaluate with arrays"
        )


def new_pixels(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of zeros; one of more than 256 MB is in a temporary file, which takes only free memory.

    The file is in the user cache, as /tmp may be memory; it has no name and disappears with the process.
    """
    if math.prod(shape) > _IN_MEMORY:
        folder = platformdirs.user_cache_path("dualcaps")
        with suppress(OSError):  # without permission the array is in memory
            folder.mkdir(parents=True, exist_ok=True)
            # Writing to a mapped file on a full disk kills the process, and the pack of these images is written too.
            if shutil.disk_usage(folder).free > 3 * math.prod(shape):
                with tempfile.TemporaryFile(dir=folder) as file:
                    return np.memmap(file, np.uint8, "w+", shape=shape)
    return np.zeros(shape, np.uint8)


def select_pixels(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The images at some indices, copied into an array from `new_pixels` if there are many."""
    if images[:1].size * len(indices) <= _IN_MEMORY:
        return images[indices]
    selected = new_pixels((len(indices), *images.shape[1:]))
    for start in range(0, len(indices), _COPIED_AT_ONCE):
        chosen = slice(start, start + _COPIED_AT_ONCE)
        selected[chosen] = images[indices[chosen]]
    return selected


def read_image(
    image_file: Encoded,
    shape: tuple[int, int, int],
    name: str | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Read one image file as uint8 [C, H, W].

    The EXIF orientation is applied, transparency becomes white, and colour is converted to luminance if one
    channel is requested. Images are resized as in `resize`; a JPEG at least four times larger is first decoded
    at a half, a quarter or an eighth of its size.

    Args:
        image_file: its path or content.
        shape: channels (1 or 3), height and width to bring it to.
        name: used in messages; by default its path.
        value_range: of images that are not 8-bit; None takes it from this image alone.

    Raises:
        DataError: the image cannot be read.
    """
    name = name or _name(image_file, "image")
    with _opened(image_file, name) as image, _room_for(image, shape):
        return _read(image, shape, name, value_range)


@contextmanager
def _room_for(image: Image.Image, shape: tuple[int, int, int] | None) -> Iterator[None]:
    """Limit the memory for decoding an opened image; large images are decoded one at a time."""
    needed = 6 * image.width * image.height if image.info.get("progressive") else 0
    if shape is not None:
        longest = max(shape[1:])
        image.draft(None, (2 * longest, 2 * longest))
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    needed += (16 if image.format == "WEBP" else 4 if plain else 8) * image.width * image.height
    if _has_orientation(image):
        needed += 4 * image.width * image.height  # rotation makes a copy
    if needed > _MOST_BYTES + image.info["bytes"]:
        raise ValueError(f"{image.width}x{image.height} pixels take {needed / 1e6:,.0f} MB to decode: shrink it")
    with _one_large_picture if needed > _LARGE_BYTES else nullcontext():
        try:
            yield
        finally:
            image.close()  # frees the pixels before the next image is decoded


def _read(image: Image.Image, shape: tuple[int, int, int], name: str, value_range: ValueRange | None) -> np.ndarray:
    image.load()
    return picture_to_array(image, shape, name, value_range)


def picture_to_array(
    image: Image.Image, shape: tuple[int, int, int], name: str, value_range: ValueRange | None
) -> np.ndarray:
    """An image of any mode as uint8 [C, H, W]; see `read_image`."""
    if _has_orientation(image):
        image = ImageOps.exif_transpose(image)
    if is_deep(image):
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all():
            raise DataError(f"{name}: values that are not finite numbers: replace or remove it")
        if value_range is None:
            value_range = choose_value_range(float(pixels.min()), float(pixels.max()), pixels.dtype.kind == "f", name)
        image = Image.fromarray(scale_values(pixels, value_range))
    return image_to_array(image, shape)


def is_deep(image: Image.Image) -> bool:
    """Whether its values are not of 8 bits."""
    return image.mode.startswith(_DEEP_MODES)


def picture_values(image: Image.Image) -> np.ndarray:
    """The values of an image of any mode, [H, W] in grey or [H, W, 3] in colour; uint8 unless it is deep.

    The EXIF rotation is applied and transparency becomes white, as by `read_image`.
    """
    if _has_orientation(image):
        image = ImageOps.exif_transpose(image)
    if is_deep(image):
        return np.asarray(image)
    grey = image.mode in ("1", "L", "LA")
    pixels = image_to_array(image, (1 if grey else 3, image.height, image.width))
    return pixels[0] if grey else pixels.transpose(1, 2, 0)


def image_to_array(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert an 8-bit image to uint8 [C, H, W] of the given shape."""
    size = shape[1:]
    if image.has_transparency_data:
        image = _resized(_in_mode(image, "RGBA"), size)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", "LA"):
        image = _in_mode(image, "RGB")  # some modes convert to grey only through RGB
    grey = shape[0] == 1 or image.mode != "RGB"
    return _to_array(_in_mode(_resized(_in_mode(image, "L") if grey else image, size), "L" if shape[0] == 1 else "RGB"))


def _has_orientation(image: Image.Image) -> bool:
    """Whether EXIF data specify an orientation other than upright."""
    if image.format == "PNG" and "exif" not in image.info:  # reading it would make Pillow decode the picture
        return False
    return image.getexif().get(_ORIENTATION, 1) != 1


def _is_sideways(image: Image.Image) -> bool:
    return _has_orientation(image) and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image [C, H, W] to (height, width): by area averaging if it shrinks, otherwise bilinearly."""
    if image.shape[1:] == size:
        return image
    return _to_array(_resized(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)), size))


def to_grey(images: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R 601) of uint8 images [N, 3, H, W], as uint8 [N, 1, H, W]."""
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for start in range(0, len(images), 1000):  # in chunks, as the sums take four bytes per value
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


def _name(image: Encoded, container: str | Sequence[str], number: int | None = None) -> str:
    if isinstance(image, Path):
        return str(image)
    if not isinstance(container, str):
        return container[number or 0]
    return container if number is None else f"{container}: image {number}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats of `_FORMATS` that the installed Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _opened(image_file: Encoded, name: str) -> Iterator[Image.Image]:
    """Open an image; every error is converted to a DataError that names the file."""
    try:
        content = image_file if isinstance(image_file, bytes) else image_file.read_bytes()
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            image.info["bytes"] = len(content)
            if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > _MOST_SCANS:
                raise ValueError("more scans than any picture needs: not a trustworthy file")
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image that can be read: replace or remove it") from error
    except (
        *(OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError, EOFError, struct.error, zlib.error),
        *(MemoryError, Image.DecompressionBombError, IndexError, AttributeError, AssertionError, NotImplementedError),
    ) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{name}: cannot be read ({reason}): replace or remove it") from error
