"""The paper's tables and figures, and controls for them, as named experiments; planned, run, resumed.

An experiment is a set of networks on a set of data sets. `plan_runs` multiplies it by seeds and
protocols, most informative runs first; `perform` trains one; `reproduce` trains all that are
missing, each in a process of its own, so that a crash costs one run and a kill costs an epoch.
"""

import dataclasses
import datetime
import difflib
import hashlib
import json
import math
import multiprocessing
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from dualcaps.runs import run as runs
from dualcaps.bench import count_operations, matrix_rate
from dualcaps.data.load import DATA_SETS, ImageData, Split, load_data, unknown_source
from dualcaps.errors import ConfigError, DataError, DualcapsError, ModelError, RunError, in_one_line
from dualcaps.explain.reconstructions import reconstruction_strips
from dualcaps.inference import choose_device, choose_precision
from dualcaps.models import ModelConfig, Network, build_model, count_parameters, create_model, describe
from dualcaps.study.records import data_name, read_run, run_name
from dualcaps.training.fit import TrainConfig, fit

Protocol = Literal["clean", "paper"]

_STRIP_EPOCHS = 7  # as many as Figs. 8 and 9 show


@dataclass(frozen=True)
class Variant:
    """A network with switches other than its own.

    Attributes:
        model: its name in `MODELS`.
        switches: fields of `ModelConfig` and their values.
        as_large_as: choose the width that gives as many parameters as this network has.
    """

    model: str
    switches: tuple[tuple[str, Any], ...] = ()
    as_large_as: str = ""

    def __str__(self) -> str:
        words = [self.model, *(f"{name} {value}" for name, value in self.switches)]
        return ", ".join([*words, f"as large as {self.as_large_as}"] if self.as_large_as else words)

    def configure(self, image_shape: tuple[int, int, int], classes: int) -> ModelConfig:
        """The network for these images."""
        switches = dict(self.switches)
        if self.as_large_as:
            switches["width"] = width_to_match(self.model, self.as_large_as, image_shape, classes)
        return _on_paper(self.model, image_shape, classes, **switches).config


def width_to_match(model: str, other: str, image_shape: tuple[int, int, int], classes: int) -> int:
    """The width with which `model` comes nearest to the parameter count of `other`."""
    wanted = count_parameters(_on_paper(other, image_shape, classes))

    def excess(width: int) -> int:
        return count_parameters(_on_paper(model, image_shape, classes, width=width)) - wanted

    low, high = 1, 2
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return min(low, high, key=lambda width: abs(excess(width)))


def _on_paper(model: str, image_shape: tuple[int, int, int], classes: int, **switches: Any) -> Network:
    with torch.device("meta"):
        return create_model(model, image_shape, classes, **switches)


@dataclass(frozen=True)
class Experiment:
    """A card: what is asked, on what, with which networks, and what the paper prints.

    Attributes:
        asks: the question, in words.
        printed: the paper's answer.
        networks: what is trained.
        data: on which data sets, each with its split ("" for the set's own).
        any_data: whether other data sets, one's own too, can be asked for.
        hours: that 5 seeds of 100 epochs with both protocols take, two runs at a time on 2 cores of an Intel
            Xeon with AMX: an estimate from epochs that were measured there.
    """

    asks: str
    printed: str
    networks: tuple[Variant, ...]
    data: tuple[tuple[str, Split | Literal[""]], ...]
    any_data: bool = False
    hours: float = field(kw_only=True)


_CNN, _CAPSNET, _CONV, _CAPS, _DA = (
    Variant(name) for name in ("cnn", "capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet")
)
_FOUR = (_CAPSNET, _CONV, _CAPS, _DA)
_EVERYWHERE: tuple[tuple[str, Split | Literal[""]], ...] = (
    *(("digits", ""), ("coil-20", ""), ("coil-20", "views"), ("mnist", ""), ("fashion-mnist", "")),
    *(("smallnorb", ""), ("svhn", ""), ("cifar-10", "")),
)
_CONTROLLED: tuple[tuple[str, Split | Literal[""]], ...] = (("digits", ""), ("coil-20", "views"), ("fashion-mnist", ""))


