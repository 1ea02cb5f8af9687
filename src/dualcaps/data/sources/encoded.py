"""Reading of own image files, or their contents, at one shape; damaged files are reported together."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.images import Encoded, ValueRange, find_value_range, inspect_images, read_images
from dualcaps.data.sources.card import Labelled
from dualcaps.errors import DataError

LARGEST_KEPT_SIDE = 64
"""Own images that all have one size keep it up to so many pixels a side."""

_RESIZED_SIDE = 32
_MOST_NAMED = 20


def relevant_options(config: DataConfig) -> dict[str, object]:
    """The options that the content of own images depends on."""
    return {
        "image_size": config.image_size,
        "channels": config.channels,
        "skip_damaged": config.skip_damaged,
        "value_range": config.value_range,
    }


def read_encoded(
    parts: Mapping[str, tuple[Sequence[Encoded], np.ndarray]], config: DataConfig, name: str
) -> tuple[Labelled, ValueRange | None, tuple[str, ...], dict[str, np.ndarray]]:
    """Read the image files, or their contents, of all parts at a common shape.

    Args:
        parts: images and class numbers by part.
        config: the data options.
        name: used in messages for the data set, and for images that are given by their content.

    Returns:
        Images and labels by part, the range of values that images of more than 8 bits were scaled from, notes,
        and by part which images were kept.

    Raises:
        DataError: images that cannot be read, unless they are to be skipped; the message names all of them.
    """
    images = [image for encoded, _ in parts.values() for image in encoded]
    inspected = inspect_images(images, name)
    unread = dict(inspected.unread)
    value_range, notes = config.value_range, ()
    if inspected.deep and value_range is None:
        value_range, damaged = find_value_range([images[number] for number in inspected.deep], name)
        unread |= {inspected.deep[number]: reason for number, reason in damaged.items()}
        if value_range is not None:
            notes = (
                f"{len(inspected.deep):,} images are not of 8 bits: values {value_range[0]:g} to {value_range[1]:g} "
                "taken as black to white (--value-range)",
            )
    sizes = set(inspected.sizes) or {(_RESIZED_SIDE, _RESIZED_SIDE)}
    height, width = config.image_size or natural_size(sizes)
    shape = (config.channels or (3 if inspected.colour else 1), height, width)
    pixels = read_images(images, shape, name, unread, value_range)
    if unread and not config.skip_damaged:
        raise DataError(damaged_images(unread, len(images), name))
    if unread:
        notes += (f"{len(unread):,} damaged image files left out: {names_of_damaged(unread)}",)
    read: Labelled = {}
    kept: dict[str, np.ndarray] = {}
    start = 0
    for part, (encoded, labels) in parts.items():
        kept[part] = np.array([number not in unread for number in range(start, start + len(encoded))], bool)
        own = pixels[start : start + len(encoded)]
        read[part] = (own, labels) if kept[part].all() else (own[kept[part]], labels[kept[part]])
        start += len(encoded)
    return read, value_range if inspected.deep else None, notes, kept


def damaged_images(unread: Mapping[int, str], count: int, name: str) -> str:
    """The message about images that cannot be read, given the reasons by index, how many there are, and a name."""
    if len(unread) == 1:
        return f"{next(iter(unread.values()))}, or leave it out with --skip-damaged"
    return (
        f"{name}: {len(unread):,} of {count:,} images cannot be read: {names_of_damaged(unread)}: replace or remove "
        "them, or leave them out with --skip-damaged"
    )


def names_of_damaged(unread: Mapping[int, str]) -> str:
    """The names of damaged files, taken from the beginnings of their messages."""
    names = [
        re.split(r": (?:cannot be read|not an image|no such file|images of|values)", reason)[0]
        for _, reason in sorted(unread.items())
    ]
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def natural_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """Height and width for own images: their common size if it is at most 64 pixels a side, otherwise 32x32."""
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= LARGEST_KEPT_SIDE:
        return size
    return _RESIZED_SIDE, _RESIZED_SIDE
