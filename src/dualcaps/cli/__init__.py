"""The command line: parse, call one function, print what it returned."""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dualcaps.bench import run_short
from dualcaps.data.load import (
    DATA_SETS,
    DataOptions,
    ImageData,
    Split,
    check_data,
    data_state,
    get_data,
    list_images,
    load_data,
)
from dualcaps.errors import ConfigError, DataError, DualcapsError, in_one_line
from dualcaps.study.plan import (
    EXPERIMENTS,
    Clock,
    PlannedRun,
    Progress,
    check_limits,
    is_done,
    note_failures,
    plan_runs,
    reproduce,
)
from dualcaps.explain.reconstructions import contact_sheet
from dualcaps.inference import choose_precision, evaluate_run, load_model, predict_files
from dualcaps.models import MODELS, Network, count_parameters, create_model, describe
from dualcaps.plots import png
from dualcaps.study.records import data_name
from dualcaps.study.report import write_report
from dualcaps.runs.run import write_bytes
from dualcaps.training.fit import TrainConfig, fit

_UNSET = tyro.conf.arg(help_behavior_hint="")
_NETWORKS_OWN = tyro.conf.arg(help_behavior_hint="(default: the network's own)")
_LARGEST_PRINTED_MATRIX = 12
_MOST_PRINTED_FILES = 20
_MOST_NAMES = 3


@dataclass(frozen=True)
class Switches:
    """What the network is to have different from its name's defaults."""

    caps_attention: Annotated[Literal["none", "element", "capsule", "shared"] | None, _NETWORKS_OWN] = None
    """What gates the votes: every number, every vote, or the same layers for each vote."""
    gate: Annotated[Literal["tanh", "sigmoid", "additive"] | None, _NETWORKS_OWN] = None
    """How both attention modules gate: u + u tanh(…), u sigmoid(…) as squeeze and excitation, or not at
    all, u + tanh(…), to compare with."""
    width: Annotated[int | None, _NETWORKS_OWN] = None
    """Channels of the first two convolutions; the next two have twice as many."""
    iterations: Annotated[int | None, _NETWORKS_OWN] = None
    """Routing iterations."""
    squash_constant: Annotated[float | None, _NETWORKS_OWN] = None
    """The constant k of the squash."""
    update: Annotated[Literal["accumulate", "replace"] | None, _NETWORKS_OWN] = None
    """Whether routing adds agreement to the logits or replaces them."""
    extra_conv: bool = False
    """Add the convolution 256 3x3 of the paper's Table 3."""
    no_decoder: bool = False
    """Leave out the decoder, and with it the reconstructions."""


@dataclass(frozen=True)
class Reading:
    """Where images are looked for, and how they are read and split."""

    data_dir: Annotated[Path | None, _UNSET] = None
    """Folder to look into first for the files of a named data set."""
    image_size: Annotated[tuple[int, int] | None, _UNSET] = None
    """Height and width in pixels to bring the images to; by default their own if all have one of at
    most 64 a side, otherwise 32 32."""
    channels: Annotated[Literal[1, 3] | None, _UNSET] = None
    """1 for grey, 3 for colour; by default what the images have."""
    split: Annotated[Split | None, _UNSET] = None
    """How training and test images are told apart: smallnorb official, azimuth, elevation; coil-20 random, views."""
    split_seed: int = 0
    """Seed of the choice of held-out images."""
    camera: Annotated[Literal["left", "right", "both"] | None, _UNSET] = None
    """smallnorb: the camera, by default the left."""
    objects: Annotated[Literal[10, 20] | None, _UNSET] = None
    """coil-20: how many objects, by default the first 10."""
    extra: bool = False
    """svhn: train on extra_32x32.mat too."""

    def load(self, source: str) -> ImageData:
        """Load a data set or a person's own images."""
        return load_data(source, **vars(self))


