"""The run folder: configuration, weights, metrics, provenance; written atomically, read strictly.

    config.json             what was asked for: model, training, data
    provenance.json         with what it was done: versions, commit, device, data hash
    checkpoint.safetensors  weights, optimiser and history after the last epoch; gone once finished
    model.safetensors       weights of the selected epoch
    metrics.jsonl           a line an epoch
    curves.png, reconstructions.png
    result.json             written last: the run is finished
    strips/                 of runs of an experiment: input.png, epoch-<n>.png, selected.png

Beside the run folders of experiments lies failures.jsonl, a line for each run that failed.

A folder appears with its configuration in it or not at all, and every later file replaces its
predecessor in one step, so a run killed at any moment can be read and resumed.
"""

import dataclasses
import datetime
import itertools
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dualcaps.errors import RunError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1
"""Version of the folder's layout; a folder of another version is refused, never guessed at."""

CONFIG, PROVENANCE, RESULT = "config.json", "provenance.json", "result.json"
STRIPS, FAILURES = "strips", "failures.jsonl"
TRAIN_AGAIN = "remove the run's folder and train again"
"""What to do about a damaged run."""
METRICS, WEIGHTS, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint.safetensors"


_Config = TypeVar("_Config", bound="DataclassInstance")


class Checkpoint(NamedTuple):
    """Everything that training needs to go on after an epoch.

    history: what `metrics.jsonl` holds, a dictionary an epoch.
    tensors: weights and optimiser state by name.
    """

    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]


def free_run_path(name: str, parent: Path = Path("runs")) -> Path:
    """`parent/name`, or with -2, -3, … behind it where that exists."""
    return next(path for path in _numbered(parent / name) if not path.exists())


