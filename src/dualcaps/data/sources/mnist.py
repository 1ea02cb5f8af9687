"""MNIST and Fashion-MNIST: four IDX files each; MNIST also in the middle of larger canvases."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.limits import read_rest, read_sizes, unpacked
from dualcaps.data.sources.card import DataSet, Labelled, Layout, bring_to, downloads
from dualcaps.data.sources.digits import DIGIT_NAMES
from dualcaps.errors import DataError
from dualcaps.registry import register_dataset

IDX_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, the format of MNIST, gzipped or not.

    Raises:
        DataError: the file is not IDX, holds other numbers than unsigned bytes, or is shorter or
            longer than its header says.
    """
    with unpacked(path) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
            raise DataError(f"{path}: not an IDX file (it starts with {magic.hex() or 'nothing'})")
        if magic[2] != 0x08:
            raise DataError(f"{path}: IDX type 0x{magic[2]:02x} is not unsigned bytes (0x08)")
        shape = read_sizes(stream, ">u4", magic[3], path)
        return read_rest(stream, shape, np.dtype(np.uint8), path)


def _read_idx_files(paths: Sequence[Path], config: DataConfig, margin: int = 0) -> Labelled:
    parts = {}
    for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
        images, labels = read_idx(image_path), read_idx(label_path)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise DataError(f"{image_path}: holds an array of shape {images.shape}, not images [N, 28, 28]")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{label_path}: {labels.size} labels for the {len(images)} images in {image_path.name}")
        parts[part] = np.pad(images[:, None], ((0, 0), (0, 0), (margin, margin), (margin, margin))), labels
    return bring_to(parts, config)


def _card(
    name: str,
    classes: tuple[str, ...],
    torchvision: str,
    packed: Mapping[str, str],
    unpacked_sums: Sequence[str],
    addresses: Sequence[str],
    *,
    flip: bool,
) -> DataSet:
    return DataSet(
        name,
        classes,
        flip=flip,
        size=(28, 28),
        channels=1,
        counts=lambda _: {"train": 60_000, "test": 10_000},
        folders=(name, f"{torchvision}/raw"),
        layouts=(Layout(IDX_FILES, _read_idx_files),),
        downloads=downloads(packed, *addresses),
        official={file: f"md5:{sum_}" for file, sum_ in zip(IDX_FILES, unpacked_sums, strict=True)},
    )


@register_dataset("mnist")
def mnist() -> DataSet:
    """The card of MNIST (LeCun, Cortes & Burges)."""
    return _card(
        "mnist",
        DIGIT_NAMES,
        "MNIST",
        {
            f"{IDX_FILES[0]}.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            f"{IDX_FILES[1]}.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
            f"{IDX_FILES[2]}.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
            f"{IDX_FILES[3]}.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        flip=False,
    )


def _on_canvas(margin: int) -> DataSet:
    """The card of MNIST with black pixels added on each side."""
    card, side = mnist(), 28 + 2 * margin
    return dataclasses.replace(
        card,
        name=f"mnist-{side}",
        size=(side, side),
        layouts=(Layout(IDX_FILES, partial(_read_idx_files, margin=margin)),),
    )


@register_dataset("mnist-36")
def mnist_36() -> DataSet:
    """MNIST on a canvas of 36x36 pixels, on which MultiMNIST's digits overlap (Sabour et al. 2017)."""
    return _on_canvas(4)


@register_dataset("mnist-40")
def mnist_40() -> DataSet:
    """MNIST on a canvas of 40x40 pixels, as affNIST's unchanged images (Tieleman 2013)."""
    return _on_canvas(6)


@register_dataset("fashion-mnist")
def fashion_mnist() -> DataSet:
    """The card of Fashion-MNIST (Xiao, Rasul & Vollgraf 2017)."""
    return _card(
        "fashion-mnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "FashionMNIST",
        {
            f"{IDX_FILES[0]}.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            f"{IDX_FILES[1]}.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
            f"{IDX_FILES[2]}.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
            f"{IDX_FILES[3]}.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
        },
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        flip=True,
    )
