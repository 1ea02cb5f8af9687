"""What each data set is: its files, checksums, classes and policies, and where it is looked for."""

import contextlib
import gzip
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import platformdirs

from dualcaps.data.formats import (
    parse_cifar_binary,
    parse_cifar_pickle,
    read_coil,
    read_file,
    read_idx,
    read_norb,
    read_norb_images,
    read_svhn,
    read_tar,
)
from dualcaps.data.images import resize, to_grey
from dualcaps.errors import DataError

Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""For each part that a source has ("train", perhaps "test", "validation"): uint8 [N, C, H, W] and labels."""

Split = Literal["official", "random", "views", "azimuth", "elevation"]


@dataclass(frozen=True)
class DataOptions:
    """What a data set is loaded with; kept in a run, so that it can be loaded again.

    Attributes:
        source: a name in `DATA_SETS`, or the path of one's own images.
        data_dir: the folder looked into first for the files of a named data set.
        image_size: height and width in pixels; None takes the data set's own, for one's own images
            theirs where all have one of at most 64 pixels a side, and 32x32 otherwise.
        channels: 1 (grey) or 3 (colour); None takes the data set's, or colour where any image has it.
        validation: the part of the training images held out, above 0 and below 1.
        test: the part of all images held out where the data set has no test part of its own; None
            takes the data set's, a tenth for coil-20 and a fifth for others.
        split_seed: seed of the held-out choice, at least 0.
        split: how training and test images are told apart; None takes the data set's first way.
            smallnorb: "official" (other toys), "azimuth" or "elevation" (other toys from viewpoints
            not trained on); coil-20: "random" (a tenth), "views" (a quarter turn of each object).
        camera: smallnorb's "left", "right" or "both" cameras; None is "left".
        objects: coil-20's first 10 or all 20 objects; None is 10.
        extra: train on svhn's `extra_32x32.mat` too.
    """

    source: str = "digits"
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    validation: float = 0.1
    test: float | None = None
    split_seed: int = 0
    split: Split | None = None
    camera: Literal["left", "right", "both"] | None = None
    objects: int | None = None
    extra: bool = False


class Download(NamedTuple):
    """A file as its makers publish it: addresses, and the checksum of what they send.

    extra: whether it is needed only where `DataOptions.extra` asks for it.
    """

    file: str
    addresses: tuple[str, ...]
    checksum: str
    extra: bool = False


class Layout(NamedTuple):
    """One form in which a data set's files may lie in a folder.

    files: their names; any may be gzipped, with `.gz` behind its name.
    read: from the files to labelled images.
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[Path], DataOptions], Labelled]


@dataclass(frozen=True)
class DataSet:
    """One data set by name.

    Attributes:
        name: what `load_data` is asked for.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class.
        size: height and width that its networks take, in pixels.
        channels: channels that its networks take; grey images are repeated to three.
        batch_size: images a step in the paper's recipe.
        test: the part held out as test images where the files have none.
        folders: sub-folders of a data folder in which the files may lie.
        layouts: the forms in which the files may lie there.
        downloads: where the files come from.
        splits: the ways to tell training and test images apart, the default first.
        options: fields of `DataOptions` that only some data sets have and this one does.
    """

    name: str
    classes: tuple[str, ...]
    flip: bool
    size: tuple[int, int]
    channels: int
    batch_size: int = 128
    test: float = 0.2
    folders: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    downloads: tuple[Download, ...] = ()
    splits: tuple[Split, ...] = ("official",)
    options: frozenset[str] = field(default_factory=frozenset)

    def classes_of(self, options: DataOptions) -> tuple[str, ...]:
        """The classes that these options ask for, where they ask for some of them only."""
        return self.classes[: options.objects or 10] if "objects" in self.options else self.classes


def _read_digits(_paths: Sequence[Path], options: DataOptions) -> Labelled:
    import sklearn.datasets  # takes a second to import

    bunch: Any = sklearn.datasets.load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)
    size = options.image_size or (28, 28)
    return {"train": (np.stack([resize(image[None], size) for image in grey]), bunch.target)}


def _read_idx_files(paths: Sequence[Path], options: DataOptions) -> Labelled:
    parts = {}
    for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
        images, labels = read_idx(image_path), read_idx(label_path)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise DataError(f"{image_path}: holds an array of shape {images.shape}, not images [N, 28, 28]")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{label_path}: {labels.size} labels for the {len(images)} images in {image_path.name}")
        parts[part] = images[:, None], labels
    return _brought_to(parts, options)


def _read_cifar_binary(paths: Sequence[Path], options: DataOptions) -> Labelled:
    batches = [parse_cifar_binary(read_file(path), str(path)) for path in paths]
    return _brought_to(_joined(batches), options)


