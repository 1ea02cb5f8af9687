"""Records of runs, which a report is made of, read from run folders or from CSV files.

A folder of records holds `runs.csv` (a line for each run), `epochs.csv` (a line for each epoch),
`failures.csv` and `strips/<run>/` with the reconstructions that were kept; both ways of reading
give the same records. `copies.csv`, written by hand (columns data, images_sha256, copy, same_pixels: yes or no), may
name a data set's files that are not the official ones; a line without a hash is of runs that have none or another.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import math
import os
import statistics
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from dualcaps.config import (
    INCIDENTAL,
    DataConfig,
    ModelConfig,
    Protocol,
    TrainConfig,
    config_hash,
    from_json,
    to_json,
)
from dualcaps.errors import RunError
from dualcaps.models import default_switches
from dualcaps.registry import DATASETS
from dualcaps.runs import run as runs
from dualcaps.runs.files import write_csv
from dualcaps.runs.run import Run
from dualcaps.study.experiments.card import DataKey, Variant, data_key

RUNS, EPOCHS, FAILED, COPIES = "runs.csv", "epochs.csv", "failures.csv", "copies.csv"


class Epoch(NamedTuple):
    """One epoch; accuracies from 0 to 1, `accuracy` on the part that the epoch is selected on."""

    epoch: int
    loss: float
    train_accuracy: float
    accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        run: a hash of its settings, data and device.
        data: the data set and its split.
        network: the network with its switches.
        protocol: "clean", "paper" or "last".
        seed: of weights, order and split.
        epochs: number of epochs trained.
        precision: number type of the layers.
        parameters: their number, the decoder's included.
        selected_epoch: the epoch whose weights were kept.
        selection_accuracy: on the part it was selected on, 0 to 1.
        test_accuracy: of the kept weights, 0 to 1.
        reconstruction_error: of the kept weights, see `dualcaps.explain`; None where there is none.
        training_images, validation_images, test_images: in each part.
        training_seconds: of all epochs, without evaluation.
        images_per_second: in training, the median over the epochs.
        official: whether the files are the official ones; None if there are no official files.
        sha256: of the images and their split.
        device, processor, threads, torch, dualcaps, commit, started: the environment and time of its
            last start.
        settings: the configuration of model, training and data as JSON.
        history: one entry per epoch.
        images_sha256: of the images alone, before they were split; "" where it was not recorded, in runs of format 1.
        preparation: the images' size and what else was done to them before training, in words.
        compiled: in which epochs the training step was compiled, in words; "" where it was not recorded.
        commits: the commit of each start and resumption, in order, separated by spaces; - where it is not known.
    """

    run: str
    data: DataKey
    network: Variant
    protocol: str
    seed: int
    epochs: int
    precision: str
    parameters: int
    selected_epoch: int
    selection_accuracy: float
    test_accuracy: float
    reconstruction_error: float | None
    training_images: int
    validation_images: int
    test_images: int
    training_seconds: float
    images_per_second: float
    official: bool | None
    sha256: str
    device: str
    processor: str
    threads: int
    torch: str
    dualcaps: str
    commit: str
    started: str
    settings: str
    history: tuple[Epoch, ...] = dataclasses.field(repr=False)
    images_sha256: str = ""
    preparation: str = ""
    compiled: str = ""
    commits: str = ""

    @functools.cached_property
    def asked(self) -> dict[str, Any]:
        """The settings as dictionaries "model", "training" and "data"."""
        return json.loads(self.settings)

    @functools.cached_property
    def condition(self) -> str:
        """What runs must share to be averaged or compared: training and data without seeds and protocol.

        Learning rates are converted to those of a network as wide as the paper's.
        """
        training = _without(self.asked["training"], "seed", "protocol")
        model = self.asked["model"]
        usual = default_switches(model["name"])["width"]
        training["lr"] = round(training["lr"] * max(1.0, model["width"] / usual), 9)
        training = {name: value for name, value in training.items() if value != _TRAINING_DEFAULTS.get(name, ...)}
        images = self.training_images + self.validation_images + self.test_images
        which = self.images_sha256 if self.official is False else ""
        data = _without(self.asked["data"], "split_seed")
        data = {name: value for name, value in data.items() if value != _DATA_DEFAULTS.get(name, ...)}
        return json.dumps([training, data, images, self.precision, self.official, which])


# Defaults stand in for fields that runs of format 1 did not have.
_TRAINING_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
_DATA_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DataConfig)}


class Copy(NamedTuple):
    """A description of a data set's files that are not the official ones.

    name: a short description.
    same_pixels: whether the images nevertheless equal the official ones.
    """

    name: str
    same_pixels: bool


