"""SVHN: cropped digits in MATLAB files."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.limits import CHUNK, largest_content, raise_too_large, read_file
from dualcaps.data.sources.card import DataSet, Labelled, Layout, bring_to, downloads
from dualcaps.data.sources.digits import DIGIT_NAMES
from dualcaps.errors import DataError
from dualcaps.registry import register_dataset

_FILES = ("train_32x32.mat", "test_32x32.mat")


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels 0 to 9 of SVHN's cropped digits (`*_32x32.mat`).

    The file's label 10 is digit 0.

    Raises:
        DataError: no MATLAB file, or one without SVHN's X and y.
    """
    import scipy.io  # takes a while to import

    raw = read_file(path)
    _check_mat(raw, path)
    try:
        content = scipy.io.loadmat(io.BytesIO(raw), variable_names=["X", "y"])
    except Exception as error:  # a damaged file can make the reader raise anything
        raise DataError(f"{path}: not a MATLAB file that can be read ({type(error).__name__})") from error
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise DataError(f"{path}: contains no X and y, so it is not SVHN's")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {images.dtype} of shape {images.shape}, not uint8 [32, 32, 3, N]")
    if labels.dtype.kind not in "uif" or labels.size != images.shape[3] or labels.size == 0:
        raise DataError(f"{path}: {labels.size} labels of type {labels.dtype} for {images.shape[3]} images")
    numbers = labels.ravel()
    if not ((numbers >= 0) & (numbers <= 10) & (numbers == np.floor(numbers))).all():
        raise DataError(f"{path}: labels other than 1 to 10")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), numbers.astype(np.int64) % 10


def _check_mat(raw: bytes, path: Path) -> None:
    """Check the elements of a MATLAB 5 file, so that scipy only reads plain numeric arrays of valid sizes."""
    if len(raw) < 128 or raw[126:128] not in (b"IM", b"MI"):
        raise DataError(f"{path}: not a MATLAB 5 file")
    order = "<" if raw[126:128] == b"IM" else ">"
    place = 128
    while place < len(raw):
        kind, length = np.frombuffer(raw[place : place + 8].ljust(8, b"\0"), f"{order}u4").tolist()
        element = raw[place + 8 : place + 8 + length]
        if kind not in (14, 15) or len(element) < length:
            raise DataError(f"{path}: truncated or damaged: fetch it again")
        head = _inflate_head(element, len(raw), path)[8:] if kind == 15 else element
        # The array's flags come first: their type, their size, then the class, 6 to 15 for numbers.
        flags = np.frombuffer(head[:12].ljust(12, b"\0"), f"{order}u4").tolist()
        if flags[:2] != [6, 8] or not 6 <= flags[2] & 0xFF <= 15:
            raise DataError(f"{path}: contains something other than numeric arrays, so it is not SVHN's")
        place += 8 + length


def _inflate_head(packed: bytes, file_size: int, path: Path) -> bytes:
    """The beginning of a compressed element; all of it is decompressed once to check its size."""
    inflater, total, head = zlib.decompressobj(), 0, b""
    try:
        while not inflater.eof:
            piece = inflater.decompress(packed, CHUNK)
            packed = inflater.unconsumed_tail
            head = head or piece[:64]
            total += len(piece)
            if total > largest_content(file_size):
                raise_too_large(path, file_size)
            if not piece and not packed:
                raise DataError(f"{path}: truncated or damaged: fetch it again")
    except zlib.error as error:
        raise DataError(f"{path}: damaged ({error}): fetch it again") from error
    return head


def _read_svhn_files(paths: Sequence[Path], config: DataConfig) -> Labelled:
    train, test, *extra = (read_svhn(path) for path in paths)
    if extra:
        train = np.concatenate([train[0], extra[0][0]]), np.concatenate([train[1], extra[0][1]])
    return bring_to({"train": train, "test": test}, config)


def _counts(config: DataConfig) -> dict[str, int]:
    return {"train": 73_257 + (531_131 if config.extra else 0), "test": 26_032}


@register_dataset("svhn")
def svhn() -> DataSet:
    """The card of SVHN (Netzer et al. 2011)."""
    files = downloads(
        {
            _FILES[0]: "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            _FILES[1]: "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            "extra_32x32.mat": "sha256:a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
        },
        "http://ufldl.stanford.edu/housenumbers/",
    )
    return DataSet(
        "svhn",
        DIGIT_NAMES,
        flip=False,
        size=(32, 32),
        channels=3,
        counts=_counts,
        folders=("svhn", "SVHN"),
        layouts=(Layout(_FILES, _read_svhn_files),),
        downloads=files,
        official={download.file: download.checksum for download in files},
        options=frozenset({"extra"}),
    )