def _with(model: str, **switches: Any) -> Variant:
    return Variant(model, tuple(switches.items()))


_ADDITIVE = _with("da-capsnet", gate="additive")

EXPERIMENTS: Mapping[str, Experiment] = {
    "table-1": Experiment(
        "Does the squash constant 0.5 do better than 1.0?",
        "CIFAR-10 +0.50, Fashion-MNIST +1.59, SVHN +0.58 points",
        (_with("capsnet", squash_constant=1.0), _CAPSNET),
        (("cifar-10", ""), ("fashion-mnist", ""), ("svhn", "")),
        hours=55,
    ),
    "table-2": Experiment(
        "What does each attention module bring, alone and together? Figs. 11 to 13 draw the same runs.",
        "da-capsnet over capsnet: CIFAR-10 +2.52, SVHN +3.46, Fashion-MNIST +1.57 points",
        _FOUR,
        (("cifar-10", ""), ("svhn", ""), ("fashion-mnist", "")),
        hours=112,
    ),
    "table-4": Experiment(
        "How do the CNN, capsnet and da-capsnet compare on all six data sets?",
        "smallNORB 91.28, 96.93, 98.26 %; COIL-20 100, 98.38, 100 %; MNIST 100 % for all",
        (_CNN, _CAPSNET, _DA),
        (
            *(("mnist", ""), ("cifar-10", ""), ("svhn", "")),
            *(("fashion-mnist", ""), ("smallnorb", ""), ("coil-20", "")),
        ),
        hours=92,
    ),
    "figures-8-9": Experiment(
        "How do reconstructions of Fashion-MNIST look after each of the first 7 epochs?",
        "da-capsnet's have more classes, sharper features, less noise",
        (_CAPSNET, _DA),
        (("fashion-mnist", ""),),
        hours=13,
    ),
    "figure-10": Experiment(
        "After how many epochs does each network have all of MNIST's test images right?",
        "capsnet 25, +conv 16, +caps 13, da-capsnet 8 epochs",
        _FOUR,
        (("mnist", ""),),
        hours=28,
    ),
    "figure-14": Experiment(
        "How do reconstructions of COIL-20 look?",
        "da-capsnet's keep direction and texture better",
        (_CAPSNET, _DA),
        (("coil-20", ""),),
        hours=0.5,
    ),
    "attention": Experiment(
        "Does dual attention help, and which half of it? All five networks on every data set.",
        "da-capsnet ahead of capsnet on all six data sets, by 0.15 to 3.46 points",
        (_CNN, *_FOUR),
        _EVERYWHERE,
        any_data=True,
        hours=175,
    ),
    "control-parameters": Experiment(
        "Is it the attention, or the parameters? capsnet widened until it has as many as da-capsnet, and da-capsnet "
        "whose gates' layers are added instead of multiplied.",
        "not in the paper",
        (_CAPSNET, Variant("capsnet", as_large_as="da-capsnet"), _ADDITIVE, _DA),
        _CONTROLLED,
        any_data=True,
        hours=110,
    ),
    "control-gates": Experiment(
        "Is the tanh gate with a residual better than squeeze and excitation's sigmoid, or than its layers added?",
        'not in the paper, which says that tanh is used where "mostly softmax or sigmoid" is',
        (_DA, _with("da-capsnet", gate="sigmoid"), _ADDITIVE),
        _CONTROLLED,
        any_data=True,
        hours=23,
    ),
    "control-caps-attention": Experiment(
        "Which reading of Caps-Attention? A gate for each number, for each vote, or the same layers for all votes.",
        "not in the paper, which gives no widths",
        (_DA, _with("da-capsnet", caps_attention="capsule"), _with("da-capsnet", caps_attention="shared")),
        _CONTROLLED,
        any_data=True,
        hours=24,
    ),
    "control-routing": Experiment(
        "Does routing help? 1, 3 and 5 iterations; with 1 all couplings are equal.",
        "not in the paper",
        tuple(_with(name, iterations=count) for name in ("capsnet", "da-capsnet") for count in (1, 3, 5)),
        _CONTROLLED,
        any_data=True,
        hours=43,
    ),
    "control-update": Experiment(
        "Does it matter whether routing adds agreement to the logits (Eq. 7) or replaces them (the Keras example)?",
        "not in the paper",
        tuple(_with(name, update=how) for name in ("capsnet", "da-capsnet") for how in ("accumulate", "replace")),
        _CONTROLLED,
        any_data=True,
        hours=28,
    ),
}
"""The named experiments; they share the runs that they have in common."""


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        data: the data set's name, or the absolute path of own images.
        split: the data set's split, "" for its own; the run's seed is the split's too.
        network: what is trained.
        training: how, seed and protocol included.
        images: what tells own images from those that lay in their place before; "" for data sets.
        operations: what it costs, in multiplications and additions.
    """

    data: str
    split: Split | Literal[""]
    network: ModelConfig
    training: TrainConfig
    images: str
    operations: float = field(compare=False)

    @property
    def name(self) -> str:
        """What it is, in words."""
        how = self.training
        return run_name(describe(self.network), self.where, how.protocol, how.epochs, how.seed)

    @property
    def where(self) -> str:
        """The data set and its split."""
        return data_name(self.data, self.split)

    @property
    def folder(self) -> Path:
        """Where it is kept, below the folder of all runs; one for each combination of settings and images."""
        how = [self.training.protocol, f"{self.training.epochs}-epochs"]
        for setting in dataclasses.fields(TrainConfig):
            value = getattr(self.training, setting.name)
            if value != setting.default and setting.name not in ("protocol", "epochs", "seed", "device", "compile"):
                how += [setting.name, str(value)]
        place = self.where
        if self.data not in DATA_SETS:  # folders of one name in several places, or whose images changed
            place += " " + hashlib.sha256((self.data + self.images).encode()).hexdigest()[:8]
        parts = (place, describe(self.network), " ".join(how), f"seed {self.training.seed}")
        return Path(*(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts))


class Failure(NamedTuple):
    """A run that failed, and why."""

    run: str
    reason: str


def plan_runs(
    experiments: Sequence[str] = (),
    *,
    seeds: int = 5,
    data_sets: Sequence[str] = (),
    protocols: Sequence[Protocol] = ("clean", "paper"),
    training: TrainConfig | None = None,
    data_dir: str | Path | None = None,
    download: bool = True,
) -> tuple[list[PlannedRun], list[Failure]]:
    """The runs of some experiments, without repetition, in the order of what they tell.

    All networks come with one seed before any comes with the next, the paper's own questions before
    the controls, and quick data sets before slow ones.

    Args:
        experiments: names of `EXPERIMENTS`; all of them without.
        seeds: how many, from 0.
        data_sets: names or paths; without, those of each experiment.
        protocols: see `TrainConfig.protocol`.
        training: everything else about the training; seed and protocol in it do not count.
        data_dir: where the data sets are looked for first.
        download: fetch those that are nowhere.

    Returns:
        The runs, and what had to be left out: data sets that could not be loaded, networks that cannot
        be built for their images.

    Raises:
        ConfigError: an unknown experiment, a data set that no chosen experiment is about, no protocol,
            or a number outside its range.
    """
    for name in experiments:
        if name not in EXPERIMENTS:
            near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
            meant = f"did you mean {near[0]}? The others are" if near else "choose from"
            others = ", ".join(other for other in EXPERIMENTS if other not in near)
            raise ConfigError(f"unknown experiment {name!r}: {meant} {others}")
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    if not protocols:
        raise ConfigError("protocols: choose clean, paper or both")
    data_sets = [name if name in DATA_SETS else _own(name) for name in data_sets]
    wanted: dict[tuple[str, Split | Literal[""]], dict[Variant, int]] = {}
    for name in sorted(experiments or EXPERIMENTS, key=lambda name: name.startswith("control-")):
        experiment = EXPERIMENTS[name]
        for place in _places(experiment, data_sets):
            for variant in experiment.networks:
                wanted.setdefault(place, {}).setdefault(variant, int(name.startswith("control-")))
    for name in data_sets:
        if name not in [source for source, _ in wanted]:
            others = ", ".join(other for other, card in EXPERIMENTS.items() if _places(card, [name]))
            raise ConfigError(f"nothing to run: no chosen experiment is about {name}: choose from {others}")
    training = training or TrainConfig()
    planned: dict[PlannedRun, tuple[Any, ...]] = {}
    missing = []
    for (source, split), variants in wanted.items():
        try:
            data = load_data(source, data_dir=data_dir, split=split or None, download=download)
        except DataError as error:
            missing.append(Failure(data_name(source, split), str(error)))
            continue
        fingerprint = "" if source in DATA_SETS else data.provenance["sha256"]
        images = len(data.train) + len(data.validation) + (len(data.validation) + len(data.test)) / 3
        for number, (variant, tier) in enumerate(variants.items()):
            try:
                network = variant.configure(data.image_shape, len(data.classes))
            except ModelError as error:
                missing.append(Failure(f"{variant} on {data_name(source, split)}", str(error)))
                continue
            operations = training.epochs * images * count_operations(network)
            for seed in range(seeds):
                for protocol in protocols:
                    how = dataclasses.replace(training, seed=seed, protocol=protocol)
                    run = PlannedRun(source, split, network, how, fingerprint, operations)
                    # Two variants may be one network: three iterations are the default.
                    place = (seed, tier, images, source, split, protocols.index(protocol), number)
                    planned[run] = min(place, planned.get(run, place))
    return sorted(planned, key=planned.__getitem__), missing


def _places(experiment: Experiment, data_sets: Sequence[str]) -> Iterable[tuple[str, Split | Literal[""]]]:
    """Where an experiment is to be run: its own data sets as far as they are asked for, then others."""
    own = [place for place in experiment.data if not data_sets or place[0] in data_sets]
    others = [name for name in data_sets if name not in [place[0] for place in experiment.data]]
    return [*own, *((name, "") for name in others if experiment.any_data)]


def _own(source: str) -> str:
    """The absolute path of own images."""
    if not Path(source).exists():
        raise unknown_source(source)
    return str(Path(source).resolve())


def perform(
    run: PlannedRun,
    out: Path,
    *,
    data_dir: str | Path | None = None,
    say: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train one run to its end, or go on with it, and draw its reconstructions.

    Args:
        run: what to train.
        out: the folder of all runs.
        data_dir: where the data set is looked for first.
        say: told each epoch's line of metrics.

    Raises:
        DualcapsError: as `load_data`, `create_model` and `fit`, or what was finished before is damaged.
        OSError: as `fit`.
    """
    folder = out / run.folder
    data = load_data(run.data, data_dir=data_dir, split=run.split or None, split_seed=run.training.seed)
    torch.manual_seed(run.training.seed)
    model = build_model(run.network)

    def each_epoch(line: dict[str, Any]) -> None:
        if line["epoch"] <= _STRIP_EPOCHS:
            _draw(folder, model, data, f"epoch-{line['epoch']}")
        if say:
            say(line)

    fit(model, data, run.training, out=folder, resume=True, quiet=True, each_epoch=each_epoch)
    _draw(folder, model, data, "selected")
    read_run(folder)  # as the report will