@dataclass(frozen=True)
class Train:
    """Train a network and keep the run in a folder."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[DATA]")] = "digits"
    """A data set's name; a folder with a sub-folder of images for each class; a .npz or Parquet file."""
    model: str = "da-capsnet"
    """The network; `dualcaps models` lists them."""
    out: Annotated[Path | None, _UNSET] = None
    """Run folder, by default runs/<data>-<model>-seed<seed>, numbered if that exists."""
    resume: bool = False
    """Go on with the run where it stopped."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(default_factory=Reading)
    switches: tyro.conf.OmitArgPrefixes[Switches] = dataclasses.field(default_factory=Switches)
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)

    def run(self) -> None:
        """Load, build, train, print the result."""
        data = self.reading.load(self.data)
        torch.manual_seed(self.training.seed)
        model = create_model(self.model, data.image_shape, len(data.classes), **self._switches())
        result = fit(model, data, self.training, out=self.out, resume=self.resume)
        selected_on = "test" if self.training.protocol == "paper" else "validation"
        epochs = len(result.history)
        for name, value in (
            ("test accuracy", f"{100 * result.test_accuracy:.2f} % of {len(data.test):,} images"),
            ("selected", f"epoch {result.selected_epoch}, {selected_on} {100 * result.selection_accuracy:.2f} %"),
            ("trained", f"{epochs} epoch{'s' * (epochs > 1)}, {sum(line['seconds'] for line in result.history):.0f} s"),
            ("run", str(result.run)),
            ("pictures", ", ".join(path.name for path in sorted(result.run.glob("*.png")))),
        ):
            print(f"{name:<15}{value}")

    def _switches(self) -> dict[str, Any]:
        """What was asked for; an option left alone is the network's own affair."""
        chosen = {
            name: value for name, value in vars(self.switches).items() if value is not None and value is not False
        }
        if chosen.pop("no_decoder", False):
            chosen["decoder"] = False
        return chosen


@dataclass(frozen=True)
class Evaluate:
    """Count how often a trained network is right, class by class."""

    trained: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]", help_behavior_hint="")] = None
    """A data set's name or your own images; by default the run's own test images."""
    data_dir: Annotated[Path | None, _UNSET] = None
    """Folder to look into first for the files of a named data set."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    json: bool = False
    """Print JSON: accuracy, each class's precision and recall (0 to 1), the confusion matrix."""

    def run(self) -> None:
        """Evaluate and print."""
        evaluation, model, official = evaluate_run(self.trained, self.data, data_dir=self.data_dir, device=self.device)
        confusion = evaluation.confusion
        if self.json:
            per_class = zip(model.classes, evaluation.precision, evaluation.recall, confusion.sum(axis=1), strict=True)
            _print_json(
                {
                    "accuracy": evaluation.accuracy,
                    "images": int(confusion.sum()),
                    "official_files": official,
                    "classes": {
                        name: {"precision": _number(precision), "recall": _number(recall), "images": int(images)}
                        for name, precision, recall, images in per_class
                    },
                    "confusion": confusion.tolist(),
                }
            )
            return
        console = _stdout()
        right = int(confusion.trace())
        console.print(f"accuracy {100 * evaluation.accuracy:.2f} % ({right:,} of {confusion.sum():,} images)")
        console.print("not the official files\n" if official is False else "")
        console.print(_class_table(model.classes, evaluation.precision, evaluation.recall, confusion))
        if len(model.classes) <= _LARGEST_PRINTED_MATRIX:
            console.print("\nrows: true class, columns: predicted class")
            console.print(_confusion_table(model.classes, confusion))
        else:
            console.print(f"\nThe confusion matrix of {len(model.classes)} classes is in the output of --json.")


