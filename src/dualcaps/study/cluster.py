"""A grid on several computers: each run is a task of Ray or a job of Slurm.

Run folders are in a folder that all computers see, or each task works in a folder of its own that is kept in a store. A
task whose computer dies is started again elsewhere and goes on from the last checkpoint.
"""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from dualcaps.errors import ConfigError, FolderInUseError, one_line
from dualcaps.registry import loaded_plugins
from dualcaps.runs import run as runs
from dualcaps.study.plan import Failure, PlannedRun
from dualcaps.study.records import Record
from dualcaps.study.scheduler import (
    Clock,
    OnProgress,
    Progress,
    check_limits,
    epochs_done_of,
    finished_record,
    note_failures,
    open_run,
    outcome,
    perform,
)
from dualcaps.study.store import KeepInStore, Store

_WAIT_FOR_FOLDER = 120.0  # seconds, which a process of a dying computer may still hold a run folder
_RETRIES = 10


class Task(NamedTuple):
    """What a computer of the cluster is to do.

    run: what to train.
    out: the folder of all runs, as that computer sees it.
    data_dir: folder to search first for the data set.
    plugins: plug-in files to import before.
    threads: on the CPU.
    store: URL of the store, if the computers share no folder.
    """

    run: PlannedRun
    out: Path
    data_dir: str | None
    plugins: tuple[str, ...]
    threads: int
    store: str | None

    def __call__(self) -> str | None:
        """Train; the reason of a failure, or None."""
        torch.set_num_threads(self.threads)
        return outcome(self.plugins, self._train)

    def checkpoint(self) -> Any:
        """What submitit queues again when Slurm preempts the job or its time is over."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(self)

    def _train(self) -> None:
        if self.store is None:
            self._train_in(self.out, ())
            return
        store = Store(self.store)
        with tempfile.TemporaryDirectory(prefix="dualcaps-") as folder:
            out = Path(folder)
            store.fetch(self.run.folder, out)
            self._train_in(out, [KeepInStore(store, self.run.folder, out)])
            store.keep(self.run.folder, out)

    def _train_in(self, out: Path, callbacks: Sequence[KeepInStore]) -> None:
        until = time.monotonic() + _WAIT_FOR_FOLDER
        while True:
            try:
                perform(self.run, out, data_dir=self.data_dir, callbacks=callbacks)
            except FolderInUseError:
                if time.monotonic() > until:
                    raise
                time.sleep(1)
            else:
                return


class Cluster(Protocol):
    """Where tasks are run.

    Attributes:
        slots: how many at a time, as far as that is known.
        threads: of each on the CPU.
    """

    slots: int
    threads: int

    def submit(self, task: Task) -> None:
        """Queue a task."""
        ...

    def ended(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        """Wait at most so many seconds; tasks that have ended since, each with the reason of a failure or None."""
        ...

    def close(self) -> None:
        """Cancel what has not ended."""
        ...


class RayCluster:
    """Tasks of Ray.

    Args:
        address: of the cluster: "auto", HOST:PORT or ray://HOST:PORT; "local" starts one on this computer.
        cpus: CPUs of a task, and its threads.
        gpus: GPUs of a task; below 1 several tasks share one.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str, *, cpus: int = 1, gpus: float = 0.0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--ray needs Ray: pip install 'dualcaps[cluster]'") from error
        self._ray, self.threads = ray, cpus
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address, log_to_driver=False, include_dashboard=False if address == "local" else None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"--ray {address}: no cluster can be reached there ({one_line(error)})") from error
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(_run)
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1) // cpus))
        self._tasks: dict[Any, PlannedRun] = {}

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._tasks[self._remote.remote(task)] = task.run

    def ended(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        """See `Cluster.ended`."""
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        found = []
        for reference in ready:
            try:
                reason = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                reason = one_line(error, 300)
            found.append((self._tasks.pop(reference), reason))
        return found

    def close(self) -> None:
        """Cancel what has not ended and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        if self._own:
            self._ray.shutdown()


def _run(task: Task) -> str | None:
    return task()


class SlurmCluster:
    """Jobs of Slurm, submitted by submitit.

    Args:
        folder: for the jobs' scripts and logs, which all computers see.
        cpus: CPUs of a job, and its threads.
        gpus: GPUs of a job.
        options: of submitit, such as `slurm_partition` and `timeout_min`.
        executor: "slurm"; "local" runs the jobs as processes on this computer.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm here, or an unknown option.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 1,
        gpus: float = 0.0,
        options: dict[str, Any] | None = None,
        executor: str = "slurm",
    ) -> None:
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("--slurm needs submitit: pip install 'dualcaps[cluster]'") from error
        if gpus != int(gpus):
            raise ConfigError(f"--gpus {gpus:g}: Slurm gives whole GPUs to a job")
        self.slots, self.threads = 1, cpus
        wanted = {"name": "dualcaps", "timeout_min": 24 * 60, "cpus_per_task": cpus, "gpus_per_node": int(gpus)}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=executor)
            self._executor.update_parameters(**{**wanted, **(options or {})})
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise ConfigError(f"--slurm: {one_line(error, 300)}") from error
        self._jobs: list[tuple[Any, PlannedRun]] = []

    def submit(self, task: Task) -> None:
        """Queue a job."""
        self._jobs.append((self._executor.submit(task), task.run))

    def ended(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        """See `Cluster.ended`."""
        end = time.monotonic() + seconds
        while True:
            found = [(job, run) for job, run in self._jobs if job.done()]
            if found or time.monotonic() >= end:
                break
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        self._jobs = [pair for pair in self._jobs if pair not in found]
        return [(run, _reason(job)) for job, run in found]

    def close(self) -> None:
        """Cancel what has not ended."""
        for job, _ in self._jobs:
            job.cancel()


def _reason(job: Any) -> str | None:
    """The reason why a job has failed, or None."""
    try:
        return job.result()
    except Exception as error:  # submitit's errors, and what a job that was killed leaves
        return f"job {job.job_id}: {one_line(error, 300)}"


def reproduce_on(
    cluster: Cluster,
    planned: Sequence[PlannedRun],
    out: Path,
    *,
    budget: float | None = None,
    data_dir: str | Path | None = None,
    store: str | None = None,
    poll: float = 2.0,
    on_progress: OnProgress,
) -> list[Failure]:
    """Train all unfinished runs on a cluster; stopped runs are resumed.

    Args:
        cluster: where.
        planned: the runs, in order.
        out: the folder of all runs: one that all computers see, or with `store` a folder of this one, where finished
            runs are copied to.
        budget: minutes after which to stop; runs in progress keep their last checkpoint.
        data_dir: folder to search first for data sets, on all computers.
        store: URL that run folders are kept at, see `Store`.
        poll: seconds between looks for finished epochs.
        on_progress: called whenever a run starts, ends an epoch or ends.

    Returns:
        The failed runs, which are also appended to `out/failures.jsonl`.

    Raises:
        ConfigError: as `check_limits` and `Store`.
        RunError: another process works in `out`, or the store cannot be read.
    """
    check_limits(out, 1, budget)
    out.mkdir(parents=True, exist_ok=True)
    kept = None if store is None else Store(store)
    end = math.inf if budget is None else time.monotonic() + 60 * budget
    failures: list[Failure] = []
    with runs.locked(out):
        done: dict[PlannedRun, Record] = {}
        for run in planned:
            record = finished_record(run, out)
            if record is None and kept is not None and kept.fetch(run.folder, out):
                record = finished_record(run, out)
            if record is not None:
                done[run] = record
        clock = Clock(planned, done, cluster.slots)
        epochs = {run: epochs_done_of(run, out) for run in planned if run not in done}
        started: set[PlannedRun] = set()

        def report(run: PlannedRun, **what: Any) -> None:
            if run not in started:
                started.add(run)
                on_progress(Progress(run, clock.left(epochs)))
            if what:
                on_progress(Progress(run, clock.left(epochs), **what))

        try:
            for run in epochs:
                directory = None if data_dir is None else os.fspath(Path(data_dir).absolute())
                cluster.submit(Task(run, out.absolute(), directory, loaded_plugins(), cluster.threads, store))
            while epochs and time.monotonic() < end:
                for run, reason in cluster.ended(min(poll, max(0.0, end - time.monotonic()))):
                    if reason is None and kept is not None:
                        kept.fetch(run.folder, out)
                    if reason is None and finished_record(run, out) is None:
                        reason = f"no finished run in {out / run.folder}: is this folder the same on all computers?"
                    if reason is not None:
                        failures.append(Failure(run.name, reason))
                        note_failures(out, failures[-1:])
                    del epochs[run]
                    report(run, ended=True, failed=reason)
                for run, before in list(epochs.items()):
                    opened = open_run(run, out)
                    for line in opened.history[before:] if opened else []:
                        epochs[run] = line["epoch"]
                        clock.learn(run, line["seconds"])
                        report(run, line=line)
        finally:
            cluster.close()
    return failures
