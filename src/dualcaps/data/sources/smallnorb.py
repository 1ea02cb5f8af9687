"""smallNORB: stereo pairs of toys under all viewpoints and lights, in matrix files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.images import resize
from dualcaps.data.limits import Stream, raise_wrong_length, read_rest, read_sizes, read_up_to, unpacked
from dualcaps.data.sources.card import Attributes, DataSet, Labelled, Layout, downloads
from dualcaps.errors import DataError
from dualcaps.registry import register_dataset

NORB = tuple(
    f"smallnorb-5x{toys}x9x18x6x2x96x96-{part}-{kind}.mat"
    for toys, part in (("46789", "training"), ("01235", "testing"))
    for kind in ("dat", "cat", "info")
)
_NORB_SUMS = (
    "8138a0902307b32dfa0025a36dfa45ec",
    "fd5120d3f770ad57ebe620eb61a0b633",
    "19faee774120001fc7e17980d6960451",
    "e9920b7f7b2869a8f1a12e945b2c166c",
    "fd5120d3f770ad57ebe620eb61a0b633",
    "7c5b871cc69dcadec1bf6a18141f5edc",
)
_NORB_TYPES = {0x1E3D4C54: np.dtype("<i4"), 0x1E3D4C55: np.dtype(np.uint8)}


def read_norb(path: Path) -> np.ndarray:
    """Read a matrix of smallNORB's format (integers or bytes), gzipped or not.

    Raises:
        DataError: the file is no such matrix, or is shorter or longer than its header says.
    """
    with unpacked(path) as stream:
        dtype, shape = _norb_header(stream, path)
        return read_rest(stream, shape, dtype, path)


def read_norb_images(path: Path, cameras: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Read smallNORB's stereo pairs as uint8 [pairs * cameras, 1, height, width].

    Args:
        path: the `-dat` matrix [pairs, 2, 96, 96], gzipped or not.
        cameras: 0 (left), 1 (right) or both; the cameras of a pair follow each other.
        size: height and width to resize to, pair by pair, so that memory holds no 96x96 set.

    Raises:
        DataError: as `read_norb`, or the matrix holds no stereo pairs.
    """
    with unpacked(path) as stream:
        dtype, shape = _norb_header(stream, path)
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != 2 or 0 in shape:
            raise DataError(f"{path}: a matrix of shape {shape}, not stereo pairs [pairs, 2, height, width]")
        if shape[2:] != (96, 96):
            raise DataError(f"{path}: images of {shape[2]}x{shape[3]} pixels are not smallNORB's, which have 96x96")
        pair_bytes = math.prod(shape[1:])
        images: list[np.ndarray] = []
        for _ in range(shape[0]):
            raw = read_up_to(stream, pair_bytes)
            if len(raw) < pair_bytes:
                raise_wrong_length(path, math.prod(shape), "fewer")
            pair = np.frombuffer(raw, np.uint8).reshape(shape[1:])
            images += [resize(pair[camera][None], size) for camera in cameras]
        if stream.read(1):
            raise_wrong_length(path, math.prod(shape), "more")
    return np.stack(images)