@dataclass(frozen=True)
class Predict:
    """Classify image files of any size and kind."""

    trained: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE…")]
    """Image files, and folders, whose images are all taken."""
    top: int = 3
    """How many classes to print for each image."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the layers; auto is bfloat16 where the machine is fast at it."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    json: bool = False
    """Print JSON: for each image its class and the lengths of all classes (0 to 1), or why it cannot be read."""

    def run(self) -> None:
        """Predict and print, and say which files could not be read."""
        if not self.images:
            raise DataError("IMAGE…: name at least one image file or folder")
        model = load_model(self.trained, self.device)
        files = [file for path in self.images for file in _image_files(path)]
        precision = choose_precision(self.precision, next(model.parameters()).device)
        unread: dict[int, str] = {}
        lengths = predict_files(model, files, precision=precision, unread=unread).numpy()
        if len(unread) == len(files):
            raise DataError(
                unread[0] + (f"; the other {len(files) - 1:,} cannot be read either" if len(files) > 1 else "")
            )
        self._print(model, files, lengths, unread)
        for reason in list(unread.values())[:_MOST_PRINTED_FILES]:
            print(f"dualcaps: {reason}", file=sys.stderr)
        if len(unread) > _MOST_PRINTED_FILES:
            print(f"dualcaps: {len(unread) - _MOST_PRINTED_FILES:,} more files cannot be read", file=sys.stderr)
        if unread:
            sys.exit(1)

    def _print(self, model: Network, files: list[Path], lengths: np.ndarray, unread: Mapping[int, str]) -> None:
        ranking = np.argsort(-lengths, axis=1, kind="stable")
        if self.json:
            _print_json(
                [
                    {"file": str(file)}
                    | (
                        {"error": unread[place]}
                        if place in unread
                        else {
                            "class": model.classes[ranking[place, 0]],
                            "lengths": dict(zip(model.classes, lengths[place].tolist(), strict=True)),
                        }
                    )
                    for place, file in enumerate(files)
                ]
            )
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("class, length")
        for _ in range(min(self.top, len(model.classes)) - 1):
            table.add_column("then")
        for place, (file, order, row) in enumerate(zip(files, ranking, lengths, strict=True)):
            if place in unread:
                continue
            table.add_row(str(file), *(f"{model.classes[c]} {row[c]:.3f}" for c in order[: max(self.top, 1)]))
        _stdout().print(table)


@dataclass(frozen=True)
class Models:
    """List the networks with their parameter counts, without and with the decoder."""

    def run(self) -> None:
        """Count and print."""
        table = Table(box=None, pad_edge=False)
        table.add_column("network")
        shapes = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32)}
        for shape in shapes:
            table.add_column(shape, justify="right")
            table.add_column("with decoder", justify="right")
        for name in MODELS:
            counts = []
            for shape in shapes.values():
                with torch.device("meta"):
                    model = create_model(name, shape)
                decoder = count_parameters(model.decoder) if model.decoder else None
                counts.append(f"{count_parameters(model) - (decoder or 0):,}")
                counts.append(f"{count_parameters(model):,}" if decoder else "–")
            table.add_row(name, *counts)
        _stdout().print(table)


@dataclass(frozen=True)
class DataList:
    """List the data sets: found or not, where, official or not, their sizes and classes."""

    data_dir: Annotated[Path | None, _UNSET] = None
    """Folder to look into first."""

    def run(self) -> None:
        """Look and print."""
        table = Table(box=None, pad_edge=False)
        for heading in ("data set", "classes", "pixels", "splits", "files"):
            table.add_column(heading, overflow="fold")
        for name, data_set in DATA_SETS.items():
            height, width = data_set.size
            pixels = f"{height}x{width}x{data_set.channels}"
            table.add_row(
                *(name, str(len(data_set.classes_of(DataOptions(name)))), pixels),
                *(", ".join(data_set.splits), data_state(name, self.data_dir)),
            )
        _stdout().print(table)


@dataclass(frozen=True)
class DataCheck:
    """Read everything anew, count images per class and part, compare checksums with the official ones."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, or a path of your own images."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(default_factory=Reading)

    def run(self) -> None:
        """Read and print."""
        data, files = check_data(self.name, **vars(self.reading))
        console = _stdout()
        channels, height, width = data.image_shape
        console.print(
            f"{data.name}: {height}x{width}x{channels} pixels, from {data.provenance['from']}", soft_wrap=True
        )
        table = Table(box=None, pad_edge=False)
        table.add_column("class")
        parts = {"training": data.train, "validation": data.validation, "test": data.test}
        for part in parts:
            table.add_column(part, justify="right")
        counts = [torch.bincount(part.labels, minlength=len(data.classes)) for part in parts.values()]
        for label, name in enumerate(data.classes):
            table.add_row(name, *(f"{int(count[label]):,}" for count in counts))
        table.add_row("all", *(f"{len(part):,}" for part in parts.values()))
        console.print(table)
        for file in files[:_MOST_PRINTED_FILES]:
            console.print(f"{file.verdict:<14}{file.checksum}  {file.path}", soft_wrap=True)
        if len(files) > _MOST_PRINTED_FILES:
            console.print(f"… and {len(files) - _MOST_PRINTED_FILES:,} more files")
        console.print(
            {True: "official files", False: "not the official files", None: "no official files to compare with"}[
                data.provenance["official"]
            ]
        )