def _draw(folder: Path, model: Network, data: ImageData, name: str) -> None:
    """Write a strip of reconstructions, and once the images that they are of."""
    if model.decoder is None:
        return
    (folder / runs.STRIPS).mkdir(exist_ok=True)
    for file, content in zip(("input", name), reconstruction_strips(model, data.test), strict=True):
        runs.write_bytes(folder / runs.STRIPS / f"{file}.png", content)


class Progress(NamedTuple):
    """How far a grid of runs is.

    run: the run that something is told of.
    seconds_left: an estimate for all that is left of all runs.
    line: the metrics of the run's last epoch; None when it starts, ends or fails.
    ended: whether it ended just now.
    failed: why, if it failed.
    """

    run: PlannedRun
    seconds_left: float
    line: dict[str, Any] | None = None
    ended: bool = False
    failed: str | None = None


def _epochs_done(run: PlannedRun, out: Path) -> int:
    """How many epochs of a run are kept."""
    try:
        return len(runs.read_metrics(out / run.folder))
    except RunError:
        return 0


def is_done(run: PlannedRun, out: Path) -> bool:
    """Whether a run is finished and can be read, its pictures too."""
    folder = out / run.folder
    try:
        read_run(folder)
    except RunError:
        return False
    return not run.network.decoder or (folder / runs.STRIPS / "selected.png").is_file()


