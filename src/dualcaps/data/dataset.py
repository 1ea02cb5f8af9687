"""Labelled images in memory: `ImageSplit`, and `ImageDataset` with training, validation and test images."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dualcaps.config import DataConfig
from dualcaps.data.convert import array_from, common_ranges, pixels_from, stacked
from dualcaps.data.images import ValueRange, select_pixels
from dualcaps.data.shards import Shards
from dualcaps.data.splits import stratified_split
from dualcaps.errors import DataError

_HASHED_AT_ONCE = 4096  # images


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images of one part of a data set (training, validation or test).

    Attributes:
        images: channels first, 0 to 255; an array is converted.
        labels: class numbers from 0, int64; an array or list is converted.
        classes: class names in the order of the labels, if they are known.
        files: the file of each image, if the images were read from files of their own.
        attributes: what else is known of each image, by name: whole numbers [N], -1 where it is not known. Of
            smallNORB instance, elevation, azimuth (degrees) and lighting; of COIL-20 azimuth.
        shards: of a packed data set, from which training reads the images; `images` is then their file, mapped into
            memory.

    Raises:
        DataError: images that are not uint8 [N, C, H, W], or labels or attributes that are not N whole numbers.
    """

    images: UInt8[Tensor, "count channels height width"]
    labels: Int[Tensor, "count"]
    classes: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = field(default=None, repr=False)
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    shards: Shards | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        images = torch.from_numpy(self.images) if isinstance(self.images, np.ndarray) else self.images
        if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(f"images must be uint8 [N, C, H, W], got {_describe(images)}")
        labels = self.labels
        if isinstance(labels, np.ndarray | list | tuple):
            labels = torch.as_tensor(np.asarray(labels))
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(f"labels must be class numbers, got {_describe(labels)}")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{len(images):,} images but labels of shape {tuple(labels.shape)}")
        for name, values in self.attributes.items():
            if values.shape != labels.shape or values.dtype.kind not in "iu":
                raise DataError(f"{len(images):,} images but attribute {name} is {_describe(values)}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.to(torch.int64))

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        return f"ImageSplit({len(self):,} images, {height}x{width}x{channels})"

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: "ImageSplit") -> "ImageSplit":
        labels = torch.cat([self.labels, other.labels])
        if self.shards is not None and other.shards is not None:
            shards = self.shards + other.shards
            images = self.images.as_strided((len(labels), *self.images.shape[1:]), self.images.stride())
            return ImageSplit(images, labels, self.classes, shards=shards)
        images = torch.cat([self.images, other.images])
        files = None if self.files is None or other.files is None else self.files + other.files
        common = [name for name in self.attributes if name in other.attributes]
        attributes = {name: np.concatenate([self.attributes[name], other.attributes[name]]) for name in common}
        return ImageSplit(images, labels, self.classes, files, attributes)

    def to(self, device: torch.device) -> "ImageSplit":
        """The same images on a device."""
        if device == self.labels.device:
            return self
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device), shards=None)

    def part(self, number: int, count: int) -> "ImageSplit":
        """One of so many parts of about equal size, counted from 0; of a packed data set whole shards."""
        if count == 1:
            return self
        if self.shards is None:
            own = slice(number, None, count)
            return ImageSplit(self.images[own], self.labels[own], self.classes)
        before, shards = self.shards.part(number, count)
        own = slice(before, before + len(shards))
        return ImageSplit(self.images[own], self.labels[own], self.classes, shards=shards)

    def pieces(self) -> Iterator[UInt8[Tensor, "count channels height width"]]:
        """The images in order, in one piece; of a packed data set a shard at a time, read from its file."""
        return iter([self.images]) if self.shards is None else self.shards.pieces()