CopyKey = tuple[str, str]


def copy_of(record: "Record", copies: Mapping[CopyKey, Copy]) -> Copy | None:
    """The description of the files that a run was trained on."""
    source = record.data.source
    return copies.get((source, record.images_sha256)) or copies.get((source, ""))


@dataclass(frozen=True)
class Records:
    """The runs and failures that a report is made of.

    Attributes:
        runs: the finished runs, in the order of data, network, protocol, epochs and seed.
        failures: names and reasons of runs that failed, are unfinished or damaged, and of data sets that were
            not found; without runs that have been finished since.
        copies: descriptions of files that are not official, by data set and hash of the images, or "" for all others.
        strips: the folder of each run's reconstructions.
    """

    runs: tuple[Record, ...]
    failures: tuple[tuple[str, str], ...]
    copies: Mapping[CopyKey, Copy]
    strips: Mapping[str, Path]

    @functools.cached_property
    def labels(self) -> dict[DataKey, str]:
        """Display names of the runs' data sets."""
        return labels(record.data for record in self.runs)


def read_records(sources: Sequence[str | Path]) -> Records:
    """Read run folders, folders of them at any depth, and folders of records.

    If a run is in several sources, the last one is used. A damaged run is listed among the failures and
    does not affect the others.

    Raises:
        RunError: a source that is no folder, or damaged CSV files.
    """
    found: dict[str, Record] = {}
    strips: dict[str, Path] = {}
    failures: dict[str, str] = {}
    copies: dict[CopyKey, Copy] = {}
    for source in map(Path, sources):
        if not source.is_dir():
            raise RunError(f"{source}: no such folder: name run folders, or a folder of them")
        copies |= read_copies(source)
        if (source / RUNS).is_file():
            for record in _read_table(source):
                found[record.run] = record
                if (folder := source / runs.STRIPS / record.run).is_dir():
                    strips[record.run] = folder
            if (source / FAILED).is_file():
                failures.update((line["run"], line["reason"]) for line in _read_csv(source / FAILED, ("run", "reason")))
            continue
        for file in sorted(source.rglob(runs.FAILURES)):
            failures |= _read_failures(file, source)
        for folder in sorted({file.parent for name in (runs.CONFIG, runs.METRICS) for file in source.rglob(name)}):
            if folder.name.startswith("."):  # a draft left by a killed process
                continue
            try:
                run = Run.open(folder)
                if not run.finished:
                    failures.setdefault(name_of_run(run), "not finished")
                    continue
                record = record_of(run)
            except RunError as error:
                name = _name_by_configuration(folder)
                if (folder / runs.RESULT).is_file():
                    failures[name or _below(source, folder)] = str(error).replace(f"{source}{os.sep}", "")
                elif name is not None:
                    failures.setdefault(name, "not finished")
                continue
            found[record.run] = record
            if (folder / runs.STRIPS).is_dir():
                strips[record.run] = folder / runs.STRIPS
    ordered = sorted(
        found.values(), key=lambda r: (str(r.data), r.data, str(r.network), r.protocol, r.epochs, r.seed, r.run)
    )
    done = {name for record in found.values() for name in (name_of(record), str(record.data))}
    still = tuple(sorted((run, reason) for run, reason in failures.items() if run not in done))
    return Records(tuple(ordered), still, copies, strips)


def labels(keys: Iterable[DataKey]) -> dict[DataKey, str]:
    """Display names of data sets; own images of the same name in several places get the place appended."""
    distinct = set(keys)
    places: dict[str, int] = {}
    for key in distinct:
        places[str(key)] = places.get(str(key), 0) + 1
    return {key: f"{key} [{key.place}]" if key.place and places[str(key)] > 1 else str(key) for key in distinct}


def read_copies(folder: Path) -> dict[CopyKey, Copy]:
    """Read `copies.csv` of a folder, if there is one; raises RunError if it is damaged."""
    if not (folder / COPIES).is_file():
        return {}
    lines = _read_csv(folder / COPIES, ("data", "copy", "same_pixels"))
    return {
        (line["data"], line.get("images_sha256", "")): Copy(line["copy"], line["same_pixels"] == "yes")
        for line in lines
    }


