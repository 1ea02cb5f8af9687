"""Packed data sets: decoded images in one file, shard after shard, that training reads without loading all of them.

    index.json    classes, shape, parts, and of each shard its first image, how many it has, their SHA-256 and CRC-32
    images.npy    uint8 [N, C, H, W]: the training images, then the validation and the test images
    labels.npy    int64 [N]

The images of a part are in random order. `dualcaps.data.pack` writes these folders.
"""

import hashlib
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dualcaps.errors import DataError, display_path, first_line
from dualcaps.runs.files import write_json

INDEX, IMAGES, LABELS = "index.json", "images.npy", "labels.npy"
FORMAT = 1
PARTS = ("train", "validation", "test")
SHARD_BYTES = 8 << 20
"""Size of a shard of images, about."""
_WINDOW = 16  # shards that are shuffled together; two such windows are in memory
_READ_AHEAD = 1  # windows
_LARGEST_INDEX = 1 << 30  # bytes
_MOST_VALUES = 1 << 40  # in all images of a folder, each of them a byte


class Shard(NamedTuple):
    """Successive images of the file.

    start: the number of the first.
    images: how many.
    sha256: of their bytes, by which data sets are told apart.
    crc32: of their bytes, which is compared when they are read, as it takes a third of the time.
    """

    start: int
    images: int
    sha256: str
    crc32: int

    @classmethod
    def of(cls, start: int, images: int, content: Any) -> "Shard":
        """The shard of these bytes."""
        return cls(start, images, hashlib.sha256(content).hexdigest(), zlib.crc32(content))