@dataclass(frozen=True)
class ImageDataset:
    """A data set, split and ready to train on; see also `from_arrays`, `from_torch` and `from_huggingface`.

    Attributes:
        name: the data set's name, or the folder's.
        train, validation, test: its disjoint parts.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class.
        batch_size: images per step in the paper's recipe.
        config: the options it was loaded with.
        provenance: the source of the images and hashes of its content.
        value_range: the pixel values of black and white, if the images were not 8-bit.
        notes: one line for each fact about the images that a user should know, such as skipped files.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    classes: tuple[str, ...]
    flip: bool = False
    batch_size: int = 128
    config: DataConfig = field(default_factory=DataConfig)
    provenance: dict[str, Any] = field(default_factory=dict)
    value_range: ValueRange | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(self.classes):
                wrong = int(split.labels.max() if split.labels.min() >= 0 else split.labels.min())
                raise DataError(
                    f"{self.name}: label {wrong} of the {part} part is not one of {len(self.classes)} classes"
                )
            if split.classes != self.classes:
                object.__setattr__(self, part, dataclasses.replace(split, classes=self.classes))

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        return (
            f"ImageDataset({self.name!r}, {len(self.classes)} classes of {height}x{width}x{channels}: "
            f"{len(self.train):,} training, {len(self.validation):,} validation, {len(self.test):,} test images)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the class names and of each part's images and labels; of packed images of their shards' hashes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for part in ("train", "validation", "test"):
            split: ImageSplit = getattr(self, part)
            digest.update(json.dumps([part, list(split.images.shape)]).encode())
            if split.shards is not None:
                digest.update(json.dumps([shard.sha256 for shard in split.shards.shards]).encode())
                digest.update(split.labels.numpy().data)
                continue
            for images in split.images.split(_HASHED_AT_ONCE):
                digest.update(images.cpu().contiguous().numpy().data)
            digest.update(split.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        classes: Sequence[str] | None = None,
        *,
        x_validation: Any = None,
        y_validation: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        validation: float = 0.1,
        test: float = 0.2,
        split_seed: int = 0,
        value_range: ValueRange | None = None,
        channels_last: bool | None = None,
        flip: bool = False,
        name: str = "arrays",
    ) -> "ImageDataset":
        """A data set from images and labels in memory.

        Args:
            x: images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels: uint8, bool, floats in [0, 1],
                or other numbers with `value_range`; an array, a tensor or a list.
            y: labels: whole numbers, names or booleans.
            classes: names in the order of the labels 0, 1, …; by default the sorted distinct labels.
            x_validation: images of the validation part; without it, a part of the training images is split off.
            y_validation: their labels.
            x_test: images of the test part; without it, a part of the training images is split off.
            y_test: their labels.
            validation: the share of the training images split off for validation, above 0 and below 1.
            test: the share split off for the test, above 0 and below 1.
            split_seed: seed of the choice.
            value_range: the pixel values that stand for black and white.
            channels_last: position of the channels, if it does not follow from the shape.
            flip: whether a mirrored image still belongs to its class, so that training mirrors images.
            name: name of the data set.

        Raises:
            DataError: images or labels whose meaning is not clear.

        Example:
            >>> x = np.random.default_rng(0).integers(0, 256, (60, 12, 12), np.uint8)
            >>> data = ImageDataset.from_arrays(x, ["cat", "dog"] * 30)
            >>> data.classes, len(data.train), len(data.test)
            (('cat', 'dog'), 44, 12)
        """
        config = DataConfig(source="", validation=validation, test=test, split_seed=split_seed)
        given = {"train": (x, y), "validation": (x_validation, y_validation), "test": (x_test, y_test)}
        parts = {part: (array_from(pair[0]), pair[1]) for part, pair in given.items() if pair[0] is not None}
        ranges = common_ranges({part: images for part, (images, _) in parts.items()}, value_range, name)
        pixels, found_range = {}, value_range
        for part, (images, labels) in parts.items():
            pixels[part], used = pixels_from(images, ranges[part], channels_last, f"{name}: {part}")
            found_range = found_range or used
            if labels is None or len(labels) != len(pixels[part]):
                count = "no labels" if labels is None else f"{len(labels):,} labels"
                raise DataError(f"{name}: {len(pixels[part]):,} {part} images but {count}")
        names, numbers = number_labels({part: labels for part, (_, labels) in parts.items()}, classes, name)
        arrays = {part: (pixels[part], numbers[part]) for part in parts}
        return split_arrays(
            arrays, names, config, name=name, flip=flip, value_range=found_range, provenance={"from": "arrays"}
        )

    @classmethod
    def from_torch(cls, dataset: Any, classes: Sequence[str] | None = None, **options: Any) -> "ImageDataset":
        """A data set from a `torch.utils.data.Dataset` of pairs of an image and a label.

        Args:
            dataset: its images are PIL images, arrays or tensors of one shape; its attribute `classes` names them.
            classes: names in the order of the labels.
            **options: as in `from_arrays`; `x_test` may be a second such data set, without `y_test`.

        Raises:
            DataError: images of different shapes, or as `from_arrays`.
        """
        classes = classes if classes is not None else getattr(dataset, "classes", None)
        for part in ("test", "validation"):
            other = options.get(f"x_{part}")
            if other is not None and f"y_{part}" not in options:
                options[f"x_{part}"], options[f"y_{part}"] = _images_and_labels(other[i] for i in range(len(other)))
        images, labels = _images_and_labels(dataset[index] for index in range(len(dataset)))
        return cls.from_arrays(images, labels, classes, **{"name": type(dataset).__name__.lower(), **options})

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        **options: Any,
    ) -> "ImageDataset":
        """A data set from Hugging Face `datasets`: a `Dataset`, or a `DatasetDict` with parts.

        Args:
            dataset: of rows with an image and a label.
            image_column: the column of the images; by default image or img.
            label_column: the column of the labels; by default label, labels or fine_label.
            **options: as in `from_arrays`.

        Raises:
            DataError: no such column, images of different shapes, or as `from_arrays`.
        """
        from dualcaps.data.sources.huggingface import read_huggingface

        parts, classes = read_huggingface(dataset, image_column, label_column)
        for part in ("validation", "test"):
            if part in parts:
                options[f"x_{part}"], options[f"y_{part}"] = _images_and_labels(parts[part])
        images, labels = _images_and_labels(parts["train"])
        return cls.from_arrays(images, labels, classes, **{"name": "huggingface", **options})


def _images_and_labels(rows: Iterable[tuple[Any, Any]]) -> tuple[np.ndarray, list[Any]]:
    images, labels = [], []
    for image, label in rows:
        images.append(image)
        labels.append(label.item() if isinstance(label, Tensor | np.generic) else label)
    if not images:
        raise DataError("a data set without images")
    return stacked(images), labels


def natural_order(name: str) -> tuple[Any, ...]:
    """A sort key for natural order: numbers in names compare by value, 2 before 10."""
    return tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in re.split(r"(\d+)", name) if word)


def number_labels(
    labels: dict[str, Any], classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names and class numbers for labels of any type.

    Args:
        labels: by part, whole numbers, names or booleans.
        classes: names in the order of labels that are numbers; by default the distinct labels, sorted.
        name: name of the data set in messages.

    Raises:
        DataError: labels of other types, or numbers outside the named classes.
    """
    arrays = {part: _plain_labels(values, f"{name}: labels of the {part} part") for part, values in labels.items()}
    distinct = {str(label) for array in arrays.values() for label in np.unique(array).tolist()}
    numeric = all(array.dtype.kind in "iu" for array in arrays.values())
    if classes is not None:
        names = tuple(map(str, classes))
        if len(set(names)) != len(names):
            raise DataError(f"{name}: two classes have the same name")
        if numeric:
            if outside := sorted(int(label) for label in distinct if not 0 <= int(label) < len(names)):
                raise DataError(f"{name}: label {outside[0]} is not one of the {len(names)} classes, numbered from 0")
            return names, {part: array.astype(np.int64) for part, array in arrays.items()}
        if unknown := sorted(distinct - set(names)):
            raise DataError(f"{name}: label {unknown[0]!r} is not one of the classes {', '.join(names)}")
    else:
        if numeric and (negative := [label for label in distinct if int(label) < 0]):
            raise DataError(f"{name}: label {min(negative, key=int)} is below 0: leave out images without a label")
        names = tuple(sorted(distinct, key=int)) if numeric else tuple(sorted(distinct, key=natural_order))
    if len(names) < 2:
        raise DataError(f"{name}: only one class ({', '.join(names)}): at least two are needed")
    if len(names) > 100_000:
        raise DataError(f"{name}: {len(names):,} distinct labels: too many for classes")
    number = {label: index for index, label in enumerate(names)}
    return names, {
        part: np.array([number[str(label)] for label in array.tolist()], np.int64) for part, array in arrays.items()
    }


