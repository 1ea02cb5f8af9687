"""Image files and folders of them: any size, any mode, one array out."""

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dualcaps.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})

# Pillow's other formats are not asked for, and some of them start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_MOST_PIXELS, _MOST_PIXELS_A_BYTE = 8_000_000, 20
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
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)  # EXIF orientations that swap the sides
            size = image.size if turned else (image.height, image.width)
            return size, image.mode in _COLOUR_MODES

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(header, range(len(images))))
    return {size for size, _ in headers}, any(colour for _, colour in headers)


def read_images(images: Sequence[Encoded], shape: tuple[int, int, int], name: str = "") -> np.ndarray:
    """Read images into one uint8 array [N, C, H, W], each brought to `shape` (C, H, W).

    `name` is what errors call images that are given by their content. See `read_image`; raises as
    it does.
    """
    pixels = np.empty((len(images), *shape), np.uint8)

    def decode(number: int) -> None:
        pixels[number] = read_image(images[number], shape, _name(images[number], name, number))

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(images))):
            pass
    return pixels


def read_image(image_file: Encoded, shape: tuple[int, int, int], name: str | None = None) -> np.ndarray:
    """Read one image file as uint8 [C, H, W].

    The EXIF rotation is applied, transparency becomes white, 16-bit grey loses its low byte;
    colour becomes grey by luminance where one channel is asked for. Images are stretched to the
    size as `resize` does.

    Args:
        image_file: its path or content.
        shape: channels (1 or 3), height and width to bring it to.
        name: what errors call it, by default its path.

    Raises:
        DataError: no image that can be read.
    """
    name = name or _name(image_file, "image")
    with _opened(image_file, name) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode == "F":
        raise DataError(f"{name}: images of floating-point numbers are not read: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", "LA"):
        image = image.convert("RGB")  # some modes have no way to grey but this
    return _to_array(_resized(image.convert("L" if shape[0] == 1 else "RGB"), shape[1:]))


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
            if image.width * image.height > max(_MOST_PIXELS, _MOST_PIXELS_A_BYTE * len(content)):
                raise ValueError(f"{image.width}x{image.height} pixels in {len(content):,} bytes: not a file to trust")
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
