"""A .npz file of images and labels, in the layouts of Keras, MedMNIST and others."""

import io
from collections import Counter
from pathlib import Path

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.cache import Content, Source
from dualcaps.data.convert import common_ranges, pixels_from
from dualcaps.data.dataset import number_labels
from dualcaps.data.images import resize, to_grey
from dualcaps.data.limits import largest_content, open_zip, raise_too_large, read_member
from dualcaps.data.sources.card import Labelled
from dualcaps.data.sources.encoded import natural_size, relevant_options
from dualcaps.errors import DataError, display_path

_IMAGE_WORDS, _LABEL_WORDS = ("x", "images", "data", "image"), ("y", "labels", "target", "targets", "label")
_PART_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_CLASS_WORDS = ("classes", "class_names", "label_names", "names")


def npz_source(path: Path, config: DataConfig) -> Source:
    """A .npz file, found but not read."""
    return Source(
        [path], {"own": True, **relevant_options(config)}, lambda: _read(path, config), (), lambda: _sizes(path)
    )


def _sizes(path: Path) -> Counter[tuple[int, int]]:
    sizes: Counter[tuple[int, int]] = Counter()
    for images, _ in read_npz(path)[0].values():
        one, _ = pixels_from(np.zeros((1, *images.shape[1:]), np.uint8), None, None, display_path(path))
        sizes[one.shape[2], one.shape[3]] += len(images)
    return sizes


def _read(path: Path, config: DataConfig) -> Content:
    arrays, names, notes = read_npz(path)
    name = display_path(path)
    ranges = common_ranges({part: images for part, (images, _) in arrays.items()}, config.value_range, name)
    pixels = {part: pixels_from(images, ranges[part], None, f"{name}: {part}") for part, (images, _) in arrays.items()}
    if len({images.shape[1] for images, _ in pixels.values()}) > 1:
        raise DataError(f"{name}: the parts have not the same number of channels")
    used = next((found for _, found in pixels.values() if found is not None), None)
    if used is not None and config.value_range is None:
        notes += (f"values {used[0]:g} to {used[1]:g} taken as black to white (--value-range)",)
    classes, numbers = number_labels({part: labels for part, (_, labels) in arrays.items()}, names, name)
    if names is None and classes != tuple(str(number) for number in range(len(classes))):
        shown = ", ".join(classes[:6]) + (", …" if len(classes) > 6 else "")
        notes += (f"classes are the {len(classes)} distinct labels: {shown}",)
    for label, class_name in enumerate(classes):
        if not (numbers["train"] == label).any():
            raise DataError(f"{name}: class {class_name!r} has no training images: name only classes that occur")
    size = config.image_size or natural_size({images.shape[2:] for images, _ in pixels.values()})
    read: Labelled = {}
    for part, (images, _) in pixels.items():
        if images.shape[2:] != size:
            images = np.stack([resize(np.ascontiguousarray(image), size) for image in images])
        read[part] = (to_grey(images) if config.channels == 1 and images.shape[1] == 3 else images), numbers[part]
    return Content(read, classes, None, notes, used)


def read_npz(
    path: Path,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...] | None, tuple[str, ...]]:
    """The images and labels of a .npz file by part, its class names if it has any, and notes.

    Images are `x`, `images` or `data`, labels `y`, `labels` or `target`; parts are named train, val (valid,
    validation) or test before or after these words: `x_train`, `train_images`, … Class names are `classes`.

    Raises:
        DataError: a damaged file, images without labels, or none of these names.
    """
    name = display_path(path)
    largest = largest_content(path.stat().st_size)
    with open_zip(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if sum(member.file_size for member in members.values()) > largest:
            raise_too_large(path, path.stat().st_size)

        def array(key: str) -> np.ndarray:
            content = read_member(archive, members[key], largest, path)
            try:
                return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False, max_header_size=10_000)
            except Exception as error:  # a damaged header can make numpy raise anything
                raise DataError(f"{name}: {key} is no array that can be read ({type(error).__name__})") from error

        keys: dict[str, dict[str, str]] = {}
        ignored = []
        class_key = None
        for key in members:
            place = _place(key)
            if key.lower() in _CLASS_WORDS:
                class_key = key
            elif place is None:
                ignored.append(key)
            elif place[1] in keys.setdefault(place[0], {}):
                raise DataError(
                    f"{name}: {keys[place[0]][place[1]]} and {key} are both the {place[0]} {place[1]}: keep one"
                )
            else:
                keys[place[0]][place[1]] = key
        for part, found in keys.items():
            if len(found) < 2:
                lacks = "labels" if "images" in found else "images"
                raise DataError(f"{name}: {next(iter(found.values()))} has no {lacks} of the {part} part beside it")
        if "train" not in keys:
            raise DataError(
                f"{name}: holds no x and y (or x_train and y_train) but {', '.join(sorted(members)) or 'nothing'}"
            )
        raw = {part: (array(found["images"]), array(found["labels"])) for part, found in keys.items()}
        names = None if class_key is None else array(class_key)
    for part, (images, labels) in raw.items():
        if images.dtype.kind not in "uifb" or images.ndim not in (3, 4) or 0 in images.shape:
            raise DataError(
                f"{name}: {keys[part]['images']} is {images.dtype} of shape {images.shape}, not images [N, H, W] or "
                "[N, H, W, C]"
            )
        if labels.shape not in ((len(images),), (len(images), 1)):
            raise DataError(f"{name}: {keys[part]['labels']} of shape {labels.shape} for {len(images)} images")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise DataError(f"{name}: {class_key} is {names.dtype} of shape {names.shape}, not a list of names")
    notes = (f"arrays not used: {', '.join(sorted(ignored))}",) if ignored else ()
    return raw, None if names is None else tuple(names.astype(str).tolist()), notes


def _place(key: str) -> tuple[str, str] | None:
    """The part and "images" or "labels" from an array's name; None if the name says neither."""
    words = key.lower().split("_")
    part = "train"
    for name, known in _PART_WORDS.items():
        if len(words) == 2 and (words[0] in known or words[1] in known):
            part = name
            words = [word for word in words if word not in known]
    if len(words) != 1:
        return None
    if words[0] in _IMAGE_WORDS:
        return part, "images"
    return (part, "labels") if words[0] in _LABEL_WORDS else None