def latest_run_path(name: str, parent: Path = Path("runs")) -> Path:
    """The last existing folder that `free_run_path` gave for this name; `parent/name` if there is none."""
    return [parent / name, *itertools.takewhile(Path.exists, _numbered(parent / name))][-1]


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def create_run(path: Path, config: dict[str, Any], provenance: dict[str, Any]) -> Callable[[], None]:
    """Make the folder, complete with configuration and provenance, in one step.

    Returns:
        What takes it back: removes the folder and those above it that were made for it.

    Raises:
        RunError: the path exists and is not an empty folder.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path}: exists already: go on with --resume, or choose another folder with --out")
    made = [parent for parent in path.parents if not parent.exists()]

    def take_back(folder: Path = path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it is not empty, so it is not ours alone
                parent.rmdir()

    draft = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        draft.chmod(0o755)
        write_json(draft / CONFIG, {"format": FORMAT, **config})
        write_json(draft / PROVENANCE, provenance)
        draft.replace(path)
    except BaseException as error:
        take_back(draft)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return take_back


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; a kill releases the lock.

    Raises:
        RunError: another process holds it, and goes on holding it for a second: one whose parent
            was killed takes a moment to notice.
    """
    lock = filelock.FileLock(path / ".lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout as error:
        raise RunError(f"{path}: another process is training in this folder: wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        RunError: no folder, no configuration in it, or one of another version.
    """
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder")
    config = _read_json(path / CONFIG)
    if config.pop("format", None) != FORMAT:
        raise RunError(f"{path / CONFIG}: not of run format {FORMAT}: use the dualcaps version that wrote it")
    return _with(config, {"model": dict, "training": dict, "data": dict, "classes": list}, path / CONFIG)


def parse(cls: type[_Config], section: Any, path: Path) -> _Config:
    """A configuration's section as its dataclass, strictly.

    A field that has a default may be missing: the version that wrote the run did not have it yet,
    and did what the default says.

    Raises:
        RunError: other fields are missing or unknown, or the dataclass refuses a value.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    if not isinstance(section, dict) or not needed <= set(section) <= known:
        raise RunError(f"{path / CONFIG}: not a {cls.__name__} of this version: use the dualcaps version that wrote it")
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in section.items()})
    except (TypeError, ValueError) as error:
        raise RunError(f"{path / CONFIG}: {error}: use the dualcaps version that wrote it") from error


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """With what a run is started or resumed: versions, commit, machine."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: metadata.version(name) for name in ("dualcaps", "torch", "numpy", "pillow")}
        | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": cuda or str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, None when installed from a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def read_provenance(path: Path) -> dict[str, Any]:
    """With what the run was done; raises RunError where it is missing or damaged."""
    return _with(_read_json(path / PROVENANCE), {"data": dict, "sessions": list}, path / PROVENANCE)


def add_session(path: Path, session: dict[str, Any]) -> None:
    """Record with what the run is gone on with."""
    provenance = read_provenance(path)
    write_json(path / PROVENANCE, provenance | {"sessions": [*provenance["sessions"], session]})


def is_finished(path: Path) -> bool:
    """Whether training came to its end."""
    return (path / RESULT).is_file()


def read_result(path: Path) -> dict[str, Any]:
    """What came out of a finished run.

    Raises:
        RunError: the run is not finished.
    """
    if not is_finished(path):
        raise RunError(f"{path}: training is not finished ({RESULT} is missing): go on with --resume")
    fields = {"selected_epoch": int, "test_accuracy": float, "precision": str}
    return _with(_read_json(path / RESULT), fields, path / RESULT)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; raises RunError where it is missing or damaged."""
    try:
        return [json.loads(line) for line in _read_text(path / METRICS).splitlines()]
    except json.JSONDecodeError as error:
        raise RunError(f"{path / METRICS}: damaged ({error}): {TRAIN_AGAIN}") from error


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`, a line an epoch."""
    write_bytes(path / METRICS, "".join(json.dumps(line) + "\n" for line in history).encode())


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint."""
    metadata = {"history": json.dumps(checkpoint.history)}
    write_bytes(path / CHECKPOINT, safetensors.torch.save(checkpoint.tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The run's checkpoint, None where no epoch is done yet; raises RunError where it is damaged."""
    file = path / CHECKPOINT
    if not file.is_file():
        return None
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            history = json.loads(opened.metadata()["history"])
            return Checkpoint(history, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise RunError(f"{file}: damaged ({error}): remove it to train from the start") from error


def remove_checkpoint(path: Path) -> None:
    """Drop the run's checkpoint, which a finished run has no use for."""
    (path / CHECKPOINT).unlink(missing_ok=True)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Replace the weights of the selected epoch."""
    write_bytes(path / WEIGHTS, safetensors.torch.save(weights))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the selected epoch; raises RunError where they are missing or damaged."""
    try:
        return safetensors.torch.load_file(path / WEIGHTS)
    except FileNotFoundError as error:
        raise RunError(f"{path}: incomplete run folder ({WEIGHTS} is missing): {TRAIN_AGAIN}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path / WEIGHTS}: damaged ({error}): {TRAIN_AGAIN}") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a readable JSON file in one step."""
    write_bytes(file, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file in one step: a reader, or a kill, finds the old content or the new.

    Raises:
        OSError: it cannot be written; the old file stays and nothing else is left behind.
    """
    draft = file.with_name(f".{file.name}.draft")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise RunError(f"{file}: damaged ({error}): {TRAIN_AGAIN}") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: damaged (not a JSON object): {TRAIN_AGAIN}")
    return content


def _with(content: dict[str, Any], fields: dict[str, type], file: Path) -> dict[str, Any]:
    """The content, sure to have these fields."""
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise RunError(f"{file}: damaged ({name!r} is missing or not what it should be): {TRAIN_AGAIN}")
    return content


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError as error:
        raise RunError(f"{file.parent}: incomplete run folder ({file.name} is missing): {TRAIN_AGAIN}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: cannot be read ({error}): make it readable, or train again elsewhere") from error