@dataclass(frozen=True)
class DataGet:
    """Fetch a data set's files into the user cache."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name."""
    extra: bool = False
    """svhn: the large extra_32x32.mat too."""

    def run(self) -> None:
        """Fetch and say where it is."""
        print(get_data(self.name, extra=self.extra))


@dataclass(frozen=True)
class DataShow:
    """Draw a contact sheet: images of each class, as they are and augmented."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, or a path of your own images."""
    out: Path = Path("sheet.png")
    """The PNG file to write."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(default_factory=Reading)

    def run(self) -> None:
        """Draw and say where it is."""
        write_bytes(self.out, png(contact_sheet(self.reading.load(self.name))))
        print(self.out)


@dataclass(frozen=True)
class Data:
    """List, check, fetch and show data sets."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[DataList, tyro.conf.subcommand("list")]
        | Annotated[DataCheck, tyro.conf.subcommand("check")]
        | Annotated[DataGet, tyro.conf.subcommand("get")]
        | Annotated[DataShow, tyro.conf.subcommand("show")]
    ]

    def run(self) -> None:
        """Do it."""
        self.action.run()


@dataclass(frozen=True)
class Bench:
    """Measure how fast this machine trains and predicts, beside plain PyTorch; a minute or two."""

    model: Literal["capsnet", "da-capsnet"] = "da-capsnet"
    """The network."""
    batch_size: int = 128
    """Images a step."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Measure and print, line by line."""
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        lines = []
        for line in run_short(self.device, model=self.model, batch_size=self.batch_size):
            lines.append(line)
            if not self.json:
                spread = (
                    "" if line.slowest == line.fastest else f"  ({line.slowest:,.0f} to {line.fastest:,.0f}, n = 5)"
                )
                number = f"{line.value:,.2f}" if line.unit == "times" else f"{line.value:,.0f}"
                print(f"{line.what:<58}{number:>9} {line.unit}{spread}", flush=True)
        if self.json:
            _print_json([dataclasses.asdict(line) for line in lines])