def write_records(records: Records, out: Path) -> None:
    """Write the records as CSV files; the strips are not copied.

    Raises:
        OSError: they cannot be written; existing files are kept.
    """
    columns = [field.name for field in dataclasses.fields(Record) if field.name != "history"]
    write_csv(out / RUNS, columns, ([_text(getattr(r, name)) for name in columns] for r in records.runs))
    epochs = ([r.run, *map(_text, epoch)] for r in records.runs for epoch in r.history)
    write_csv(out / EPOCHS, ["run", *Epoch._fields], epochs)
    write_csv(out / FAILED, ["run", "reason"], records.failures)
    if records.copies:
        lines = ([*key, copy.name, _text(copy.same_pixels)] for key, copy in sorted(records.copies.items()))
        write_csv(out / COPIES, ["data", "images_sha256", "copy", "same_pixels"], lines)


def run_name(network: object, data: object, protocol: str, epochs: int, seed: int) -> str:
    """The readable name of a run."""
    return f"{network} on {data}, {protocol}, {epochs} epoch{'s' * (epochs > 1)}, seed {seed}"


def name_of(record: Record) -> str:
    """The readable name of a record's run."""
    return run_name(record.network, record.data, record.protocol, record.epochs, record.seed)


def name_of_run(run: Run) -> str:
    """The readable name of a run, finished or not."""
    how = run.training
    return run_name(Variant.of(run.model), _key_of(run), how.protocol, how.epochs, how.seed)


def _key_of(run: Run) -> DataKey:
    source = run.data.source
    if source in DATASETS:
        return data_key(source, run.data.split)
    # The path of own images is kept only as a hash that distinguishes folders of the same name.
    return data_key(source, run.data.split, hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8])


def _below(source: Path, path: Path) -> str:
    """A path relative to a source."""
    return path.name if path == source else str(path.relative_to(source))


def _name_by_configuration(folder: Path) -> str | None:
    """The name of a damaged run, from its configuration alone."""
    try:
        config = json.loads((folder / runs.CONFIG).read_text(encoding="utf-8"))
        model = from_json(ModelConfig, runs.from_format_1(config, {"data": {}})[0]["model"])
        training, data = config["training"], config["data"]
        key = data_key(data["source"], data["split"], "" if data["source"] in DATASETS else "own")
        return run_name(Variant.of(model), key, training["protocol"], training["epochs"], training["seed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def record_of(run: Run) -> Record:
    """The record of a finished run.

    Raises:
        RunError: it is not finished, or damaged.
    """
    if run.result is None:
        raise RunError(f"{run.path}: incomplete run folder ({runs.RESULT} is missing): {runs.TRAIN_AGAIN}")
    key, result = _key_of(run), run.result
    try:
        session, data = run.provenance["sessions"][-1], run.provenance["data"]
        settings = {
            "model": to_json(run.model),
            "training": _without(to_json(run.training), *INCIDENTAL),
            "data": _without(to_json(run.data), "data_dir")
            | {"source": key.source}
            | ({"place": key.place} if key.place else {}),
        }
        history = tuple(
            Epoch(
                line["epoch"],
                *(round(line[name], 6) for name in ("loss", "train_accuracy", f"{run.selected_on}_accuracy")),
                *(round(line[name], 3) for name in ("seconds", "images_per_second")),
            )
            for line in run.history
        )
        images = data.get("sha256") or data["sha256_format_1"]
        error = result.get("reconstruction_error")
        identity = [
            config_hash(run.model, run.training, run.data, leave_out=(*INCIDENTAL, "data_dir", "source")),
            *(list(key), images, session["device"], result["precision"]),
        ]
        record = Record(
            run=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12],
            data=key,
            network=Variant.of(run.model),
            protocol=run.training.protocol,
            seed=run.training.seed,
            epochs=len(history),
            precision=result["precision"],
            parameters=result["parameters"],
            selected_epoch=result["selected_epoch"],
            selection_accuracy=round(result[f"{run.selected_on}_accuracy"], 6),
            test_accuracy=round(result["test_accuracy"], 6),
            reconstruction_error=None if error is None else round(error, 8),
            training_images=data["images"]["train"],
            validation_images=data["images"]["validation"],
            test_images=data["images"]["test"],
            training_seconds=round(result["training_seconds"], 3),
            images_per_second=round(statistics.median(epoch.images_per_second for epoch in history), 1),
            official=data["official"],
            sha256=images,
            device=session["device"],
            processor=session["processor"],
            threads=session["threads"],
            torch=session["versions"]["torch"],
            dualcaps=session["versions"]["dualcaps"],
            commit=session["commit"] or "",
            started=session["started"],
            settings=json.dumps(settings),
            history=history,
            images_sha256=data.get("source_sha256") or "",
            preparation=_preparation(run),
            compiled=_compiled(run.history),
            commits=" ".join(one["commit"] or "-" for one in run.provenance["sessions"]),
        )
        _check(record)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"{run.path}: damaged ({type(error).__name__}: {error}): {runs.TRAIN_AGAIN}") from error
    return record