def _plain_labels(values: Any, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.ravel().tolist()):
        array = array.astype(str)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "f" and np.isfinite(array).all() and np.array_equal(array, np.floor(array)):
        array = array.astype(np.int64)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(f"{what} must be whole numbers or names, one for each image, got {_describe(values)}")
    return array


def split_arrays(
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: tuple[str, ...],
    config: DataConfig,
    *,
    name: str,
    flip: bool = False,
    batch_size: int = 128,
    together: int = 1,
    provenance: dict[str, Any],
    value_range: ValueRange | None = None,
    notes: tuple[str, ...] = (),
    files: Mapping[str, Sequence[str]] | None = None,
    attributes: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> ImageDataset:
    """Make a data set of labelled images; missing parts are split off from the training images.

    Args:
        parts: uint8 [N, C, H, W] and labels of "train" and optionally "test" and "validation".
        classes, config, name, flip, batch_size, provenance, value_range, notes: see `ImageDataset`.
        files: by part, the file of each image.
        attributes: by part, see `ImageSplit.attributes`.
        together: number of successive images that stay in one part, such as the two of a stereo pair.

    Raises:
        DataError: a class with too few images.
    """
    given = {part: (part, np.arange(len(labels))) for part, (_, labels) in parts.items()}
    for part, fraction in (("test", config.test), ("validation", config.validation)):
        if part not in parts and fraction is not None:
            places = given["train"][1]
            labels = parts["train"][1][places]
            try:
                chosen = stratified_split(labels[::together], fraction, config.split_seed, classes)
            except DataError as error:
                raise DataError(f"{config.source or name}: {error}") from error
            for half, which in zip(("train", part), chosen, strict=True):
                given[half] = ("train", places[(which[:, None] * together + np.arange(together)).ravel()])

    def split(part: str) -> ImageSplit:
        source, places = given[part]
        images, labels = parts[source]
        own_files = None if files is None else tuple(files[source][place] for place in places.tolist())
        own_attributes = {key: values[places] for key, values in (attributes or {}).get(source, {}).items()}
        whole = np.array_equal(places, np.arange(len(images)))
        chosen = images if whole else select_pixels(images, places)
        return to_split(chosen, labels[places], classes, own_files, own_attributes)

    splits = {part: split(part) for part in ("train", "validation", "test")}
    return ImageDataset(
        name,
        **splits,
        classes=classes,
        flip=flip,
        batch_size=batch_size,
        config=config,
        provenance={
            "official": None,
            **provenance,
            "images": {part: len(split) for part, split in splits.items()},
        },
        value_range=value_range,
        notes=notes,
    )


def to_split(
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    files: tuple[str, ...] | None = None,
    attributes: Mapping[str, np.ndarray] | None = None,
) -> ImageSplit:
    """Convert arrays to a split; tensors share memory with contiguous, writable arrays."""
    writable = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return ImageSplit(writable, torch.from_numpy(np.asarray(labels, np.int64)), classes, files, attributes or {})


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