class Clock:
    """Estimates what runs take, from what others took on this machine.

    Args:
        planned: the runs.
        out: the folder of all runs, where some may be finished.
        jobs: how many are trained at once.
    """

    def __init__(self, planned: Sequence[PlannedRun], out: Path, jobs: int = 1) -> None:
        self._jobs = jobs
        self._like: dict[tuple[str, ModelConfig], float] = {}
        for run in planned:
            if is_done(run, out):
                self.learn(run, read_run(out / run.folder).training_seconds / run.training.epochs)
        if planned and not self._like:
            # A first guess: small layers reach a fifth of what a large product does.
            place = choose_device(planned[0].training.device)
            number_type = getattr(torch, choose_precision(planned[0].training.precision, place))
            self._guess = 1 / (0.2 * matrix_rate(place, number_type, 1024))

    def learn(self, run: PlannedRun, epoch_seconds: float) -> None:
        """Take in what an epoch of a run took."""
        self._like[run.data, run.network] = epoch_seconds * run.training.epochs / run.operations

    def seconds(self, run: PlannedRun, epochs_done: int = 0) -> float:
        """What is left of a run, alone."""
        usual = statistics.median(self._like.values()) if self._like else self._guess
        rate = self._like.get((run.data, run.network), usual)
        return _START_SECONDS + run.operations * rate * (1 - epochs_done / run.training.epochs)

    def left(self, epochs_done: Mapping[PlannedRun, int]) -> float:
        """What is left of runs of which some epochs are done, as many at once as there are jobs."""
        seconds = [self.seconds(run, done) for run, done in epochs_done.items()]
        return max(sum(seconds) / self._jobs, max(seconds, default=0.0))


