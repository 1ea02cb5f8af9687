"""Packing: own images of any form are decoded once into a folder that training streams from.

The source is read twice: first labels and headers, then the pixels. Each image is written to its place in a random
order of its part. A packing that was stopped goes on where it was when it is started again.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from dualcaps.config import OWN_TEST_SHARE, DataConfig
from dualcaps.data.dataset import number_labels
from dualcaps.data.images import Encoded, inspect_images, read_images
from dualcaps.data.shards import (
    FORMAT,
    IMAGES,
    INDEX,
    LABELS,
    PARTS,
    SHARD_BYTES,
    PackedIndex,
    Shard,
    write_index,
)
from dualcaps.data.sources.encoded import LARGEST_KEPT_SIDE, damaged_images, names_of_damaged
from dualcaps.data.sources.folder import by_part, list_parts
from dualcaps.data.sources.parquet import iterate_parquet, list_parquet
from dualcaps.data.splits import stratified_split
from dualcaps.data.tars import is_url, read_tar
from dualcaps.errors import DataError, display_path
from dualcaps.runs.files import write_json, write_with

_CHUNK_IMAGES, _CHUNK_BYTES = 2048, 64 << 20
"""Most images, and most bytes of encoded or of decoded ones, that are read together."""
_OPTIONS = ("validation", "test", "split_seed", "value_range")  # kept with the packed images
_KEPT_SECONDS = 15.0  # of work that a kill may cost
_HEADER_BYTES = 128
_PROGRESS = "progress.json"


class Item(NamedTuple):
    """An image of a source.

    part: "train", "validation" or "test".
    label: a number or a name.
    image: its file.
    name: in messages.
    number: the place of the label among the classes, if there is also a name.
    """

    part: str
    label: int | str
    image: Encoded
    name: str
    number: int | None = None


@dataclass(frozen=True)
class _Source:
    """What is packed.

    Attributes:
        items: reads all images in a fixed order, from the beginning each time.
        identity: what changes when the files do.
        classes: names in the order of the labels, if they are known beforehand.
        listed: all images, if they can be read in any order.
        notes: see `ImageDataset.notes`.
    """

    items: Callable[[], Iterator[Item]]
    identity: Any
    classes: tuple[str, ...] | None = None
    listed: Sequence[Item] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Scan:
    """Facts about all images of a source: by image its part and label, and which cannot be read.

    Attributes:
        parts: numbers of `PARTS`.
        labels: numbers of `names`.
        names: the distinct labels, in the order found, each with its place among the classes if that is known.
        sizes: number of images of each size.
        colour: whether any is in colour.
        deep: the name of an image of more than 8 bits, if there is one.
        unread: reasons, by the number of the image.
    """

    parts: np.ndarray
    labels: np.ndarray
    names: dict[int | str, int | None]
    sizes: Counter[tuple[int, int]]
    colour: bool
    deep: str | None
    unread: dict[int, str]


def pack(
    sources: Sequence[str | Path],
    out: str | Path,
    config: DataConfig | None = None,
    *,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> PackedIndex:
    """Decode own images into a folder that `load_data` opens at once and that training reads shard by shard.

    Memory stays flat, but for some 24 bytes for each image, and of a folder the paths of all its files.

    Args:
        sources: a folder of class sub-folders (perhaps below folders of parts), a Parquet file or a folder of them,
            or WebDataset tar files: paths or URLs, see `dualcaps.data.tars`.
        out: the folder to make.
        config: size, channels, value range and split, see `DataConfig`; `source` is not used.
        on_progress: called with what is being done, how many images are done, and of how many (0: not known yet).

    Returns:
        What was packed.

    Raises:
        DataError: images that cannot be read, whose size has to be chosen, or `out` exists, or the disk is too full.
        RunError: another process packs to the same folder.
        OSError: writing failed; the same command goes on.

    Example:
        >>> pack(["photographs/"], "packed", DataConfig(image_size=(64, 64)))  # doctest: +SKIP
    """
    out = Path(out)
    config = config or DataConfig()
    config = dataclasses.replace(config, test=config.test or OWN_TEST_SHARE)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{display_path(out)}: exists already: choose another folder or remove it")
    first = os.fspath(sources[0]) if sources else ""
    name = first if is_url(first) else display_path(Path(first).absolute())
    source = _source([os.fspath(one) for one in sources])
    scan = _scan(source, on_progress)
    if scan.unread and not config.skip_damaged:
        raise DataError(damaged_images(scan.unread, len(scan.parts), name))
    shape = _shape(scan, config, name)
    draft = out.absolute().with_name(f".{out.name}.packing")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(draft / ".lock", timeout=0):
            index = _decode(source, scan, shape, draft, config, name, on_progress)
            if out.exists():
                out.rmdir()
            draft.replace(out)
    except filelock.Timeout as error:
        raise DataError(f"{display_path(out)}: another process is packing to this folder: wait for it") from error
    except (DataError, OSError):
        if not (draft / _PROGRESS).exists():  # there is nothing to go on with
            shutil.rmtree(draft, ignore_errors=True)
        raise
    (out / ".lock").unlink(missing_ok=True)
    return index


def _decode(
    source: _Source,
    scan: _Scan,
    shape: tuple[int, int, int],
    draft: Path,
    config: DataConfig,
    name: str,
    on_progress: Callable[[str, int, int], None],
) -> PackedIndex:
    """Decode all images into a draft of the folder."""
    classes, labels, parts = _split(scan, source, config, name)
    places, ranges = _places(parts, config.split_seed)
    pixels = int(np.prod(shape))
    plan = {
        "format": FORMAT,
        "source": source.identity,
        "options": {key: getattr(config, key) for key in _OPTIONS},
        "shape": shape,
        "images": len(places),
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    done, unread = _begin(draft, digest, (len(places) - len(scan.unread)) * pixels)
    unread = {**scan.unread, **unread}
    order = None
    if source.listed is not None:  # in the order of the file, which is faster to write
        order = np.argsort(places, kind="stable")
    with (draft / IMAGES).open("r+b") as file:
        kept = time.monotonic()
        for numbers, items in _chunks(_from(source, order, done), pixels):
            wanted = [place for place, number in enumerate(numbers) if places[number] >= 0]
            damaged: dict[int, str] = {}
            images, names = [items[place].image for place in wanted], [items[place].name for place in wanted]
            read = read_images(images, shape, names, damaged, value_range=config.value_range)
            for row, place in enumerate(wanted):
                number = numbers[place]
                if row in damaged:
                    unread[number] = damaged[row]
                else:
                    file.seek(_HEADER_BYTES + int(places[number]) * pixels)
                    file.write(read[row].data)
            done += len(items)
            on_progress("decoding", done, len(places))
            if time.monotonic() - kept > _KEPT_SECONDS or done == len(places):
                _keep(draft, file, digest, done, unread)
                kept = time.monotonic()
        if unread and not config.skip_damaged:
            raise DataError(damaged_images(unread, len(places), name))
        kept_labels, counts = _close_gaps(file, places, labels, ranges, unread, pixels)
        for part, count in zip(PARTS, counts, strict=True):
            if not count:
                raise DataError(f"{name}: no {part} image can be read")
        _write_header(file, (sum(counts), *shape))
        shards = _hash(file, counts, pixels, on_progress)
        os.fsync(file.fileno())
    write_with(draft / LABELS, lambda stream: np.save(stream, kept_labels))
    notes = source.notes
    if unread:
        notes += (f"{len(unread):,} damaged image files left out: {names_of_damaged(unread)}",)
    index = PackedIndex(
        classes,
        shape,
        shards,
        hashlib.sha256(kept_labels.data).hexdigest(),
        config.value_range if scan.deep else None,
        plan["options"],
        name,
        notes,
    )
    write_index(draft, index)
    (draft / _PROGRESS).unlink(missing_ok=True)
    return index


def _source(sources: list[str]) -> _Source:
    """Find out what the sources are."""
    if not sources:
        raise DataError("nothing to pack: name a folder, Parquet files or tar files")
    if all(is_url(one) or one.endswith(".tar") for one in sources):
        return _tar_source(sources)
    if len(sources) > 1:
        raise DataError(f"{len(sources)} sources: several are packed together only if all of them are tar files")
    path = Path(sources[0])
    if not path.exists():
        raise DataError(f"{display_path(path)}: no such file or folder")
    if tars := sorted(map(str, path.glob("*.tar"))) if path.is_dir() else []:
        return _tar_source(tars)
    if path.suffix.lower() == ".parquet" or (path.is_dir() and list_parquet(path)):
        files = [path] if path.is_file() else list_parquet(path)
        return _parquet_source(by_part(files, path))
    if not path.is_dir():
        raise DataError(f"{display_path(path)}: neither a folder nor a .parquet or .tar file")
    found = list_parts(path)
    listed = [
        Item(part, name, image, display_path(image))
        for part, by_class in found.parts.items()
        for name, images in by_class.items()
        for image in images
    ]
    paths = [item.image for item in listed if isinstance(item.image, Path)]
    return _Source(lambda: iter(listed), _identity(paths), found.classes, listed, found.notes)


def _parquet_source(parts: dict[str, list[Path]]) -> _Source:
    names = next((names for _, _, names in iterate_parquet(parts["train"][0])), None)

    def items() -> Iterator[Item]:
        for part, files in parts.items():
            for file in files:
                row = 0
                for images, labels, _ in iterate_parquet(file):
                    for image, label in zip(images, labels, strict=True):
                        yield Item(part, label, image, f"{display_path(file)}: image {row}")
                        row += 1

    return _Source(items, _identity([file for files in parts.values() for file in files]), names)


def _tar_source(urls: list[str]) -> _Source:
    paths = {url: Path(url) if is_url(url) else Path(url).absolute() for url in urls}
    root = Path(os.path.commonpath([path.parent for path in paths.values()]))
    part_of = {file: part for part, files in by_part(list(paths.values()), root).items() for file in files}

    def items() -> Iterator[Item]:
        for url, path in paths.items():
            for image, label, name, number in read_tar(url):
                yield Item(part_of[path], label, image, name, number)

    return _Source(items, [urls, _identity([path for url, path in paths.items() if not is_url(url)])])


def _identity(files: Sequence[Path]) -> str:
    """A hash of the files' paths, sizes and times."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{display_path(file)}: cannot be read ({error.strerror})") from error
        digest.update(f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _scan(source: _Source, on_progress: Callable[[str, int, int], None]) -> _Scan:
    """Read labels and headers of all images."""
    parts, labels = [], []
    numbers: dict[int | str, int] = {}
    found = _Scan(np.empty(0), np.empty(0), {}, Counter(), False, None, {})
    done = 0
    for _, items in _chunks(enumerate(source.items()), 0):
        inspected = inspect_images([item.image for item in items], [item.name for item in items])
        found.sizes.update(inspected.sizes)
        found.colour |= inspected.colour
        if inspected.deep and found.deep is None:
            found.deep = items[inspected.deep[0]].name
        found.unread |= {done + place: reason for place, reason in inspected.unread.items()}
        for item in items:
            found.names.setdefault(item.label, item.number)
        parts.append(np.array([PARTS.index(item.part) for item in items], np.int8))
        labels.append(np.array([numbers.setdefault(item.label, len(numbers)) for item in items], np.int64))
        done += len(items)
        on_progress("reading labels and headers", done, len(source.listed or ()))
    if not done:
        raise DataError("no images to pack")
    found.parts, found.labels = np.concatenate(parts), np.concatenate(labels)
    return found


def _chunks(items: Iterator[tuple[int, Item]], decoded_bytes: int) -> Iterator[tuple[list[int], list[Item]]]:
    """Items with their numbers, as many at once as memory should hold."""
    numbers: list[int] = []
    held: list[Item] = []
    size = 0
    for number, item in items:
        numbers.append(number)
        held.append(item)
        size += decoded_bytes + (len(item.image) if isinstance(item.image, bytes) else 0)
        if len(held) == _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield numbers, held
            numbers, held, size = [], [], 0
    if held:
        yield numbers, held


def _from(source: _Source, order: np.ndarray | None, done: int) -> Iterator[tuple[int, Item]]:
    """The items that are not done yet, with their numbers in the order of the source."""
    if order is None or source.listed is None:
        return itertools.islice(enumerate(source.items()), done, None)
    listed = source.listed
    return ((int(number), listed[number]) for number in order[done:])


def _shape(scan: _Scan, config: DataConfig, name: str) -> tuple[int, int, int]:
    """Channels, height and width to bring the images to."""
    sizes = set(scan.sizes)
    if scan.deep is not None and config.value_range is None:
        raise DataError(f"{scan.deep}: not of 8 bits: give the pixel values of black and white (--value-range)")
    if not sizes:
        raise DataError(f"{name}: no image can be read")
    if config.image_size is None and (len(sizes) > 1 or max(next(iter(sizes))) > LARGEST_KEPT_SIDE):
        smallest, largest = min(sizes), max(sizes)
        described = f"{len(sizes):,} sizes from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"
        if len(sizes) == 1:
            described = f"{largest[0]}x{largest[1]}"
        raise DataError(f"{name}: images of {described}: choose the size to train at (--image-size H W)")
    height, width = config.image_size or next(iter(sizes))
    return config.channels or (3 if scan.colour else 1), height, width


def _split(
    scan: _Scan, source: _Source, config: DataConfig, name: str
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, and by image its class number and part; missing parts are split off from the training images."""
    known = source.classes
    order = sorted((number, label) for label, number in scan.names.items() if number is not None)
    if known is None and len(order) == len(scan.names) == len(dict(order)):
        known = tuple(str(label) for _, label in order)
    classes, numbered = number_labels({"all": np.array(list(scan.names))}, known, name)
    labels = numbered["all"][scan.labels]
    parts = scan.parts.copy()
    readable = np.ones(len(parts), bool)
    readable[list(scan.unread)] = False
    parts[~readable] = -1
    for part, share in (("test", config.test), ("validation", config.validation)):
        number = PARTS.index(part)
        if number not in scan.parts and share is not None:
            own = np.flatnonzero(parts == 0)
            _, held = stratified_split(labels[own], share, config.split_seed, classes)
            parts[own[held]] = number
    return classes, labels, parts


def _places(parts: np.ndarray, seed: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """By image its place in the file, -1 for those left out, and by part its first place and the one after its last."""
    random = np.random.default_rng(seed)
    places = np.full(len(parts), -1, np.int64)
    ranges, start = [], 0
    for number in range(len(PARTS)):
        own = np.flatnonzero(parts == number)
        places[own] = start + random.permutation(len(own))
        ranges.append((start, start + len(own)))
        start += len(own)
    return places, ranges


def _begin(draft: Path, digest: str, size: int) -> tuple[int, dict[int, str]]:
    """How many images an earlier packing of the same plan has done, and which could not be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        progress = json.loads((draft / _PROGRESS).read_text(encoding="utf-8"))
        if progress["plan"] == digest and (draft / IMAGES).stat().st_size >= _HEADER_BYTES:
            return int(progress["done"]), {int(number): reason for number, reason in progress["unread"].items()}
    for leftover in (IMAGES, LABELS, INDEX):
        (draft / leftover).unlink(missing_ok=True)
    if (free := shutil.disk_usage(draft).free) < size:
        raise DataError(
            f"{display_path(draft.parent)}: disk full, {free / 1e6:,.0f} MB free where the images need "
            f"{size / 1e6:,.0f} MB: free some space or choose another folder"
        )
    with (draft / IMAGES).open("wb") as file:
        file.truncate(_HEADER_BYTES + size)
    write_json(draft / _PROGRESS, {"plan": digest, "done": 0, "unread": {}})
    return 0, {}


def _keep(draft: Path, file: Any, digest: str, done: int, unread: dict[int, str]) -> None:
    file.flush()
    os.fsync(file.fileno())
    write_json(draft / _PROGRESS, {"plan": digest, "done": done, "unread": unread})


def _close_gaps(
    file: Any,
    places: np.ndarray,
    labels: np.ndarray,
    ranges: list[tuple[int, int]],
    unread: dict[int, str],
    pixels: int,
) -> tuple[np.ndarray, list[int]]:
    """Move images to the places of those that could not be decoded, and cut the file behind the last.

    Returns:
        The labels in the order of the file, and the number of images of each part.
    """
    total = ranges[-1][1]
    by_place = np.full(total, -1, np.int64)
    for_place = places >= 0
    by_place[places[for_place]] = labels[for_place]
    by_place[[int(places[number]) for number in unread if places[number] >= 0]] = -1
    start, counts = 0, []
    for first, end in ranges:
        own = first + np.flatnonzero(by_place[first:end] >= 0)
        counts.append(len(own))
        target = np.arange(start, start + len(own))
        free, moved = np.setdiff1d(target, own), np.setdiff1d(own, target)
        for old, new in zip(moved.tolist(), free.tolist(), strict=True):
            file.seek(_HEADER_BYTES + old * pixels)
            content = file.read(pixels)
            file.seek(_HEADER_BYTES + new * pixels)
            file.write(content)
        by_place[free] = by_place[moved]
        by_place[np.setdiff1d(np.arange(first, end), target)] = -1
        start += len(own)
    file.truncate(_HEADER_BYTES + start * pixels)
    return by_place[:start].copy(), counts


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file, for which 128 bytes are left."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    content = header.getvalue()
    assert len(content) == _HEADER_BYTES, len(content)
    file.seek(0)
    file.write(content)
    file.flush()


def _hash(
    file: Any, counts: Sequence[int], pixels: int, on_progress: Callable[[str, int, int], None]
) -> dict[str, tuple[Shard, ...]]:
    """The shards of each part, hashed as they are read back from the file."""
    each = max(1, SHARD_BYTES // pixels)
    parts, start = {}, 0
    for part, count in zip(PARTS, counts, strict=True):
        shards = []
        for first in range(start, start + count, each):
            images = min(each, start + count - first)
            file.seek(_HEADER_BYTES + first * pixels)
            shards.append(Shard.of(first, images, file.read(images * pixels)))
            on_progress("hashing", first + images, sum(counts))
        parts[part] = tuple(shards)
        start += count
    return parts
