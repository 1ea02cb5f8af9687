"""Conversion of images in memory to network inputs; ambiguous images are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualcaps.data.images import ValueRange, choose_value_range, picture_to_array, picture_values, scale_values
from dualcaps.errors import DataError


def images_from(what: Any, image_shape: tuple[int, int, int], value_range: ValueRange | None = None) -> Tensor:
    """Convert images of any common form to network inputs.

    Args:
        what: a tensor, array or list of images [N, C, H, W], [N, H, W, C] or, in grey, [N, H, W]; one image [C, H, W],
            [H, W, C] or [H, W]; a PIL image or a list of them, which are stretched to the size and brought to the
            channels as image files are.
        image_shape: channels, height and width that the network takes.
        value_range: the pixel values of black and white, for images that are neither uint8 nor floats in [0, 1].

    Returns:
        uint8 [N, C, H, W] from 0 to 255, or float32 in [0, 1].

    Raises:
        DataError: another shape, or an unknown range of values.

    Example:
        >>> images_from(np.zeros((28, 28), np.uint8), (1, 28, 28)).shape
        torch.Size([1, 1, 28, 28])
    """
    if isinstance(what, Image.Image):
        what = [what]
    if isinstance(what, list | tuple):
        if not what:
            return torch.empty(0, *image_shape, dtype=torch.uint8)
        if all(isinstance(image, Image.Image) for image in what):
            return torch.from_numpy(
                np.stack([picture_to_array(image, image_shape, "image", value_range) for image in what])
            )
        what = stacked(what)
    tensor = _as_tensor(what)
    return _scaled(_with_layout(tensor, image_shape), value_range)


def pixels_from(
    what: Any, value_range: ValueRange | None, channels_last: bool | None, name: str
) -> tuple[np.ndarray, ValueRange | None]:
    """uint8 images [N, C, H, W] of a data set whose shape is not known yet.

    Args:
        what: images [N, H, W], [N, H, W, C] or [N, C, H, W]; an array, a tensor or a list of arrays or PIL images.
        value_range: the pixel values that stand for black and white; by default taken from all images together.
        channels_last: position of the channels, if it does not follow from the shape.
        name: what messages call the images.

    Returns:
        The images, and the range they were scaled from; None for uint8.

    Raises:
        DataError: another shape, or an unknown range of values.
    """
    array = array_from(what)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"{name}: images must be [N, H, W], [N, H, W, C] or [N, C, H, W], got {array.shape}")
    if array.ndim == 3:
        array = array[:, None]
    else:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if channels_last is None and first == last:
            raise DataError(
                f"{name}: images of shape {array.shape}: say where their 1 or 3 channels are (channels_last)"
                if first
                else f"{name}: images of shape {array.shape} have neither 1 nor 3 channels"
            )
        if channels_last or (channels_last is None and last):
            array = array.transpose(0, 3, 1, 2)
        if array.shape[1] not in (1, 3):
            raise DataError(f"{name}: images with {array.shape[1]} channels where 1 or 3 are read")
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255), None
    if array.dtype.kind == "c":
        raise DataError(f"{name}: images of complex numbers")
    if value_range is None and array.dtype.kind in "iu" and array.max() == 1:
        raise DataError(f"{name}: whole numbers 0 and 1 only: give booleans, or value_range=(0, 1)")
    if array.dtype == np.uint8 and value_range is None:
        return array, None
    if not np.isfinite(array).all():
        raise DataError(f"{name}: values that are not finite numbers")
    if value_range is None:
        value_range = choose_value_range(float(array.min()), float(array.max()), array.dtype.kind == "f", name)
        if value_range[1] == 255 and array.dtype.kind != "f":
            return array.astype(np.uint8), None
    return scale_values(array, value_range), value_range


def array_from(what: Any) -> np.ndarray:
    """Images of any supported kind as an array; raises DataError for anything else."""
    return _as_tensor(stacked(what) if isinstance(what, list | tuple) else what).detach().cpu().numpy()


def common_ranges(
    arrays: Mapping[str, np.ndarray], value_range: ValueRange | None, name: str
) -> dict[str, ValueRange | None]:
    """The value range of each part: one for all parts, None for 8-bit images and booleans, which are not scaled.

    Args:
        arrays: the images by part.
        value_range: the range, if it is known.
        name: the data set's name in error messages.
    """
    deep = [part for part, array in arrays.items() if array.dtype not in (np.uint8, np.dtype(bool))]
    if value_range is not None or not deep:
        return dict.fromkeys(arrays, value_range)
    if any(0 in arrays[part].shape for part in deep):
        return dict.fromkeys(arrays)  # pixels_from refuses empty parts
    extremes = np.array([extreme for part in deep for extreme in (arrays[part].min(), arrays[part].max())])
    found = pixels_from(extremes.reshape(1, 1, -1), None, None, name)[1]
    return {part: found if part in deep else None for part in arrays}


def stacked(images: Sequence[Any]) -> np.ndarray:
    """Images of any kind as one array; raises DataError where their shapes or types differ."""
    arrays = [_image_values(image) for image in images]
    if len(shapes := {array.shape for array in arrays}) > 1:
        several = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise DataError(f"images of different shapes, such as {several}: resize them to one")
    if not arrays:
        raise DataError("no images")
    types = {array.dtype for array in arrays}
    if len(types) > 1 and not types <= _PYTHON_NUMBERS:
        several = " and ".join(sorted(map(str, types))[:2])
        raise DataError(f"images of different types, such as {several}: convert them to one")
    return np.stack(arrays)


_PYTHON_NUMBERS = {np.dtype(np.int64), np.dtype(np.float64)}  # types of arrays made from lists of numbers


def _image_values(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return picture_values(image)
    return np.asarray(_as_tensor(image).detach().cpu() if isinstance(image, Tensor) else image)


def _as_tensor(what: Any) -> Tensor:
    if isinstance(what, Tensor):
        if what.dtype == torch.bfloat16:
            return what.float()  # numpy has no bfloat16
        unsigned = (torch.uint16, torch.uint32, torch.uint64)  # torch lacks most operations for these
        return what.to(torch.int64) if what.dtype in unsigned else what
    try:
        array = np.asarray(what)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"images must be a tensor, an array, PIL images or a list of these, got {type(what).__name__}"
        ) from error


def _with_layout(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Bring images of any unambiguous layout to [N, C, H, W]."""
    channels, height, width = image_shape
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1:] == image_shape:
        return images
    if len(shape) == 4 and shape[1:] == (height, width, channels):
        return images.permute(0, 3, 1, 2)
    if len(shape) == 3:
        one = [
            candidate
            for wanted, candidate in (
                ((channels, height, width), lambda: images[None]),
                ((height, width, channels), lambda: images.permute(2, 0, 1)[None]),
            )
            if shape == wanted
        ]
        batch = channels == 1 and shape[1:] == (height, width)
        if batch and one and shape != (1, height, width):
            raise DataError(
                f"images of shape {shape} may be one or {shape[0]}: give them as [N, {channels}, {height}, {width}]"
            )
        if one:
            return one[0]()
        if batch:
            return images[:, None]
    if shape == (height, width) and channels == 1:
        return images[None, None]
    raise DataError(
        f"images of shape {shape} do not fit the network, which takes [N, {channels}, {height}, {width}]: resize them"
    )


def _scaled(images: Tensor, value_range: ValueRange | None) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if images.is_complex():
        raise DataError("images of complex numbers")
    if not images.numel():
        return images.to(torch.float32)
    if not torch.isfinite(images).all():
        raise DataError("images with values that are not finite numbers")
    low, high = images.min().item(), images.max().item()
    if value_range is not None and not (images.is_floating_point() and low >= 0 and high <= 1):
        return ((images.double() - value_range[0]) / (value_range[1] - value_range[0])).clamp(0, 1).float()
    if images.is_floating_point():
        if low < 0 or high > 1:
            raise DataError(
                f"images of floats from {low:g} to {high:g} where 0 to 1 is expected: divide them, or convert to uint8"
            )
        return images.float()
    if low < 0 or high > 255 or high == 1:
        raise DataError(f"images of whole numbers from {low:g} to {high:g} where 0 to 255 is expected: scale them")
    return images.to(torch.uint8)