def _preparation(run: Run) -> str:
    """What was done to the images before training, in words."""
    channels, height, width = run.model.image_shape
    words = [f"{height}x{width}, {channels} channel{'s' * (channels > 1)}"]
    if run.data.camera is not None:
        words.append(f"camera {run.data.camera}")
    if run.model.crop is not None:
        words.append(f"random crops of {run.model.crop[0]}x{run.model.crop[1]}, the centre at the test")
    if run.model.standardise:
        words.append("each image standardised")
    return ", ".join(words)


def _compiled(history: Sequence[Mapping[str, Any]]) -> str:
    """In which epochs the step was compiled at the end, in words; "" where that was not recorded for all."""
    if not all("compiled" in line for line in history):
        return ""
    epochs = [line["epoch"] for line in history if line["compiled"]]
    if not epochs:
        return "never"
    if epochs == list(range(epochs[0], history[-1]["epoch"] + 1)):
        return f"from epoch {epochs[0]}"
    return f"in epochs {', '.join(map(str, epochs))}"


def _check(record: Record) -> None:
    """Raise ValueError for what no run leaves behind."""
    numbers = [number for epoch in record.history for number in epoch]
    numbers += [record.selection_accuracy, record.test_accuracy, record.training_seconds, record.images_per_second]
    numbers.append(record.reconstruction_error or 0.0)
    if [epoch.epoch for epoch in record.history] != list(range(1, record.epochs + 1)):
        raise ValueError(f"{len(record.history)} of {record.epochs} epochs")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number that is not finite")
    if record.protocol not in get_args(Protocol):
        raise ValueError(f"unknown protocol {record.protocol!r}")
    asked = record.asked
    trained = record.epochs <= asked["training"]["epochs"] and isinstance(asked["data"], dict)
    if not trained or not isinstance(asked["model"]["num_classes"], int):
        raise ValueError("settings of another run")


def _without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def _read_table(folder: Path) -> list[Record]:
    fields = [field for field in dataclasses.fields(Record) if field.name not in ("data", "network", "history")]
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    history: dict[str, list[Epoch]] = {}
    types = typing.get_type_hints(Record)
    file = folder / EPOCHS
    try:
        for line in _read_csv(file, ("run", *Epoch._fields)):
            numbers = [float(line[name]) for name in Epoch._fields[1:]]
            history.setdefault(line["run"], []).append(Epoch(int(line["epoch"]), *numbers))
        file = folder / RUNS
        records = [
            Record(
                **{field.name: _value(types[field.name], line[field.name]) for field in fields if field.name in line},
                **_identity(line["settings"]),
                history=tuple(history.get(line["run"], [])),
            )
            for line in _read_csv(folder / RUNS, ("data", "network", *required))
        ]
        for record in records:
            _check(record)
        return records
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{file}: damaged ({error}): make it again from the run folders") from error


def _identity(settings: str) -> dict[str, Any]:
    """Data set and network of a record, by its settings; the columns of these names are for people."""
    asked = json.loads(settings)
    model = from_json(ModelConfig, runs.from_format_1(asked, {"data": {}})[0]["model"])
    data = asked["data"]
    return {
        "data": DataKey(data["source"], data.get("split") or "", data.get("place", "")),
        "network": Variant.of(model),
    }


def _read_failures(file: Path, source: Path) -> dict[str, str]:
    """What is noted to have failed, and lines that cannot be read as a failure of the file's own."""
    failures, unread = {}, 0
    try:
        whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition(
            "\n"
        )  # a kill may have torn the last line
    except OSError as error:
        return {_below(source, file): f"cannot be read ({error.strerror})"}
    for line in whole.splitlines():
        try:
            failure = json.loads(line)
            failures[str(failure["run"])] = str(failure["reason"])
        except (ValueError, KeyError, TypeError):
            unread += 1
    if unread:
        failures[_below(source, file)] = f"damaged: what failed cannot be read in {unread} of its lines"
    return failures


def _read_csv(file: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            reader = csv.DictReader(opened)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{file}: cannot be read ({error})") from error
    if missing := set(columns) - set(reader.fieldnames or ()):
        raise RunError(f"{file}: no column {min(missing)}: not written by this version of dualcaps")
    if any(None in line or None in line.values() for line in lines):
        raise RunError(f"{file}: damaged (lines of different lengths): make it again from the run folders")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _value(kind: Any, text: str) -> Any:
    if kind == bool | None:
        return {"": None, "yes": True, "no": False}[text]
    if kind == float | None:
        return float(text) if text else None
    return kind(text)