@dataclass(frozen=True)
class Reproduce:
    """Run the paper's experiments again, with several seeds and controls; resumes what was stopped."""

    experiments: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[EXPERIMENT…]", help_behavior_hint="(default: all)"),
    ] = ()
    """Which ones; --list tells what each asks."""
    seeds: int = 5
    """How many seeds, from 0; they are the splits' seeds too."""
    epochs: int = 100
    """Epochs of each run; the paper trained for 100."""
    datasets: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help_behavior_hint="(default: the experiments' own)", metavar="DATA…")
    ] = None
    """Only these data sets; or paths of your own images, for `attention` and the controls."""
    protocols: tuple[Literal["clean", "paper"], ...] = ("clean", "paper")
    """clean selects the epoch on held-out training images, paper on the test images."""
    budget: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: until all is done)")] = None
    """Minutes to spend; the most telling runs come first, and the same command goes on another time."""
    jobs: int = 1
    """Runs at once; on the CPU they share the cores."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs."""
    data_dir: Annotated[Path | None, _UNSET] = None
    """Folder to look into first for the files of the data sets."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the layers; float32 on the CPU gives the same results each time."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    list: bool = False
    """Only list the experiments: what each asks and what the paper printed."""
    plan: bool = False
    """Only show the runs, which are done, and the time that the others will take; fetches nothing."""

    def run(self) -> None:
        """Plan, show, train what is missing."""
        console = _stdout()
        if self.list:
            for name, experiment in EXPERIMENTS.items():
                console.print(f"{name}\n  asks      {experiment.asks}\n  printed   {experiment.printed}")
                console.print(f"  networks  {'; '.join(map(str, experiment.networks))}")
                console.print(f"  data      {', '.join(data_name(*place) for place in experiment.data)}")
                console.print(f"  command   dualcaps reproduce {name}")
                console.print(f"  time      about {experiment.hours:g} hours on 2 CPU cores with --jobs 2\n")
            console.print("--plan estimates the time on this machine, with fewer seeds or epochs too.")
            return
        check_limits(self.out, self.jobs, self.budget)
        if self.datasets == ():
            raise ConfigError("--datasets: name at least one, or leave the option out")
        planned, missing = plan_runs(
            self.experiments,
            seeds=self.seeds,
            data_sets=self.datasets or (),
            protocols=self.protocols,
            training=TrainConfig(epochs=self.epochs, precision=self.precision, device=self.device),
            data_dir=self.data_dir,
            download=not self.plan,
        )
        if not planned:
            raise ConfigError(f"nothing to run: {'; '.join(dict.fromkeys(failure.reason for failure in missing))}")
        done = {run for run in planned if is_done(run, self.out)}
        console.print(_plan_table(planned, done, Clock(planned, self.out, self.jobs)))
        _print_left_out(missing)
        if self.plan:
            return
        note_failures(self.out, missing)
        with _GridDisplay(len(planned), len(done), self.budget) as display:
            failures = reproduce(
                planned, self.out, jobs=self.jobs, budget=self.budget, data_dir=self.data_dir, tell=display.tell
            )
        ended = sum(is_done(run, self.out) for run in planned)
        print(f"{ended:,} of {len(planned):,} runs done, {len(failures)} failed; dualcaps report {self.out} shows them")
        if ended + len(failures) < len(planned):
            print("the same command goes on with the others")
        if failures or missing:
            sys.exit(1)


@dataclass(frozen=True)
class Report:
    """Write what runs came to beside the paper's numbers: a page, Markdown, CSV."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUNS…]")] = (
        Path("runs/reproduce"),
    )
    """Run folders, folders of them, or folders that a report was written into before."""
    out: Path = Path("report")
    """Folder to write into."""

    def run(self) -> None:
        """Write and say where it is."""
        page, left_out = write_report(self.runs, self.out)
        _print_left_out(left_out)
        print(page)


