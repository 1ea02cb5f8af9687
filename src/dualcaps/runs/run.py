"""The run folder: configuration, weights, metrics, provenance; written atomically, read strictly.

    config.json             configuration: model, training, data, class names
    provenance.json         hashes of the data; versions, commit and machine of each start
    checkpoint.safetensors  weights, optimiser and history after the last epoch
    model.safetensors       weights of the selected epoch
    metrics.jsonl           one line per epoch
    curves.png, reconstructions.png, …
    calibration.json        the temperature that turns lengths into probabilities
    rejection.json          thresholds of `predict --reject`, once it was used
    result.json             results; written last, so that it exists only for finished runs
    strips/                 reconstructions of runs of an experiment: input.png, epoch-<n>.png, selected.png

The folder of an experiment's runs also holds failures.jsonl, one line per failed run.

A folder appears with its configuration in it or not at all, and every later file replaces its
predecessor in one step, so a run killed at any moment can be read and resumed.
"""

import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import filelock

from dualcaps.config import DataConfig, ModelConfig, TrainConfig, from_json, to_json
from dualcaps.errors import DualcapsError, FolderInUseError, RunError
from dualcaps.runs.files import new_folder, write_bytes, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_Parsed = TypeVar("_Parsed")

FORMAT = 2
"""Version of the folder's layout. Format 1 is converted when read; any other is refused."""

CONFIG, PROVENANCE, RESULT = "config.json", "provenance.json", "result.json"
STRIPS, FAILURES = "strips", "failures.jsonl"
MODELS_FOLDER = "DUALCAPS_MODELS"
"""The environment variable that names the folder of trained networks."""
CALIBRATION, REJECTION = "calibration.json", "rejection.json"
METRICS, WEIGHTS, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint.safetensors"
TRAIN_AGAIN = "remove the run's folder and train again"
"""What to do about a damaged run."""


class Checkpoint(NamedTuple):
    """Everything needed to resume training, after an epoch or within one.

    history: the entries of `metrics.jsonl`, one dictionary per epoch.
    tensors: weights, optimiser state and, within an epoch, sums and random number generators by name.
    progress: within an epoch, "batches" done and "seconds" taken; otherwise None.
    first_losses: of the training's first steps; empty in a checkpoint of an earlier version.
    """

    history: list[dict[str, Any]]
    tensors: "dict[str, Tensor]"
    progress: dict[str, Any] | None = None
    first_losses: Sequence[float] = ()


@dataclass(frozen=True)
class Run:
    """A run folder, read once.

    Attributes:
        path: the folder.
        model, training, data: the run's configuration.
        classes: class names in the order of the labels.
        provenance: "data": where the images came from and their hashes; "sessions": an entry for each start.
        history: one entry per epoch, as in `metrics.jsonl`.
        result: content of `result.json`; None while the run is not finished.
    """

    path: Path
    model: ModelConfig
    training: TrainConfig
    data: DataConfig
    classes: tuple[str, ...]
    provenance: dict[str, Any] = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    result: dict[str, Any] | None = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Read a run folder, finished or not.

        Args:
            path: the folder, or the name of a trained network, see `trained_networks`.

        Raises:
            RunError: no folder, a file missing or damaged, or another format.
        """
        path = Path(path)
        if not path.is_dir():
            path = _trained_network(str(path))
        config = _read_json(path / CONFIG)
        written_as = config.pop("format", None)
        if config.get("library_name") == "dualcaps":
            raise RunError(f"{path}: an exported network, not a run: load it with dualcaps.from_pretrained in Python")
        if written_as not in (1, FORMAT):
            raise RunError(f"{path / CONFIG}: not of run format {FORMAT}: use the dualcaps version that wrote it")
        sections = _with(config, {"model": dict, "training": dict, "data": dict, "classes": list}, path / CONFIG)
        provenance = _with(_read_json(path / PROVENANCE), {"data": dict, "sessions": list}, path / PROVENANCE)
        if written_as == 1:
            sections, provenance = from_format_1(sections, provenance)
        try:
            model = from_json(ModelConfig, sections["model"])
            training = from_json(TrainConfig, sections["training"])
            data = from_json(DataConfig, sections["data"])
        except (ValueError, TypeError) as error:
            known = str(error) if isinstance(error, DualcapsError) else f"not of this version ({error})"
            raise RunError(f"{path / CONFIG}: {known}: use the dualcaps version that wrote it") from error
        classes = tuple(map(str, sections["classes"]))
        if len(classes) != model.num_classes:
            raise RunError(
                f"{path / CONFIG}: {len(classes)} class names for {model.num_classes} classes: {TRAIN_AGAIN}"
            )
        finished = (path / RESULT).is_file()
        history = read_metrics(path) if finished or (path / METRICS).is_file() else []
        result = None
        if finished:
            fields = {"selected_epoch": int, "test_accuracy": float, "precision": str}
            result = _with(_read_json(path / RESULT), fields, path / RESULT)
            if not 1 <= result["selected_epoch"] <= len(history):
                raise RunError(f"{path / METRICS}: damaged (epochs are missing): {TRAIN_AGAIN}")
        return cls(path, model, training, data, classes, provenance, history, result)

    @property
    def finished(self) -> bool:
        """Whether training is finished."""
        return self.result is not None

    @property
    def selected_on(self) -> str:
        """See the function of this name."""
        return selected_on(self.training)

    def weights(self) -> "dict[str, Tensor]":
        """The weights of the selected epoch; raises RunError if they are missing or damaged."""
        return read_weights(self.path)


def trained_networks() -> dict[str, Path]:
    """The run folders of trained networks by name, such as "da-capsnet.fashion-mnist".

    They lie in the folder that the environment variable DUALCAPS_MODELS names, or else in `results/models` of the
    checkout that this package runs from.
    """
    folder = Path(os.environ.get(MODELS_FOLDER) or Path(__file__).parents[3] / "results" / "models")
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))}


def _trained_network(name: str) -> Path:
    """The folder of a trained network; raises RunError if there is none of this name."""
    known = trained_networks()
    if name in known:
        return known[name]
    if not re.fullmatch(r"[\w-]+\.[\w-]+", name):
        raise RunError(f"{name}: no such run folder")
    others = f"there are {', '.join(known)}" if known else f"{MODELS_FOLDER} must name the folder that holds them"
    raise RunError(f"{name}: no such run folder, and no trained network of this name: {others}")


def selected_on(training: TrainConfig) -> str:
    """The part that each epoch is evaluated on, and selected on but for protocol `last`: "test" or "validation"."""
    return "validation" if training.protocol == "clean" else "test"


def selected_epoch(training: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of the epoch whose weights are kept: the best, of equal ones the last; or the last (`last`)."""
    if training.protocol == "last":
        return history[-1]
    key = f"{selected_on(training)}_accuracy"
    return max(history, key=lambda line: (line[key], line["epoch"]))


