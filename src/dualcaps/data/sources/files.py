"""Search for the files of named data sets, and comparison with the official checksums."""

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import platformdirs

from dualcaps.config import DataConfig
from dualcaps.data.sources.card import DataSet, Layout
from dualcaps.errors import DataError
from dualcaps.registry import DATASETS


class Found(NamedTuple):
    """Files of a data set and the layout that reads them."""

    paths: tuple[Path, ...]
    layout: Layout

    def all_files(self) -> list[Path]:
        """Every file that reading opens; a folder, or one picture in it, stands for all its pictures."""
        places = [path.parent if path.suffix == ".png" else path for path in self.paths]
        return [file for path in places for file in (sorted(path.glob("*.png")) if path.is_dir() else [path])]


def is_official(data_set: DataSet, path: Path) -> bool:
    """Whether a file is identical to the official file of its name."""
    official = data_set.official.get(path.name if path.name.endswith(".tar.gz") else path.name.removesuffix(".gz"))
    return official is not None and path.is_file() and checksum(path, official.partition(":")[0]) == official


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file as "algorithm:digits"; of gzipped files other than archives, that of the content."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b" and not path.name.endswith(".tar.gz")
        raw.seek(0)
        with gzip.open(raw) if packed else contextlib.nullcontext(raw) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return f"{algorithm}:{digest.hexdigest()}"


_SYSTEM_FOLDER = Path("/usr/share/datasets")  # Debian's package dataset-fashion-mnist


def cache_folder() -> Path:
    """The user's folder for downloaded and packed data."""
    return platformdirs.user_cache_path("dualcaps")


def find_files(data_set: DataSet, config: DataConfig) -> Found | None:
    """Find the data set's files in the first folder that contains all of them; None if none does.

    Searches `config.data_dir`, the environment variable `DUALCAPS_DATA`, the user cache and Debian's folder
    for data sets, in this order: below one of the data set's folder names, or directly, unless the folder has
    the name of another data set, whose files may have the same names.

    Raises:
        DataError: `config.data_dir` or `DUALCAPS_DATA` is not a folder.
    """
    extra = tuple(download.file for download in data_set.downloads if download.extra and config.extra)
    for root in search_folders(_path(config.data_dir)):
        for folder in (*(root / name for name in data_set.folders), root):
            if folder == root and root.name in DATASETS.keys() - {data_set.name}:
                continue
            for layout in data_set.layouts:
                found = [_plain_or_gzipped(folder / name) for name in (*layout.files, *extra)]
                if all(found):
                    return Found(tuple(path for path in found if path), layout)
    return None


def missing(data_set: DataSet, config: DataConfig, reason: str = "") -> DataError:
    """The error for a data set whose files are not found; it says which files to put where.

    `reason` is why the download failed, if it was tried.
    """
    places = ", ".join(str(root / data_set.folders[0]) for root in search_folders(_path(config.data_dir)))
    address = data_set.downloads[0].addresses[0].rpartition("/")[0]
    files = ", ".join(download.file for download in data_set.downloads if config.extra or not download.extra)
    return DataError(
        f"{data_set.name}: files not found in {places}{reason and f', nor downloaded: {reason}'}: get {files} from "
        f"{address}/ and put them into one of these, or name their folder with --data-dir"
    )


def search_folders(data_dir: Path | None) -> Iterator[Path]:
    """The folders that `find_files` searches, in order."""
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