def _print_left_out(what: Iterable[tuple[str, str]]) -> None:
    """On standard error, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in what:
        names.setdefault(reason, []).append(name)
    for reason, left_out in names.items():
        why = reason.removeprefix(f"{left_out[0]}: ")
        others = f" and {len(left_out) - _MOST_NAMES:,} more" if len(left_out) > _MOST_NAMES else ""
        print(f"left out: {'; '.join(left_out[:_MOST_NAMES])}{others}: {why}", file=sys.stderr)


class _GridDisplay:
    """A line for each run that ends and, on a terminal, bars for the grid and the runs under way; on standard error."""

    def __init__(self, total: int, done: int, budget: float | None) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[told]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._budget, self._started = budget, time.monotonic()
        self._all = self._bars.add_task("runs", total=total, completed=done, told=f"{done} of {total}")
        self._total, self._done, self._ended = total, done, done
        self._under_way: dict[PlannedRun, TaskID] = {}
        self._last: dict[PlannedRun, dict[str, Any]] = {}

    def __enter__(self) -> "_GridDisplay":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def tell(self, progress: Progress) -> None:
        """Show what happened."""
        run, line = progress.run, progress.line
        if progress.ended:
            self._bars.remove_task(self._under_way.pop(run))
            self._done += progress.failed is None
            self._ended += 1
            self._console.print(f"{self._ended}/{self._total}  {run.name}: {self._outcome(progress)}", soft_wrap=True)
        elif line is None:
            self._under_way[run] = self._bars.add_task(run.name, total=run.training.epochs, told="starting")
        else:
            self._last[run] = line
            told = f"epoch {line['epoch']}, {_accuracy(line)}, {line['images_per_second']:,.0f} images/s"
            self._bars.update(self._under_way[run], completed=line["epoch"], told=told)
        left = datetime.timedelta(seconds=round(progress.seconds_left))
        until = ""
        if self._budget is not None:
            rest = max(0.0, 60 * self._budget - (time.monotonic() - self._started))
            until = f", {datetime.timedelta(seconds=round(rest))} of the budget"
        self._bars.update(self._all, completed=self._done, told=f"{self._done} of {self._total}, {left} left{until}")

    def _outcome(self, progress: Progress) -> str:
        if progress.failed is not None:
            return f"failed: {progress.failed}"
        last = self._last.get(progress.run)
        if last is None:
            return "done"
        return f"{_accuracy(last)} after the last epoch, {last['images_per_second']:,.0f} images/s"


def _accuracy(line: Mapping[str, Any]) -> str:
    name = "validation" if "validation_accuracy" in line else "test"
    return f"{name} {100 * line[f'{name}_accuracy']:.2f} %"


def _plan_table(planned: Sequence[PlannedRun], done: Container[PlannedRun], clock: Clock) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("data", "network", "protocols", "epochs", "seeds", "done", "time left"):
        table.add_column(heading, justify="right" if heading in ("epochs", "seeds", "done", "time left") else "left")
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in planned:
        groups.setdefault((run.where, describe(run.network)), []).append(run)
    for (where, network), members in groups.items():
        missing = [run for run in members if run not in done]
        table.add_row(
            where,
            network,
            ", ".join(dict.fromkeys(run.training.protocol for run in members)),
            str(members[0].training.epochs),
            str(len({run.training.seed for run in members})),
            f"{len(members) - len(missing)} of {len(members)}",
            _duration(clock.left(dict.fromkeys(missing, 0))) if missing else "",
        )
    missing = [run for run in planned if run not in done]
    total = _duration(clock.left(dict.fromkeys(missing, 0))) if missing else ""
    table.add_row("all", "", "", "", "", f"{len(planned) - len(missing)} of {len(planned)}", total)
    return table


def _duration(seconds: float) -> str:
    return f"about {datetime.timedelta(seconds=round(seconds))}"


_Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line on standard error for a user's mistake."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for large pages, and waits for fewer of them
    warnings.filterwarnings("ignore", module="PIL")  # what matters of a damaged image becomes an error
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"dualcaps {metadata.version('dualcaps')}")
        return
    try:
        _parse(arguments).run()
    except DualcapsError as error:
        _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        _fail(in_one_line(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        _fail("out of memory: lower --batch-size or --image-size, or close other programs")
    except KeyboardInterrupt:
        print("dualcaps: interrupted: the same command goes on, but train needs --resume with it", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: Sequence[str] | None) -> Train | Evaluate | Predict | Models | Bench | Reproduce | Report | Data:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _Command,  # pyright: ignore[reportArgumentType]
                prog="dualcaps",
                description="Dual-attention capsule networks: train on images, evaluate, predict.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code:
            _fail(_one_line(said.getvalue()))
        raise


def _one_line(box: str) -> str:
    """Of the parser's framed message with the option's help below it, the message."""
    lines = [line.strip(" │") for line in box.splitlines()[1:]]
    message = " ".join(lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), -1)])
    message = re.sub(r"Error parsing \S*__\S*: ", "", message.partition(" Got errors:")[0])
    return re.sub(r"\s+", " ", message).strip() + " (--help shows the options)"


def _fail(message: str) -> None:
    print(f"dualcaps: {message}", file=sys.stderr)
    sys.exit(2)


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (files := list_images(path)):
        raise DataError(f"{path}: no images in this folder")
    return files


def _class_table(classes: tuple[str, ...], precision: np.ndarray, recall: np.ndarray, confusion: np.ndarray) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for heading in ("images", "recall", "precision", "most often taken for"):
        table.add_column(heading, justify="right" if heading != "most often taken for" else "left")
    for label, name in enumerate(classes):
        wrong = confusion[label].copy()
        wrong[label] = 0
        other = f"{classes[wrong.argmax()]} ({wrong.max()})" if wrong.max() else ""
        table.add_row(name, f"{confusion[label].sum():,}", _percent(recall[label]), _percent(precision[label]), other)
    return table


def _confusion_table(classes: tuple[str, ...], confusion: np.ndarray) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for number in range(len(classes)):
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        table.add_row(f"{number} {name}", *(str(count) if count else "·" for count in row))
    return table


def _percent(ratio: float) -> str:
    return "–" if np.isnan(ratio) else f"{100 * ratio:.2f} %"


def _number(ratio: float) -> float | None:
    return None if np.isnan(ratio) else float(ratio)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _stdout() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # nothing is wrapped for a file or another program
    return console