def from_format_1(config: dict[str, Any], provenance: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and provenance of a run of format 1 as format 2 has them.

    Format 1 implied a network's trunk and votes by its name, and hashed the images of a data set
    together with the options of its split; that hash is kept as `sha256_format_1`.
    """
    model = config["model"]
    if model.get("name") == "sabour-capsnet":
        model = {**model, "trunk": "sabour", "votes": "position"}
    data = dict(provenance["data"])
    if "sha256" in data:
        data["sha256_format_1"] = data.pop("sha256")
    return {**config, "model": model}, {**provenance, "data": data}


def free_run_path(name: str, parent: Path = Path("runs")) -> Path:
    """`parent/name`, or with -2, -3, … appended if that exists."""
    return next(path for path in _numbered(parent / name) if not path.exists())


def latest_run_path(name: str, parent: Path = Path("runs")) -> Path:
    """The last existing folder that `free_run_path` returned for this name; `parent/name` if there is none."""
    return [parent / name, *itertools.takewhile(Path.exists, _numbered(parent / name))][-1]


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def create_run(
    path: Path,
    model: ModelConfig,
    training: TrainConfig,
    data: DataConfig,
    classes: tuple[str, ...],
    provenance: Mapping[str, Any],
) -> None:
    """Create the folder with configuration and provenance in one step.

    Raises:
        RunError: the path exists and is not an empty folder.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path}: exists already: continue with --resume, or choose another folder with --out")
    with new_folder(path) as draft:
        write_config(draft, model, training, data, classes)
        write_json(draft / PROVENANCE, provenance)


def write_config(
    path: Path, model: ModelConfig, training: TrainConfig, data: DataConfig, classes: tuple[str, ...]
) -> None:
    """Replace the run's configuration file."""
    sections = {"model": to_json(model), "training": to_json(training), "data": to_json(data)}
    write_json(path / CONFIG, {"format": FORMAT, **sections, "classes": list(classes)})


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Prevent other processes from training in the same folder; a kill releases the lock.

    Raises:
        FolderInUseError: another process still holds the lock after a second, which a worker whose parent
            was killed needs to notice and end.
    """
    lock = filelock.FileLock(path / ".lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout as error:
        raise FolderInUseError(f"{path}: another process is training in this folder: wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()


def environment(device: "torch.device", precision: str) -> dict[str, Any]:
    """The environment a run is started or resumed in: versions, commit, machine."""
    import torch

    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: metadata.version(name) for name in ("dualcaps", "numpy", "pillow")}
        | {"torch": str(torch.__version__), "python": platform.python_version()},
        "platform": platform.platform(),
        "device": cuda or str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, None when installed from a wheel."""
    root = Path(__file__).parents[3]
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


_INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 and its bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""The flags of Linux for the instructions that decide a processor's speed, the most first; names alone do not tell."""


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, its instructions and the number of cores."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    instructions = next((f" with {text}" for flag, text in _INSTRUCTIONS.items() if flag in flags), "")
    return f"{name}{instructions}, {os.cpu_count()} cores"


def add_session(path: Path, session: Mapping[str, Any]) -> None:
    """Append the versions and machine that a run is resumed with."""
    provenance = _with(_read_json(path / PROVENANCE), {"sessions": list}, path / PROVENANCE)
    write_json(path / PROVENANCE, provenance | {"sessions": [*provenance["sessions"], session]})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; raises RunError if it is missing or damaged."""
    try:
        lines = [json.loads(line) for line in _read_text(path / METRICS).splitlines()]
    except json.JSONDecodeError as error:
        raise RunError(f"{path / METRICS}: damaged ({error}): {TRAIN_AGAIN}") from error
    if not _is_history(lines):
        raise RunError(f"{path / METRICS}: damaged (the lines are not those of successive epochs): {TRAIN_AGAIN}")
    return lines


def _is_history(lines: Any) -> bool:
    """Whether these are the metrics of successive epochs."""
    return isinstance(lines, list) and all(
        isinstance(line, dict) and line.get("epoch") == number for number, line in enumerate(lines, start=1)
    )


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`, one line per epoch."""
    write_bytes(path / METRICS, "".join(json.dumps(line) + "\n" for line in history).encode())


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint."""
    import safetensors.torch

    written = {
        "history": json.dumps(checkpoint.history),
        "progress": json.dumps(checkpoint.progress),
        "first_losses": json.dumps(list(checkpoint.first_losses)),
    }
    write_bytes(path / CHECKPOINT, safetensors.torch.save(checkpoint.tensors, written))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The run's checkpoint, or None; raises RunError if it is damaged."""
    import safetensors

    file = path / CHECKPOINT
    if not file.is_file():
        return None
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            history = json.loads(opened.metadata()["history"])
            progress = json.loads(opened.metadata().get("progress", "null"))
            if not _is_history(history) or not isinstance(progress, dict | None):
                raise ValueError("its history is not that of successive epochs")
            first = [float(loss) for loss in json.loads(opened.metadata().get("first_losses", "[]"))]
            return Checkpoint(history, {name: opened.get_tensor(name) for name in opened.keys()}, progress, first)  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error}): remove it to train from the start") from error


def remove_checkpoint(path: Path) -> None:
    """Remove the run's checkpoint, if there is one."""
    (path / CHECKPOINT).unlink(missing_ok=True)


def write_weights(path: Path, weights: "Mapping[str, Tensor]") -> None:
    """Replace the weights of the selected epoch."""
    import safetensors.torch

    write_bytes(path / WEIGHTS, safetensors.torch.save(dict(weights)))


def read_weights(path: Path) -> "dict[str, Tensor]":
    """The weights of the selected epoch; raises RunError if they are missing or damaged."""
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path / WEIGHTS)
    except FileNotFoundError as error:
        raise RunError(f"{path}: incomplete run folder ({WEIGHTS} is missing): {TRAIN_AGAIN}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path / WEIGHTS}: damaged ({error}): {TRAIN_AGAIN}") from error


def keep_derived(run: Run, name: str, content: Mapping[str, Any]) -> None:
    """Keep in a run's folder what was computed from its weights.

    Args:
        run: the run.
        name: of the file.
        content: what `read_derived` is to return until the weights change.
    """
    write_json(run.path / name, {"weights": _weights_hash(run), **content})


def read_derived(run: Run, name: str, parse: Callable[[dict[str, Any]], _Parsed]) -> _Parsed | None:
    """What `keep_derived` kept; None if there is none, or the weights have changed since.

    Args:
        run: the run.
        name: of the file.
        parse: makes of the content what is returned; a ValueError, KeyError, TypeError or AttributeError of it means
            that the file is damaged.

    Raises:
        RunError: the file is damaged.
    """
    file = run.path / name
    if not file.exists():
        return None
    weights = _weights_hash(run)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return parse(content) if content.pop("weights") == weights else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: damaged ({error}): remove it, and it is computed again") from error


def _weights_hash(run: Run) -> str:
    try:
        return hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise RunError(f"{run.path / WEIGHTS}: cannot be read ({error}): {TRAIN_AGAIN}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise RunError(f"{file}: damaged ({error}): {TRAIN_AGAIN}") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: damaged (not a JSON object): {TRAIN_AGAIN}")
    return content


def _with(content: dict[str, Any], fields: Mapping[str, type], file: Path) -> dict[str, Any]:
    """The content, checked to have these fields."""
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise RunError(f"{file}: damaged ({name!r} is missing or of the wrong type): {TRAIN_AGAIN}")
    return content


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"{file.parent}: incomplete run folder ({file.name} is missing): {TRAIN_AGAIN}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: cannot be read ({error}): check its permissions or train again elsewhere") from error
