"""What each data set is: its files, classes and mirror policy, and where it is looked for."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from dualcaps.errors import DataError


@dataclass(frozen=True)
class DataSet:
    """One data set by name.

    Attributes:
        name: what `load_data` is asked for.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class.
        folders: sub-folders of a data folder in which the files may lie.
        files: images and labels of the training part, then of the test part; `.gz` may follow.
        source: where a person can get the files.
    """

    name: str
    classes: tuple[str, ...]
    flip: bool
    folders: tuple[str, ...] = ()
    files: tuple[str, str, str, str] = ("", "", "", "")
    source: str = ""


_DIGITS = tuple("0123456789")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("digits", _DIGITS, flip=False),
        DataSet(
            "mnist",
            _DIGITS,
            flip=False,
            folders=("mnist", "MNIST/raw"),
            files=_IDX_FILES,
            source="https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        DataSet(
            "fashion-mnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            flip=True,
            folders=("fashion-mnist", "FashionMNIST/raw"),
            files=_IDX_FILES,
            source="https://github.com/zalandoresearch/fashion-mnist",
        ),
    )
}
"""The data sets that `load_data` knows by name."""

_SYSTEM_FOLDER = Path("/usr/share/datasets")  # Debian's package dataset-fashion-mnist


def find_files(data_set: DataSet, data_dir: Path | None) -> list[Path]:
    """The data set's files, all from the first folder that holds them all.

    Looked for in `data_dir`, the environment's `DUALCAPS_DATA`, the user cache and Debian's
    folder for data sets, in this order: below one of the data set's folder names, or directly,
    unless the folder bears the name of another data set, whose files may have the same names.

    Raises:
        DataError: no folder holds them; the message says where to put them.
    """
    roots = list(_roots(data_dir))
    for root in roots:
        for folder in (*(root / name for name in data_set.folders), root):
            if folder == root and root.name in DATA_SETS.keys() - {data_set.name}:
                continue
            found = [_plain_or_gzipped(folder / name) for name in data_set.files]
            if all(found):
                return [path for path in found if path]
    raise DataError(
        f"{data_set.name}: files not found in {', '.join(str(root / data_set.folders[0]) for root in roots)}: get "
        f"{', '.join(data_set.files)} (.gz or not) from {data_set.source} and put them into one of these, or name "
        "their folder with --data-dir"
    )


def _roots(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        if not data_dir.is_dir():
            raise DataError(f"--data-dir {data_dir}: no such folder")
        yield data_dir
    if environment := os.environ.get("DUALCAPS_DATA"):
        yield Path(environment)
    yield platformdirs.user_cache_path("dualcaps")
    yield _SYSTEM_FOLDER


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)
