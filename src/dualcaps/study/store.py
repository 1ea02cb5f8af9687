"""A copy of run folders at a URL that fsspec opens, for computers that share no folder."""

from pathlib import Path, PurePosixPath

import fsspec

from dualcaps.errors import ConfigError, RunError, one_line
from dualcaps.runs.run import CHECKPOINT, RESULT
from dualcaps.training.callbacks import Callback, TrainingState


class Store:
    """Run folders below a URL.

    Args:
        url: of a folder, such as s3://bucket/runs or file:///mnt/runs.

    Raises:
        ConfigError: the URL cannot be opened, or the package for this kind of URL is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--store {url}: {' '.join(str(error).split())}") from error
        self._root, self.url = PurePosixPath(root), url
        self._kept: dict[Path, tuple[int, int]] = {}

    def fetch(self, folder: Path, out: Path) -> bool:
        """Copy a run folder from the store to below `out`; returns whether there is one.

        Args:
            folder: relative to the store and to `out`.
            out: a local folder.

        Raises:
            RunError: the store cannot be read.
        """
        place = self._root / folder.as_posix()
        try:
            self._files.invalidate_cache()
            if not self._files.isdir(str(place)):
                return False
            for name in self._files.find(str(place)):
                relative = PurePosixPath(name).relative_to(place) if name.startswith(str(place)) else None
                if relative is None or relative.name.startswith("."):
                    continue
                file = out / folder / relative
                file.parent.mkdir(parents=True, exist_ok=True)
                draft = file.with_name(f".{file.name}.draft")
                self._files.get_file(name, str(draft))
                draft.replace(file)
                self._kept[file] = _state(file)
        except Exception as error:  # file systems raise errors of their own
            raise RunError(f"{self.url}: cannot be read ({one_line(error)})") from error
        return True

    def keep(self, folder: Path, out: Path) -> None:
        """Copy what has changed in a run folder to the store: the checkpoint first, the result last.

        Raises:
            RunError: the store cannot be written to.
        """
        files = [file for file in (out / folder).rglob("*") if file.is_file() and not file.name.startswith(".")]
        files.sort(key=lambda file: (file.name == RESULT, file.name != CHECKPOINT, file))
        place = self._root / folder.as_posix()
        try:
            for file in files:
                if self._kept.get(file) == (state := _state(file)):
                    continue
                target = str(place / file.relative_to(out / folder).as_posix())
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                if "file" in self._files.protocol:  # elsewhere an upload appears when it is complete
                    self._files.put_file(str(file), f"{target}.draft")
                    self._files.mv(f"{target}.draft", target)
                else:
                    self._files.put_file(str(file), target)
                self._kept[file] = state
            if not (out / folder / CHECKPOINT).exists() and self._files.exists(str(place / CHECKPOINT)):
                self._files.rm(str(place / CHECKPOINT))
        except Exception as error:
            raise RunError(f"{self.url}: cannot be written to ({one_line(error)})") from error


class KeepInStore(Callback):
    """Copy the run folder to a store after each epoch.

    Args:
        store: where to.
        folder, out: see `Store.keep`.
    """

    def __init__(self, store: Store, folder: Path, out: Path) -> None:
        self._store, self._folder, self._out = store, folder, out

    def on_checkpoint(self, state: TrainingState) -> None:  # noqa: ARG002
        """Copy."""
        self._store.keep(self._folder, self._out)


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