_START_SECONDS = 3.0
_LONGEST_WAIT = 3600.0  # seconds


def reproduce(
    planned: Sequence[PlannedRun],
    out: Path,
    *,
    jobs: int = 1,
    budget: float | None = None,
    data_dir: str | Path | None = None,
    tell: Callable[[Progress], None],
) -> list[Failure]:
    """Train all runs that are not finished yet, and go on with those that were stopped.

    Each run has a process of its own and a folder of its own below `out`. Whenever this is killed,
    the next call goes on after the last epoch of each run.

    Args:
        planned: the runs, in the order to take them.
        out: the folder of all runs; only one process at a time may work in it.
        jobs: how many runs at once; on the CPU they share the cores.
        budget: minutes after which to stop. A run that is unlikely to end by then gives way to a shorter
            one; what is under way is stopped, to be gone on with first the next time.
        data_dir: where data sets are looked for first.
        tell: told whenever something happens.

    Returns:
        The runs that failed, which `out/failures.jsonl` keeps too.

    Raises:
        ConfigError: as `check_limits`.
        RunError: another process works in `out`.
    """
    check_limits(out, jobs, budget)
    out.mkdir(parents=True, exist_ok=True)
    end = math.inf if budget is None else time.monotonic() + 60 * budget
    failures: list[Failure] = []
    with runs.locked(out):
        waiting = {run: _epochs_done(run, out) for run in planned if not is_done(run, out)}
        clock = Clock(planned, out, jobs)
        busy: dict[Connection, _Job] = {}

        def tell_of(run: PlannedRun, **what: Any) -> None:
            left = clock.left(waiting | {job.run: job.epochs for job in busy.values()})
            tell(Progress(run, seconds_left=left, **what))

        try:
            while True:
                while len(busy) < jobs and (run := _next(waiting, clock, end - time.monotonic(), not busy)):
                    connection, job = _start(run, waiting.pop(run), out, data_dir, jobs)
                    busy[connection] = job
                    tell_of(run)
                if not busy or time.monotonic() >= end:
                    return failures
                for connection in wait(list(busy), timeout=min(max(end - time.monotonic(), 0), _LONGEST_WAIT)):
                    assert isinstance(connection, Connection)
                    job = busy[connection]
                    try:
                        said = connection.recv()
                    except EOFError:
                        job.process.join()
                        said = f"its process ended with code {job.process.exitcode}"
                    if isinstance(said, dict):
                        if (seconds := job.epoch_ended(said["epoch"])) is not None:
                            clock.learn(job.run, seconds)
                        tell_of(job.run, line=said)
                        continue
                    del busy[connection]
                    connection.close()
                    job.process.join()
                    if said is not None:
                        failures.append(Failure(job.run.name, said))
                        note_failures(out, failures[-1:])
                    tell_of(job.run, ended=True, failed=said)
        finally:
            for job in busy.values():
                job.process.kill()  # its last epoch is kept
            for job in busy.values():
                job.process.join()