class PackedIndex(NamedTuple):
    """The content of `index.json`.

    classes: names, in the order of the labels.
    image_shape: channels, height and width.
    parts: the shards of train, validation and test.
    labels_sha256: of the bytes of all labels.
    value_range: see `ImageDataset`.
    options: the fields of `DataConfig` that the images were packed with.
    source: where they were read from.
    notes: see `ImageDataset.notes`.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    parts: dict[str, tuple[Shard, ...]]
    labels_sha256: str
    value_range: tuple[float, float] | None
    options: dict[str, Any]
    source: str
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """A hash of classes, shape, images and labels."""
        content = [self.classes, self.image_shape, self.parts, self.labels_sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Shards:
    """Successive images of a packed data set, read from its file shard by shard.

    Attributes:
        file: images.npy.
        offset: bytes before the first image of the file.
        image_shape: channels, height and width.
        shards: in the order of the file, without gaps.
    """

    file: Path
    offset: int
    image_shape: tuple[int, int, int]
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(shard.images for shard in self.shards)

    def __add__(self, other: "Shards") -> "Shards":
        """Both, where they follow each other in one file; raises ValueError elsewhere."""
        last = self.shards[-1]
        if self.file != other.file or last.start + last.images != other.shards[0].start:
            raise ValueError("not successive images of one file")
        return Shards(self.file, self.offset, self.image_shape, self.shards + other.shards)

    def part(self, number: int, count: int) -> tuple[int, "Shards"]:
        """One of so many parts of about equal size, and how many images are before it."""
        first, end = (len(self.shards) * place // count for place in (number, number + 1))
        before = sum(shard.images for shard in self.shards[:first])
        return before, Shards(self.file, self.offset, self.image_shape, self.shards[first:end])

    def read(self, shard: Shard, into: Tensor | None = None) -> UInt8[Tensor, "count channels height width"]:
        """Read the images of a shard.

        Args:
            shard: one of these.
            into: uint8 [count, channels, height, width] to read them into; by default a new tensor.

        Raises:
            DataError: the file cannot be read, or its bytes are not those that were packed.
        """
        each = int(np.prod(self.image_shape))
        images = torch.empty((shard.images, *self.image_shape), dtype=torch.uint8) if into is None else into
        values = images.numpy().reshape(-1)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + shard.start * each)
                view, filled = values.data, 0
                while filled < len(view) and (count := file.readinto(view[filled:])):
                    filled += count
        except OSError as error:
            raise DataError(f"{display_path(self.file)}: cannot be read ({error.strerror}): put it back") from error
        if zlib.crc32(values.data) != shard.crc32:
            number = self.shards.index(shard)
            raise DataError(
                f"{display_path(self.file)}: shard {number} (images {shard.start:,} to "
                f"{shard.start + shard.images - 1:,}) is damaged: pack the images again"
            )
        return images

    def pieces(self) -> Iterator[UInt8[Tensor, "count channels height width"]]:
        """All images in order, a shard at a time; raises as `read`."""
        return (self.read(shard) for shard in self.shards)


def windows(shards: Sequence[Shard], seed: int) -> Iterator[tuple[list[int], Int[Tensor, "count"]]]:
    """The order of an epoch: shards in random order, a few of them at a time, their images shuffled together.

    Args:
        shards: in the order of the file.
        seed: of the order.

    Yields:
        The numbers of some shards, and the order of their images: places in these shards put one after the other.
    """
    generator = torch.Generator().manual_seed(seed)
    for chosen in torch.randperm(len(shards), generator=generator).split(_WINDOW):
        numbers = chosen.tolist()
        yield numbers, torch.randperm(sum(shards[number].images for number in numbers), generator=generator)


def batches(
    images: Shards,
    labels: Int[Tensor, "count"],
    batch_size: int,
    seed: int,
    done: int = 0,
    share: Callable[[int], slice] = lambda count: slice(0, count),
) -> Iterator[tuple[UInt8[Tensor, "own channels height width"], Int[Tensor, "own"], int]]:
    """The batches of an epoch in the order of `windows`; the next shards are read by a thread.

    Args:
        images, labels: of a part.
        batch_size: images in a batch; the last may be smaller.
        seed: of the order.
        done: how many batches to leave out; windows that lie in these are not read.
        share: which images of a batch of so many are wanted.

    Yields:
        The wanted images and labels of a batch, and how many images the whole batch has.

    Raises:
        DataError: as `Shards.read`.
    """
    first = images.shards[0].start

    buffers: list[Tensor] = []  # used again for later windows, as new memory costs time

    def read(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [images.shards[number] for number in numbers]
        own = torch.cat([labels[shard.start - first : shard.start - first + shard.images] for shard in chosen])
        fitting = [place for place, buffer in enumerate(buffers) if len(buffer) >= len(own)]
        whole = buffers.pop(fitting[0]) if fitting else torch.empty((len(own), *images.image_shape), dtype=torch.uint8)
        start = 0
        for shard in chosen:
            images.read(shard, whole[start : start + shard.images])
            start += shard.images
        return whole, own

    def remaining() -> Iterator[tuple[list[int], Tensor]]:
        skipped = done * batch_size
        for numbers, order in windows(images.shards, seed):
            if skipped < len(order):
                yield numbers, order[skipped:]
            skipped = max(0, skipped - len(order))

    waiting: deque[tuple[Future[tuple[Tensor, Tensor]], Tensor]] = deque()
    rest: tuple[Tensor, Tensor] | None = None  # the last images of a window, fewer than a batch
    with ThreadPoolExecutor(1) as reader:
        ahead = remaining()
        more = True
        while more or waiting:
            while more and len(waiting) <= _READ_AHEAD:
                following = next(ahead, None)
                if following is None:
                    more = False
                else:
                    waiting.append((reader.submit(read, following[0]), following[1]))
            if not waiting:
                break
            future, order = waiting.popleft()
            pixels, numbers = future.result()
            del future
            for places in order.split(batch_size) if rest is None else _after(order, batch_size, len(rest[1])):
                if rest is None and len(places) == batch_size:
                    places = places[share(batch_size)]
                    yield pixels[places], numbers[places], batch_size
                    continue
                batch = pixels[places], numbers[places]
                if rest is not None:
                    batch, rest = (torch.cat([rest[0], batch[0]]), torch.cat([rest[1], batch[1]])), None
                if len(batch[1]) < batch_size:
                    rest = batch
                else:
                    own = share(batch_size)
                    yield batch[0][own], batch[1][own], batch_size
            buffers.append(pixels)
    if rest is not None:
        count = len(rest[1])
        yield rest[0][share(count)], rest[1][share(count)], count


def _after(order: Tensor, batch_size: int, held: int) -> Iterator[Tensor]:
    """An order in pieces of a batch each, the first of which completes a batch of which some images are held."""
    missing = batch_size - held
    yield order[:missing]
    yield from order[missing:].split(batch_size) if len(order) > missing else ()


def places_of_batch(shards: Sequence[Shard], batch_size: int, seed: int, number: int) -> list[int]:
    """Which images of a part batch `number` of an epoch holds, counted from 0."""
    starts = np.array([shard.start - shards[0].start for shard in shards])
    first, end = number * batch_size, (number + 1) * batch_size
    found: list[int] = []
    for numbers, order in windows(shards, seed):
        if first < len(order) and end > 0:
            together = np.concatenate([starts[chosen] + np.arange(shards[chosen].images) for chosen in numbers])
            found += together[order[max(first, 0) : end].numpy()].tolist()
        first, end = first - len(order), end - len(order)
        if end <= 0:
            break
    return found


def is_packed(path: Path) -> bool:
    """Whether a path is the folder of a packed data set."""
    return (path / INDEX).is_file() and (path / IMAGES).is_file()


def packed_files(folder: Path) -> list[Path]:
    """The files of a packed data set."""
    return [folder / name for name in (INDEX, IMAGES, LABELS)]


def write_index(folder: Path, index: PackedIndex) -> None:
    """Write `index.json`."""
    write_json(folder / INDEX, {"format": FORMAT, **index._asdict()})


def read_index(folder: Path) -> PackedIndex:
    """Read `index.json`.

    Raises:
        DataError: it is damaged, or of another version.
    """
    file = folder / INDEX
    try:
        if file.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(
                f"{display_path(file)}: format {content['format']!r}, this version reads {FORMAT}: pack again"
            )
        index = _parse(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{display_path(file)}: damaged ({first_line(error)}): pack the images again") from error
    return index


def _parse(content: dict[str, Any]) -> PackedIndex:
    """Check an index; raises ValueError, KeyError or TypeError where something is wrong."""
    channels, height, width = (_whole(side, 1, 4096) for side in content["image_shape"])
    parts, start = {}, 0
    for part in PARTS:
        found = []
        for first, count, sha256, crc32 in content["parts"][part]:
            if first != start or not isinstance(sha256, str):
                raise ValueError(f"shard {len(found)} of the {part} part does not follow the one before it")
            found.append(Shard(start, _whole(count, 1, _MOST_VALUES), sha256, _whole(crc32, 0, 0xFFFFFFFF)))
            start += count
        if not found:
            raise ValueError(f"no {part} images")
        parts[part] = tuple(found)
    if start * channels * height * width > _MOST_VALUES:
        raise ValueError(f"{start:,} images")
    classes = tuple(content["classes"])
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes) or len(classes) < 2:
        raise ValueError("classes are not two or more different names")
    value_range, options = content["value_range"], content["options"]
    if value_range is not None:
        low, high = map(float, value_range)
        value_range = low, high
    if not isinstance(options, dict) or not all(isinstance(note, str) for note in content["notes"]):
        raise ValueError("options or notes are of the wrong type")
    return PackedIndex(
        classes,
        (channels, height, width),
        parts,
        str(content["labels_sha256"]),
        value_range,
        options,
        str(content["source"]),
        tuple(content["notes"]),
    )


def _whole(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} where a whole number from {least} to {most} is expected")
    return value


def open_arrays(folder: Path, index: PackedIndex) -> tuple[np.ndarray, np.ndarray, int]:
    """Map the images into memory and read the labels.

    Returns:
        Images [N, C, H, W], copied where they are written to; labels [N]; and the bytes before the first image.

    Raises:
        DataError: a file is missing, damaged or not of this index.
    """
    count = sum(shard.images for shards in index.parts.values() for shard in shards)
    arrays = []
    for name, shape, kind in ((IMAGES, (count, *index.image_shape), np.uint8), (LABELS, (count,), np.int64)):
        try:
            array = np.load(folder / name, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
            raise DataError(
                f"{display_path(folder / name)}: missing or damaged ({first_line(error)}): pack the images again"
            ) from error
        if array.shape != shape or array.dtype != kind or not array.flags.c_contiguous:
            raise DataError(
                f"{display_path(folder / name)}: {array.dtype} {array.shape} is not what {INDEX} says: pack again"
            )
        arrays.append(array)
    images, labels = arrays
    if hashlib.sha256(labels.data).hexdigest() != index.labels_sha256:
        raise DataError(f"{display_path(folder / LABELS)}: damaged: pack the images again")
    if not 0 <= labels.min() <= labels.max() < len(index.classes):
        raise DataError(f"{display_path(folder / LABELS)}: labels that are no classes: pack the images again")
    return images, labels, images.offset
