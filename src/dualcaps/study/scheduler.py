"""The scheduler of a grid: each run in its own process, resumed where it stopped, several at a time."""

import datetime
import json
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dualcaps.bench import matrix_product
from dualcaps.config import ModelConfig
from dualcaps.data.dataset import ImageDataset
from dualcaps.data.load import load_data
from dualcaps.errors import ConfigError, DualcapsError, RunError, describe_os_error
from dualcaps.explain.reconstructions import reconstruction_strips
from dualcaps.inference import choose_device, choose_precision
from dualcaps.models import Network, build_model
from dualcaps.registry import DATASETS, load_plugin, loaded_plugins
from dualcaps.runs import run as runs
from dualcaps.runs.files import write_bytes
from dualcaps.runs.run import Run
from dualcaps.study.plan import Failure, PlannedRun
from dualcaps.study.records import Record, record_of
from dualcaps.training.callbacks import Callback
from dualcaps.training.fit import fit

if TYPE_CHECKING:  # the first does not exist on Windows
    from multiprocessing.context import ForkServerContext, SpawnContext

_STRIP_EPOCHS = 7  # as many as Figs. 8 and 9 show


def perform(
    run: PlannedRun,
    out: Path,
    *,
    data_dir: str | Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train one run to its end, or resume it, and draw its reconstructions.

    Args:
        run: what to train.
        out: the folder of all runs.
        data_dir: folder to search first for the data set.
        on_epoch: called with each epoch's metrics.
        callbacks: see `fit`.

    Raises:
        DualcapsError: as `load_data`, `create_model` and `fit`, or a finished run is damaged.
        OSError: as `fit`.
    """
    folder = out / run.folder
    source: str | Path = run.data if run.data in DATASETS else Path(run.data)
    data = load_data(source, data_dir=data_dir, split=run.split or None, split_seed=run.training.seed)
    torch.manual_seed(run.training.seed)
    model = build_model(run.network)

    def each_epoch(line: dict[str, Any]) -> None:
        if line["epoch"] <= _STRIP_EPOCHS:
            _draw(folder, model, data, f"epoch-{line['epoch']}")
        if on_epoch:
            on_epoch(line)

    fit(
        model,
        data,
        run.training,
        out=folder,
        resume=True,
        quiet=True,
        each_epoch=each_epoch,
        callbacks=callbacks,
        keep_checkpoint=False,
    )
    _draw(folder, model, data, "selected")
    record_of(Run.open(folder))  # as the report will read it


def outcome(plugins: Sequence[str], work: Callable[[], None]) -> str | None:
    """Import plug-ins and work, in a process of its own; the reason of a failure, or None."""
    try:
        for plugin in plugins:
            load_plugin(plugin)
        work()
    except DualcapsError as error:
        return str(error)
    except OSError as error:
        return describe_os_error(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def _draw(folder: Path, model: Network, data: ImageDataset, name: str) -> None:
    """Write a strip of reconstructions, and the strip of their input images."""
    if model.decoder is None:
        return
    (folder / runs.STRIPS).mkdir(exist_ok=True)
    for file, content in zip(("input", name), reconstruction_strips(model, data.test), strict=True):
        write_bytes(folder / runs.STRIPS / f"{file}.png", content)


class Progress(NamedTuple):
    """Progress of a grid of runs.

    run: the run concerned.
    seconds_left: estimated time for all remaining work.
    line: the metrics of the run's last epoch; None when it starts, ends or fails.
    ended: whether the run has just ended.
    failed: the reason, if it failed.
    """

    run: PlannedRun
    seconds_left: float
    line: dict[str, Any] | None = None
    ended: bool = False
    failed: str | None = None


OnProgress = Callable[[Progress], None]


def open_run(run: PlannedRun, out: Path) -> Run | None:
    """A planned run's folder, if it exists and can be read."""
    try:
        return Run.open(out / run.folder)
    except RunError:
        return None


def finished_record(run: PlannedRun, out: Path) -> Record | None:
    """The record of a planned run that is finished, readable and has its pictures; otherwise None."""
    opened = open_run(run, out)
    if opened is None or not opened.finished:
        return None
    try:
        record = record_of(opened)
    except RunError:
        return None
    drawn = not run.network.decoder or (opened.path / runs.STRIPS / "selected.png").is_file()
    return record if drawn else None


def finished_records(planned: Sequence[PlannedRun], out: Path) -> dict[PlannedRun, Record]:
    """The records of those planned runs that are finished, each folder read once."""
    found = ((run, finished_record(run, out)) for run in planned)
    return {run: record for run, record in found if record is not None}


class Clock:
    """Estimates the duration of runs from that of others on this machine.

    Of runs that are finished the fastest epoch counts, so that a time when the machine was loaded is not remembered.

    Args:
        planned: the runs.
        done: the records of those that are finished.
        jobs: number of runs trained at a time.
    """

    def __init__(self, planned: Sequence[PlannedRun], done: Mapping[PlannedRun, Record], jobs: int = 1) -> None:
        self._jobs = jobs
        self._like: dict[tuple[str, ModelConfig], float] = {}
        fastest: dict[tuple[str, ModelConfig], float] = {}
        for run, record in done.items():
            key, seconds = (run.data, run.network), min(epoch.seconds for epoch in record.history)
            if seconds < fastest.get(key, math.inf):
                fastest[key] = seconds
                self.learn(run, seconds)
        if planned and not self._like:
            # Initial estimate: the layers reach this share of the rate of a large matrix product.
            place = choose_device(planned[0].training.device)
            number_type = getattr(torch, choose_precision(planned[0].training.precision, place))
            with_amx = number_type == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
            share = _USUAL_SHARE_WITH_AMX if with_amx else _USUAL_SHARE[number_type]
            self._guess = 1 / (share * matrix_product(place, number_type, 1024).fastest)

    def learn(self, run: PlannedRun, epoch_seconds: float) -> None:
        """Update the estimate with the duration of an epoch of a run."""
        self._like[run.data, run.network] = epoch_seconds * run.training.epochs / run.operations

    def seconds(self, run: PlannedRun, epochs_done: int = 0) -> float:
        """Remaining seconds of a run."""
        usual = statistics.median(self._like.values()) if self._like else self._guess
        rate = self._like.get((run.data, run.network), usual)
        return _START_SECONDS + run.operations * rate * (1 - epochs_done / run.training.epochs)

    def left(self, epochs_done: Mapping[PlannedRun, int]) -> float:
        """Remaining seconds of several runs, given the epochs done, with `jobs` of them at a time."""
        seconds = [self.seconds(run, done) for run, done in epochs_done.items()]
        return max(sum(seconds) / self._jobs, max(seconds, default=0.0))


_START_SECONDS = 3.0
_USUAL_SHARE = {torch.float32: 0.7, torch.bfloat16: 0.5}  # measured on CPUs with AVX2 and with AVX-512
_USUAL_SHARE_WITH_AMX = 0.2
_LONGEST_WAIT = 3600.0  # seconds


def reproduce(
    planned: Sequence[PlannedRun],
    out: Path,
    *,
    jobs: int = 1,
    budget: float | None = None,
    data_dir: str | Path | None = None,
    on_progress: OnProgress,
) -> list[Failure]:
    """Train all unfinished runs; stopped runs are resumed.

    Each run has its own process and its own folder below `out`. After a kill, the next call resumes each run
    after its last epoch.

    Args:
        planned: the runs, in order.
        out: the folder of all runs; only one process at a time may work in it.
        jobs: number of runs at a time; on the CPU they share the cores.
        budget: minutes after which to stop. Runs that are unlikely to end in time are postponed in favour of
            shorter ones; runs in progress are stopped and resumed first by the next call.
        data_dir: folder to search first for data sets.
        on_progress: called whenever a run starts, ends an epoch or ends.

    Returns:
        The failed runs, which are also appended to `out/failures.jsonl`.

    Raises:
        ConfigError: as `check_limits`.
        RunError: another process works in `out`.
    """
    check_limits(out, jobs, budget)
    out.mkdir(parents=True, exist_ok=True)
    end = math.inf if budget is None else time.monotonic() + 60 * budget
    failures: list[Failure] = []
    with runs.locked(out):
        done = finished_records(planned, out)
        waiting = {run: epochs_done_of(run, out) for run in planned if run not in done}
        clock = Clock(planned, done, jobs)
        busy: dict[Connection, _Job] = {}

        def report(run: PlannedRun, **what: Any) -> None:
            left = clock.left(waiting | {job.run: job.epochs for job in busy.values()})
            on_progress(Progress(run, seconds_left=left, **what))

        try:
            while True:
                while len(busy) < jobs and (run := _next(waiting, clock, end - time.monotonic(), not busy)):
                    connection, job = _start(run, waiting.pop(run), out, data_dir, jobs)
                    busy[connection] = job
                    report(run)
                if not busy or time.monotonic() >= end:
                    return failures
                for connection in wait(list(busy), timeout=min(max(end - time.monotonic(), 0), _LONGEST_WAIT)):
                    assert isinstance(connection, Connection)
                    job = busy[connection]
                    try:
                        message = connection.recv()
                    except EOFError:
                        job.process.join()
                        message = f"its process ended with code {job.process.exitcode}"
                    if isinstance(message, dict):
                        if (seconds := job.epoch_ended(message["epoch"])) is not None:
                            clock.learn(job.run, seconds)
                        report(job.run, line=message)
                        continue
                    del busy[connection]
                    connection.close()
                    job.process.join()
                    if message is not None:
                        failures.append(Failure(job.run.name, message))
                        note_failures(out, failures[-1:])
                    report(job.run, ended=True, failed=message)
        finally:
            for job in busy.values():
                job.process.kill()  # its last epoch is kept
            for job in busy.values():
                job.process.join()


def check_limits(out: Path, jobs: int, budget: float | None) -> None:
    """Raise ConfigError for arguments that `reproduce` cannot use."""
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError(f"budget must be a number of minutes above 0, got {budget}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file: choose a folder")


@dataclass
class _Job:
    """A run in progress: its process, number of epochs done, and time of the last one."""

    run: PlannedRun
    process: BaseProcess
    epochs: int
    last: float | None = None

    def epoch_ended(self, epochs: int) -> float | None:
        """Seconds since the previous epoch; None for the process's first, which includes its start."""
        before, self.last = self.last, time.monotonic()
        self.epochs = epochs
        return None if before is None else self.last - before


def epochs_done_of(run: PlannedRun, out: Path) -> int:
    """Number of epochs of a run on disk."""
    opened = open_run(run, out)
    return len(opened.history) if opened else 0


def _next(waiting: Mapping[PlannedRun, int], clock: Clock, seconds: float, idle: bool) -> PlannedRun | None:
    """The next run to start: stopped runs first, then the first that can end in time.

    If none can and no other run is in progress, the first of all, whose epochs are kept.
    """
    in_order = sorted(waiting, key=lambda run: waiting[run] == 0)
    fitting = (run for run in in_order if clock.seconds(run, waiting[run]) <= seconds)
    return next(fitting, in_order[0] if in_order and idle and seconds > 0 else None)


def process_context() -> "ForkServerContext | SpawnContext":
    """How processes that train are started.

    On Linux they are forked from a process that has imported what trainings need, which saves some seconds each. They
    have its environment variables, which are those of the time when the first one was started.
    """
    if sys.platform != "linux":  # the system libraries of macOS are not safe to fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "dualcaps.plots", "torch._dynamo"])  # the last is used by all optimizers
    return context


def _start(run: PlannedRun, epochs: int, out: Path, data_dir: str | Path | None, jobs: int) -> tuple[Connection, _Job]:
    context = process_context()
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    arguments = (theirs, run, out, data_dir, threads, dict(os.environ), loaded_plugins())
    process = context.Process(target=_work, args=arguments)
    process.start()
    theirs.close()
    return ours, _Job(run, process, epochs)


def _work(
    connection: Connection,
    run: PlannedRun,
    out: Path,
    data_dir: str | Path | None,
    threads: int,
    environment: Mapping[str, str],
    plugins: Sequence[str],
) -> None:
    """Worker process: train one run, send each epoch's metrics, then None or the reason of a failure."""
    os.environ.clear()
    os.environ.update(environment)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        connection.send(outcome(plugins, lambda: perform(run, out, data_dir=data_dir, on_epoch=connection.send)))
    except KeyboardInterrupt:
        sys.exit(130)


def note_failures(out: Path, failures: Iterable[Failure]) -> None:
    """Append failures to `out/failures.jsonl`."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    out.mkdir(parents=True, exist_ok=True)
    with (out / runs.FAILURES).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"when": when, **failure._asdict()}) + "\n" for failure in failures)
        file.flush()
        os.fsync(file.fileno())
