"""COIL-20: images of rotating objects, as the official archive or its folder."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.images import inspect_images, read_image
from dualcaps.data.limits import open_zip, read_member
from dualcaps.data.sources.card import Attributes, DataSet, Labelled, Layout, downloads
from dualcaps.errors import DataError
from dualcaps.registry import register_dataset

_COIL_NAME = re.compile(r"obj(\d{1,2})__(\d{1,2})\.png")
_COIL_VIEWS, _COIL_SIDE, _LARGEST_PICTURE = 72, 128, 1 << 16


def read_coil(path: Path, objects: int, size: tuple[int, int]) -> np.ndarray:
    """COIL-20's pictures as uint8 [objects, 72, 1, height, width], from its zip file or folder.

    Args:
        path: `coil-20-proc.zip`, or the folder that holds `obj1__0.png` to `obj20__71.png`.
        objects: number of objects, counted from the first.
        size: height and width to resize to.

    Raises:
        DataError: the archive is damaged, or a picture is missing, cannot be read, or is not of
            128x128 pixels.
    """
    images = np.empty((objects, _COIL_VIEWS, 1, *size), np.uint8)
    missing = {(number, view) for number in range(objects) for view in range(_COIL_VIEWS)}
    with _coil_files(path) as files:
        for name, read in files:
            match = _COIL_NAME.fullmatch(name)
            place = (int(match[1]) - 1, int(match[2])) if match else None
            if place not in missing:
                continue
            content = read()
            inspected = inspect_images([content], f"{path}: {name}")
            if inspected.unread:
                raise DataError(inspected.unread[0])
            if set(inspected.sizes) != {(_COIL_SIDE, _COIL_SIDE)}:
                raise DataError(
                    f"{path}: {name} does not have the {_COIL_SIDE}x{_COIL_SIDE} pixels of COIL-20's pictures"
                )
            images[place] = read_image(content, (1, *size), f"{path}: {name}")
            missing.remove(place)
    if missing:
        number, view = min(missing)
        raise DataError(f"{path}: obj{number + 1}__{view}.png is missing: fetch it again")
    return images


@contextmanager
def _coil_files(path: Path) -> Iterator[list[tuple[str, Callable[[], bytes]]]]:
    """The names of the files, each with a function that reads it."""
    if path.is_dir():
        yield [(file.name, file.read_bytes) for file in sorted(path.iterdir())]
        return
    with open_zip(path) as archive:
        yield [
            (PurePosixPath(member.filename).name, partial(read_member, archive, member, _LARGEST_PICTURE, path))
            for member in archive.infolist()
        ]


def _read_coil_files(paths: Sequence[Path], config: DataConfig) -> Labelled:
    images = read_coil(paths[0], config.objects or 10, config.image_size or (32, 32))
    objects, views = images.shape[:2]
    labels = np.repeat(np.arange(objects), views).reshape(objects, views)
    return {
        part: (images[:, which].reshape(-1, *images.shape[2:]), labels[:, which].ravel())
        for part, which in _views(config).items()
    }


def _views(config: DataConfig) -> dict[str, np.ndarray]:
    """The views of each part, the same for all objects: with split `views` a quarter turn is held out."""
    views = np.arange(_COIL_VIEWS)
    if config.split != "views":
        return {"train": views}
    start = np.random.default_rng(config.split_seed).integers(_COIL_VIEWS)
    held = np.isin(views, (start + np.arange(_COIL_VIEWS // 4)) % _COIL_VIEWS)
    return {"train": views[~held], "test": views[held]}


def _read_coil_attributes(_: Sequence[Path], config: DataConfig) -> Attributes:
    degrees = 360 // _COIL_VIEWS
    return {part: {"azimuth": np.tile(degrees * which, config.objects or 10)} for part, which in _views(config).items()}


def _counts(config: DataConfig) -> dict[str, int]:
    objects = config.objects or 10
    if config.split == "views":
        held = _COIL_VIEWS // 4
        return {"train": objects * (_COIL_VIEWS - held), "test": objects * held}
    return {"train": objects * _COIL_VIEWS}


@register_dataset("coil-20")
def coil_20() -> DataSet:
    """The card of COIL-20 (Nene, Nayar & Murase 1996)."""
    archive = "md5:464dec76a6abfcd00e8de6cf1e7d0acc"
    return DataSet(
        "coil-20",
        tuple(f"object {number}" for number in range(1, 21)),
        flip=True,
        size=(32, 32),
        channels=3,
        counts=_counts,
        batch_size=16,
        folders=("coil-20", "COIL-20"),
        layouts=(
            Layout(("coil-20-proc.zip",), _read_coil_files, _read_coil_attributes),
            Layout(("coil-20-proc",), _read_coil_files, _read_coil_attributes),
            Layout(
                ("obj1__0.png",),
                lambda paths, config: _read_coil_files([paths[0].parent], config),
                _read_coil_attributes,
            ),
        ),
        downloads=downloads(
            {"coil-20-proc.zip": archive},
            "https://www.cs.columbia.edu/CAVE/databases/SLAM_coil-20_coil-100/coil-20/",
            "https://cave.cs.columbia.edu/old/databases/SLAM_coil-20_coil-100/coil-20/",
        ),
        official={"coil-20-proc.zip": archive},
        test=0.1,
        splits=("random", "views"),
        options=frozenset({"objects"}),
    )