def _read_cifar_python(paths: Sequence[Path], options: DataOptions) -> Labelled:
    return _brought_to(_joined([parse_cifar_pickle(read_file(path), str(path)) for path in paths]), options)


def _cifar_archive(names: Sequence[str], parse: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]) -> Any:
    def read(paths: Sequence[Path], options: DataOptions) -> Labelled:
        (archive,) = paths
        contents = read_tar(archive, names)
        if missing := [name for name in names if name not in contents]:
            raise DataError(f"{archive}: {missing[0]} is missing: fetch it again")
        return _brought_to(_joined([parse(contents[name], f"{archive}: {name}") for name in names]), options)

    return read


def _joined(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Labelled:
    """CIFAR-10's five training batches and its test batch."""
    *training, test = batches
    images, labels = zip(*training, strict=True)
    return {"train": (np.concatenate(images), np.concatenate(labels)), "test": test}


def _read_svhn_files(paths: Sequence[Path], options: DataOptions) -> Labelled:
    train, test, *extra = (read_svhn(path) for path in paths)
    if extra:
        train = np.concatenate([train[0], extra[0][0]]), np.concatenate([train[1], extra[0][1]])
    return _brought_to({"train": train, "test": test}, options)


_AZIMUTHS_TRAINED = (0, 2, 4, 30, 32, 34)  # tens of degrees; Hinton et al. 2018 train on these
_ELEVATIONS_TRAINED = (0, 1, 2)  # the lowest three of nine


def _read_norb_files(paths: Sequence[Path], options: DataOptions) -> Labelled:
    cameras = {"left": (0,), "right": (1,), "both": (0, 1)}[options.camera or "left"]
    parts = {}
    for part, (image_path, class_path, info_path) in {"train": paths[:3], "test": paths[3:]}.items():
        images = read_norb_images(image_path, cameras, options.image_size or (32, 32))
        labels, info = read_norb(class_path), read_norb(info_path)
        count = len(images) // len(cameras)
        if labels.shape != (count,) or info.shape != (count, 4):
            raise DataError(f"{class_path}: {labels.shape[0]} labels for the {count} pairs in {image_path.name}")
        keep = np.ones(count, bool)
        if options.split in ("azimuth", "elevation"):
            viewpoint = info[:, 2 if options.split == "azimuth" else 1]
            if viewpoint.min() < 0:
                raise DataError(
                    f"{info_path}: the {options.split} of some images is not known: choose --split official"
                )
            trained = np.isin(viewpoint, _AZIMUTHS_TRAINED if options.split == "azimuth" else _ELEVATIONS_TRAINED)
            keep = trained if part == "train" else ~trained
        kept = np.repeat(keep, len(cameras))
        parts[part] = images[kept], np.repeat(labels, len(cameras))[kept].astype(np.int64)
    return parts


def _read_coil_files(paths: Sequence[Path], options: DataOptions) -> Labelled:
    images = read_coil(paths[0], options.objects or 10, options.image_size or (32, 32))
    objects, views = images.shape[:2]
    labels = np.repeat(np.arange(objects), views).reshape(objects, views)
    if options.split == "views":
        # A quarter turn that no training image shows, for all objects the same.
        start = np.random.default_rng(options.split_seed).integers(views)
        held = np.isin(np.arange(views), (start + np.arange(views // 4)) % views)
        return {
            part: (images[:, which].reshape(-1, *images.shape[2:]), labels[:, which].ravel())
            for part, which in (("train", ~held), ("test", held))
        }
    return {"train": (images.reshape(-1, *images.shape[2:]), labels.ravel())}


def _brought_to(parts: Labelled, options: DataOptions) -> Labelled:
    """At the size asked for; in grey if that is asked for."""
    brought = {}
    for part, (images, labels) in parts.items():
        if options.image_size is not None and images.shape[2:] != options.image_size:
            images = np.stack([resize(image, options.image_size) for image in images])
        if options.channels == 1 and images.shape[1] == 3:
            images = to_grey(images)
        brought[part] = images, labels
    return brought


_DIGITS = tuple("0123456789")
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_BINARY = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_PYTHON = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_SVHN = ("train_32x32.mat", "test_32x32.mat")
NORB = tuple(
    f"smallnorb-5x{toys}x9x18x6x2x96x96-{part}-{kind}.mat"
    for toys, part in (("46789", "training"), ("01235", "testing"))
    for kind in ("dat", "cat", "info")
)


def _downloads(checksums: dict[str, str], *bases: str) -> tuple[Download, ...]:
    return tuple(
        Download(file, tuple(base + file for base in bases), sum_, file.startswith("extra"))
        for file, sum_ in checksums.items()
    )


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "digits",
            _DIGITS,
            flip=False,
            size=(28, 28),
            channels=1,
            layouts=(Layout((), _read_digits),),
            splits=("random",),
        ),
        DataSet(
            "mnist",
            _DIGITS,
            flip=False,
            size=(28, 28),
            channels=1,
            folders=("mnist", "MNIST/raw"),
            layouts=(Layout(_IDX, _read_idx_files),),
            downloads=_downloads(
                {
                    f"{_IDX[0]}.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    f"{_IDX[1]}.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
                    f"{_IDX[2]}.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
                    f"{_IDX[3]}.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
                },
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        DataSet(
            "fashion-mnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            flip=True,
            size=(28, 28),
            channels=1,
            folders=("fashion-mnist", "FashionMNIST/raw"),
            layouts=(Layout(_IDX, _read_idx_files),),
            downloads=_downloads(
                {
                    f"{_IDX[0]}.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    f"{_IDX[1]}.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
                    f"{_IDX[2]}.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
                    f"{_IDX[3]}.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
                },
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
        ),
        DataSet(
            "cifar-10",
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            flip=True,
            size=(32, 32),
            channels=3,
            folders=(
                *("cifar-10", "cifar-10/cifar-10-batches-bin", "cifar-10/cifar-10-batches-py"),
                *("cifar-10-batches-bin", "cifar-10-batches-py"),
            ),
            layouts=(
                Layout(CIFAR_BINARY, _read_cifar_binary),
                Layout(CIFAR_PYTHON, _read_cifar_python),
                Layout(("cifar-10-binary.tar.gz",), _cifar_archive(CIFAR_BINARY, parse_cifar_binary)),
                Layout(("cifar-10-python.tar.gz",), _cifar_archive(CIFAR_PYTHON, parse_cifar_pickle)),
            ),
            downloads=_downloads(
                {
                    "cifar-10-binary.tar.gz": "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                },
                "https://www.cs.toronto.edu/~kriz/",
                "https://cave.cs.toronto.edu/kriz/",
            ),
        ),
        DataSet(
            "svhn",
            _DIGITS,
            flip=False,
            size=(32, 32),
            channels=3,
            folders=("svhn", "SVHN"),
            layouts=(Layout(_SVHN, _read_svhn_files),),
            downloads=_downloads(
                {
                    _SVHN[0]: "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                    _SVHN[1]: "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                    "extra_32x32.mat": "sha256:a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
                },
                "http://ufldl.stanford.edu/housenumbers/",
            ),
            options=frozenset({"extra"}),
        ),
        DataSet(
            "smallnorb",
            ("animal", "human", "airplane", "truck", "car"),
            flip=True,
            size=(32, 32),
            channels=3,
            folders=("smallnorb", "smallNORB"),
            layouts=(Layout(NORB, _read_norb_files),),
            downloads=_downloads(
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
            splits=("official", "azimuth", "elevation"),
            options=frozenset({"camera"}),
        ),
        DataSet(
            "coil-20",
            tuple(f"object {number}" for number in range(1, 21)),
            flip=True,
            size=(32, 32),
            channels=3,
            batch_size=16,
            folders=("coil-20", "COIL-20"),
            layouts=(
                Layout(("coil-20-proc.zip",), _read_coil_files),
                Layout(("coil-20-proc",), _read_coil_files),
                Layout(("obj1__0.png",), lambda paths, options: _read_coil_files([paths[0].parent], options)),
            ),
            downloads=_downloads(
                {"coil-20-proc.zip": "md5:464dec76a6abfcd00e8de6cf1e7d0acc"},
                "https://www.cs.columbia.edu/CAVE/databases/SLAM_coil-20_coil-100/coil-20/",
                "https://cave.cs.columbia.edu/old/databases/SLAM_coil-20_coil-100/coil-20/",
            ),
            test=0.1,
            splits=("random", "views"),
            options=frozenset({"objects"}),
        ),
    )
}
"""The data sets that `load_data` knows by name."""

_IDX_SUMS = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_CIFAR_BINARY_SUMS = (
    "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "67eb016db431130d61cd03c7ad570b013799c88c",
)
_CIFAR_PYTHON_SUMS = (
    "c99cafc152244af753f735de768cd75f",
    "d4bba439e000b95fd0a9bffe97cbabec",
    "54ebc095f3ab1f0389bbae665268c751",
    "634d18415352ddfa80567beed471001a",
    "482c414d41f54cd18b22e5b47cb7c3cb",
    "40351d587109b95175f43aff81a1287e",
)
_NORB_SUMS = (
    "8138a0902307b32dfa0025a36dfa45ec",
    "fd5120d3f770ad57ebe620eb61a0b633",
    "19faee774120001fc7e17980d6960451",
    "e9920b7f7b2869a8f1a12e945b2c166c",
    "fd5120d3f770ad57ebe620eb61a0b633",
    "7c5b871cc69dcadec1bf6a18141f5edc",
)

OFFICIAL: dict[str, dict[str, str]] = {
    **{name: {file: f"md5:{sum_}" for file, sum_ in zip(_IDX, sums, strict=True)} for name, sums in _IDX_SUMS.items()},
    "cifar-10": {
        **{file: f"sha1:{sum_}" for file, sum_ in zip(CIFAR_BINARY, _CIFAR_BINARY_SUMS, strict=True)},
        **{file: f"md5:{sum_}" for file, sum_ in zip(CIFAR_PYTHON, _CIFAR_PYTHON_SUMS, strict=True)},
        "cifar-10-binary.tar.gz": "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
    },
    "svhn": {download.file: download.checksum for download in DATA_SETS["svhn"].downloads},
    "smallnorb": {file: f"md5:{sum_}" for file, sum_ in zip(NORB, _NORB_SUMS, strict=True)},
    "coil-20": {"coil-20-proc.zip": "md5:464dec76a6abfcd00e8de6cf1e7d0acc"},
}
"""Checksums of each data set's official files by name; of gzipped ones, but for archives, of what they unpack to."""


def is_official(name: str, path: Path) -> bool:
    """Whether a file is, to the bit, the one of its name that the data set's makers published."""
    official = OFFICIAL.get(name, {}).get(path.name if path.name.endswith(".tar.gz") else path.name.removesuffix(".gz"))
    return official is not None and path.is_file() and checksum(path, official.partition(":")[0]) == official


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, as "algorithm:digits"; of a gzipped one, but for archives, of its content."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b" and not path.name.endswith(".tar.gz")
        raw.seek(0)
        with gzip.open(raw) if packed else contextlib.nullcontext(raw) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return f"{algorithm}:{digest.hexdigest()}"


_SYSTEM_FOLDER = Path("/usr/share/datasets")  # Debian's package dataset-fashion-mnist


class Found(NamedTuple):
    """Files of a data set, and what reads them."""

    paths: tuple[Path, ...]
    layout: Layout

    def all_files(self) -> list[Path]:
        """Every file that reading opens: a folder, or one picture of it, stands for all its pictures."""
        places = [path.parent if path.suffix == ".png" else path for path in self.paths]
        return [file for path in places for file in (sorted(path.glob("*.png")) if path.is_dir() else [path])]


def cache_folder() -> Path:
    """The user's folder for fetched and packed data."""
    return platformdirs.user_cache_path("dualcaps")


def find_files(data_set: DataSet, options: DataOptions) -> Found | None:
    """The data set's files, all from the first folder that holds them all; None where none does.

    Looked for in `options.data_dir`, the environment's `DUALCAPS_DATA`, the user cache and Debian's
    folder for data sets, in this order: below one of the data set's folder names, or directly,
    unless the folder bears the name of another data set, whose files may have the same names.

    Raises:
        DataError: `options.data_dir`, or what `DUALCAPS_DATA` names, is no folder.
    """
    extra = tuple(download.file for download in data_set.downloads if download.extra and options.extra)
    for root in search_folders(_path(options.data_dir)):
        for folder in (*(root / name for name in data_set.folders), root):
            if folder == root and root.name in DATA_SETS.keys() - {data_set.name}:
                continue
            for layout in data_set.layouts:
                found = [_plain_or_gzipped(folder / name) for name in (*layout.files, *extra)]
                if all(found):
                    return Found(tuple(path for path in found if path), layout)
    return None


def missing(data_set: DataSet, options: DataOptions, reason: str = "") -> DataError:
    """The error for a data set whose files are nowhere, which says where to put which.

    `reason` is why they could not be fetched, where that was tried.
    """
    places = ", ".join(str(root / data_set.folders[0]) for root in search_folders(_path(options.data_dir)))
    address = data_set.downloads[0].addresses[0].rpartition("/")[0]
    files = ", ".join(download.file for download in data_set.downloads if options.extra or not download.extra)
    return DataError(
        f"{data_set.name}: files not found in {places}{reason and f', nor fetched: {reason}'}: get {files} from "
        f"{address}/ and put them into one of these, or name their folder with --data-dir"
    )


def search_folders(data_dir: Path | None) -> Iterator[Path]:
    """The folders that `find_files` looks into, in order."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise DataError(f"--data-dir {data_dir}: no such folder")
        yield data_dir
    if environment := os.environ.get("DUALCAPS_DATA"):
        if not Path(environment).is_dir():
            raise DataError(f"DUALCAPS_DATA={environment}: no such folder: correct or unset it")
        yield Path(environment)
    yield cache_folder()
    yield _SYSTEM_FOLDER


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.exists()), None)