def _norb_header(stream: Stream, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic, dimensions = read_sizes(stream, "<i4", 2, path)
    if magic not in _NORB_TYPES:
        raise DataError(f"{path}: not a smallNORB matrix of bytes or integers (magic number {magic & 0xFFFFFFFF:#x})")
    if not 1 <= dimensions <= 4:
        raise DataError(f"{path}: a matrix of {dimensions} dimensions is not smallNORB's")
    # Headers contain at least three sizes; those beyond the number of dimensions are unused.
    sizes = read_sizes(stream, "<i4", max(dimensions, 3), path)[:dimensions]
    if min(sizes) < 0:
        raise DataError(f"{path}: a matrix with a negative size {sizes}")
    return _NORB_TYPES[magic], sizes


_COMPARED_PAIRS = 200
_EQUAL_CAMERAS = "the left and the right camera's pictures are the same"
_AZIMUTHS_TRAINED = (0, 2, 4, 30, 32, 34)  # tens of degrees; Hinton et al. 2018 train on these


_ELEVATIONS_TRAINED = (0, 1, 2)  # the lowest three of nine


def _read_norb_files(paths: Sequence[Path], config: DataConfig) -> Labelled:
    cameras = {"left": (0,), "right": (1,)}.get(config.camera or "left", (0, 1))
    parts = {}
    for part, (image_path, class_path, info_path) in {"train": paths[:3], "test": paths[3:]}.items():
        images = read_norb_images(image_path, cameras, config.image_size or (32, 32))
        if len(cameras) == 2 and _cameras_equal(image_path):
            raise DataError(f"{image_path}: {_EQUAL_CAMERAS}, so there are no stereo pairs: choose --camera left")
        labels, info = read_norb(class_path), read_norb(info_path)
        count = len(images) // len(cameras)
        if labels.shape != (count,) or info.shape != (count, 4):
            raise DataError(f"{class_path}: {labels.shape[0]} labels for the {count} pairs in {image_path.name}")
        keep = _kept(info, part, config, info_path)
        if config.camera == "stereo":
            parts[part] = images.reshape(count, 2, *images.shape[2:])[keep], labels[keep].astype(np.int64)
            continue
        kept = np.repeat(keep, len(cameras))
        parts[part] = images[kept], np.repeat(labels, len(cameras))[kept].astype(np.int64)
    if config.split == "random":
        images, labels = (_by_chance(*both, config) for both in zip(parts["train"], parts["test"], strict=True))
        return {"train": (images[0], labels[0]), "test": (images[1], labels[1])}
    return parts


def _cameras_equal(path: Path) -> bool:
    """Whether both pictures are the same in each of the first pairs of a `-dat` matrix, which was read before."""
    with unpacked(path) as stream:
        _, (count, *shape) = _norb_header(stream, path)
        raw = read_up_to(stream, min(_COMPARED_PAIRS, count) * math.prod(shape))
    pairs = np.frombuffer(raw, np.uint8).reshape(-1, *shape)
    return np.array_equal(pairs[:, 0], pairs[:, 1])


def _note_equal_cameras(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(f"{path.name}: {_EQUAL_CAMERAS}" for path in (paths[0], paths[3]) if _cameras_equal(path))


def _by_chance(train: np.ndarray, test: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Divide the pairs of both parts together by chance into halves, so that every toy is in both."""
    pooled = np.concatenate([train, test])
    pictures = 2 if config.camera == "both" else 1
    pairs = len(pooled) // pictures
    trained = np.zeros(pairs, bool)
    trained[np.random.default_rng(config.split_seed).permutation(pairs)[: pairs // 2]] = True
    trained = np.repeat(trained, pictures)
    return pooled[trained], pooled[~trained]


def _kept(info: np.ndarray, part: str, config: DataConfig, info_path: Path) -> np.ndarray:
    """Which pairs of a part belong to a split by viewpoint."""
    if config.split not in ("azimuth", "elevation"):
        return np.ones(len(info), bool)
    viewpoint = info[:, 2 if config.split == "azimuth" else 1]
    if viewpoint.min() < 0:
        raise DataError(f"{info_path}: the {config.split} of some images is not known: choose --split official")
    trained = np.isin(viewpoint, _AZIMUTHS_TRAINED if config.split == "azimuth" else _ELEVATIONS_TRAINED)
    return trained if part == "train" else ~trained


def _read_norb_attributes(paths: Sequence[Path], config: DataConfig) -> Attributes:
    parts = {}
    for part, info_path in (("train", paths[2]), ("test", paths[5])):
        info = read_norb(info_path).astype(np.int64)
        info = info[_kept(info, part, config, info_path)]
        if config.camera == "both":
            info = np.repeat(info, 2, axis=0)
        instance, elevation, azimuth, lighting = info.T
        parts[part] = {
            "instance": instance,
            "elevation": np.where(elevation < 0, -1, 30 + 5 * elevation),
            "azimuth": np.where(azimuth < 0, -1, 10 * azimuth),
            "lighting": lighting,
        }
    if config.split == "random":
        halves = {name: _by_chance(values, parts["test"][name], config) for name, values in parts["train"].items()}
        return {
            part: {name: both[number] for name, both in halves.items()} for number, part in enumerate(("train", "test"))
        }
    return parts


def _counts(config: DataConfig) -> dict[str, int]:
    train = test = 24_300
    if config.split == "azimuth":
        train, test = 24_300 * 6 // 18, 24_300 * 12 // 18
    elif config.split == "elevation":
        train, test = 24_300 * 3 // 9, 24_300 * 6 // 9
    cameras = 2 if config.camera == "both" else 1
    return {"train": cameras * train, "test": cameras * test}


@register_dataset("smallnorb")
def smallnorb() -> DataSet:
    """The card of smallNORB (LeCun, Huang & Bottou 2004)."""
    return DataSet(
        "smallnorb",
        ("animal", "human", "airplane", "truck", "car"),
        flip=True,
        size=(32, 32),
        channels=3,
        counts=_counts,
        folders=("smallnorb", "smallNORB"),
        layouts=(Layout(NORB, _read_norb_files, _read_norb_attributes, _note_equal_cameras),),
        downloads=downloads(
            {
                f"{NORB[0]}.gz": "sha256:5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873",
                f"{NORB[1]}.gz": "sha256:2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa",
                f"{NORB[2]}.gz": "sha256:de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32",
                f"{NORB[3]}.gz": "sha256:cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474",
                f"{NORB[4]}.gz": "sha256:ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff",
                f"{NORB[5]}.gz": "sha256:16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2",
            },
            "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
        ),
        official={file: f"md5:{sum_}" for file, sum_ in zip(NORB, _NORB_SUMS, strict=True)},
        splits=("official", "random", "azimuth", "elevation"),
        options=frozenset({"camera"}),
    )