def check_limits(out: Path, jobs: int, budget: float | None) -> None:
    """Raise ConfigError for what `reproduce` cannot work with."""
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError(f"budget must be a number of minutes above 0, got {budget}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file: choose a folder")


@dataclass
class _Job:
    """A run under way: its process, the epochs that are done, and when the last one was."""

    run: PlannedRun
    process: BaseProcess
    epochs: int
    last: float | None = None

    def epoch_ended(self, epochs: int) -> float | None:
        """The seconds since the epoch before, None for the process's first, which has its start in it."""
        before, self.last = self.last, time.monotonic()
        self.epochs = epochs
        return None if before is None else self.last - before


def _next(waiting: Mapping[PlannedRun, int], clock: Clock, seconds: float, idle: bool) -> PlannedRun | None:
    """The run to start: one that was stopped before any other, and the first that can end in time.

    If none can, and nothing else is under way, the first of all: what it comes to is kept.
    """
    in_order = sorted(waiting, key=lambda run: waiting[run] == 0)
    fitting = (run for run in in_order if clock.seconds(run, waiting[run]) <= seconds)
    return next(fitting, in_order[0] if in_order and idle and seconds > 0 else None)


def _start(run: PlannedRun, epochs: int, out: Path, data_dir: str | Path | None, jobs: int) -> tuple[Connection, _Job]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    process = context.Process(target=_work, args=(theirs, run, out, data_dir, threads))
    process.start()
    theirs.close()
    return ours, _Job(run, process, epochs)


def _work(connection: Connection, run: PlannedRun, out: Path, data_dir: str | Path | None, threads: int) -> None:
    """In a process of its own: train one run, send each epoch's metrics, then None or why it failed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        perform(run, out, data_dir=data_dir, say=connection.send)
    except KeyboardInterrupt:
        sys.exit(130)
    except DualcapsError as error:
        connection.send(str(error))
    except OSError as error:
        connection.send(in_one_line(error))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
    else:
        connection.send(None)


def note_failures(out: Path, failures: Iterable[Failure]) -> None:
    """Keep failures in `out/failures.jsonl`."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    out.mkdir(parents=True, exist_ok=True)
    with (out / runs.FAILURES).open("a") as file:
        file.writelines(json.dumps({"when": when, **failure._asdict()}) + "\n" for failure in failures)
        file.flush()
        os.fsync(file.fileno())
