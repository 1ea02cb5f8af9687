"""Grids on several computers: the same records as here, each run once, also when a computer dies."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dualcaps import TrainConfig
from dualcaps.errors import ConfigError
from dualcaps.runs.run import locked
from dualcaps.study.cluster import RayCluster, SlurmCluster, Task, reproduce_on
from dualcaps.study.plan import PlannedRun, plan_runs
from dualcaps.study.scheduler import finished_record, perform
from dualcaps.study.store import Store

SETTINGS = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu")


def plan(shapes: Path, seeds: int = 1, epochs: int = 3) -> list[PlannedRun]:
    import dataclasses

    training = dataclasses.replace(SETTINGS, epochs=epochs)
    planned, missing = plan_runs(
        ["attention"], seeds=seeds, data_sets=[str(shapes)], protocols=("clean",), training=training
    )
    assert not missing
    return planned


def assert_equal_records(run: PlannedRun, one: Path, other: Path) -> None:
    """The same run in two folders: metrics and weights to the bit."""

    def metrics(out: Path) -> list[dict]:
        lines = [json.loads(line) for line in (out / run.folder / "metrics.jsonl").read_text().splitlines()]
        return [{**line, "seconds": 0, "images_per_second": 0} for line in lines]

    assert finished_record(run, one) is not None
    assert metrics(one) == metrics(other)
    weights = [safetensors.torch.load_file(out / run.folder / "model.safetensors") for out in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_grid_on_ray_survives_the_death_of_a_computer(shapes: Path, tmp_path: Path, one_thread: None, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default 15: they would wait for the other tests
    ray_cluster = pytest.importorskip("ray.cluster_utils")
    import ray

    planned, out = plan(shapes, epochs=10)[:2], tmp_path / "runs"
    nodes = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        doomed = nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, include_dashboard=False)
        said, killed = [], []

        def on_progress(progress) -> None:
            said.append(progress)
            lines = sum(progress.line is not None for progress in said)
            if lines >= 4 and not killed:
                killed.append(time.monotonic())
                nodes.remove_node(doomed, allow_graceful=False)
                nodes.add_node(num_cpus=1)

        failures = reproduce_on(RayCluster("auto"), planned, out, poll=0.1, on_progress=on_progress)
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert failures == []
    assert killed
    ended = [progress.run for progress in said if progress.ended]
    assert sorted(run.name for run in ended) == sorted(run.name for run in planned)
    for run in planned:
        perform(run, tmp_path / "here")
        assert_equal_records(run, out, tmp_path / "here")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_grid_of_slurm_jobs_has_the_records_of_this_computer(
    shapes: Path, tmp_path: Path, one_thread: None, monkeypatch
):
    pytest.importorskip("submitit")
    planned, out, store = plan(shapes)[:1], tmp_path / "runs", (tmp_path / "store").as_uri()
    said = []
    cluster = SlurmCluster(tmp_path / "jobs", executor="local", options={"timeout_min": 5})
    failures = reproduce_on(cluster, planned, out, store=store, poll=0.2, on_progress=said.append)
    assert failures == []
    for run in planned:
        perform(run, tmp_path / "here")
        assert_equal_records(run, out, tmp_path / "here")
        assert not (tmp_path / "store" / run.folder / "checkpoint.safetensors").exists()
    assert [progress.ended for progress in said] == [False, True]
    elsewhere = tmp_path / "elsewhere"  # another computer takes the finished runs from the store
    assert reproduce_on(cluster, planned, elsewhere, store=store, on_progress=said.append) == []
    assert len(said) == 2
    assert_equal_records(planned[0], elsewhere, out)


class Here:
    """A cluster of this process."""

    slots = threads = 1

    def __init__(self, work: Callable[[Task], str | None] = Task.__call__) -> None:
        self.tasks, self.work, self.closed = [], work, False

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def ended(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        return [(task.run, self.work(task)) for task in [self.tasks.pop(0)]]

    def close(self) -> None:
        self.closed = True


def test_a_run_goes_on_from_what_is_in_the_store(shapes: Path, tmp_path: Path, one_thread: None):
    run, store = plan(shapes)[0], (tmp_path / "store").as_uri()
    stopped = tmp_path / "stopped"

    class StoppedError(BaseException):
        pass

    def stop(line: dict) -> None:
        if line["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        perform(run, stopped, on_epoch=stop)
    Store(store).keep(run.folder, stopped)
    seen = []
    cluster = Here()
    assert reproduce_on(cluster, [run], tmp_path / "out", store=store, on_progress=seen.append) == []
    assert [progress.line["epoch"] for progress in seen if progress.line] == []
    perform(run, tmp_path / "here")
    assert_equal_records(run, tmp_path / "out", tmp_path / "here")
    sessions = json.loads((tmp_path / "out" / run.folder / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert cluster.closed


def test_failures_are_told_and_kept(shapes: Path, tmp_path: Path):
    planned = plan(shapes)[:2]
    failures = reproduce_on(Here(lambda _: "too hot"), planned, tmp_path, on_progress=lambda _: None)
    assert [failure.reason for failure in failures] == ["too hot"] * 2
    assert (tmp_path / "failures.jsonl").read_text().count("too hot") == 2
    (failure,) = reproduce_on(Here(lambda _: None), planned[:1], tmp_path, on_progress=lambda _: None)
    assert "is this folder the same on all computers?" in failure.reason


def test_a_task_waits_for_a_folder_that_a_dying_computer_holds(shapes: Path, tmp_path: Path, monkeypatch):
    run = plan(shapes)[0]
    task = Task(run, tmp_path, None, (), 1, None)
    (tmp_path / run.folder).mkdir(parents=True)
    tried = []

    def in_use(*_, **__) -> None:
        tried.append(0)
        if len(tried) < 3:
            with locked(tmp_path / run.folder), locked(tmp_path / run.folder):
                pass

    monkeypatch.setattr("dualcaps.study.cluster.perform", in_use)
    monkeypatch.setattr("dualcaps.study.cluster.time.sleep", lambda _: None)
    assert task() is None
    assert len(tried) == 3
    monkeypatch.setattr("dualcaps.study.cluster._WAIT_FOR_FOLDER", 0.0)
    tried.clear()
    assert "another process is training in this folder" in str(task())


def test_a_store_that_cannot_be_used_is_one_line(shapes: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="--store s3://bucket/runs: Install s3fs"):
        Store("s3://bucket/runs")
    with pytest.raises(ConfigError, match="--store strange://runs: Protocol not known"):
        Store("strange://runs")
    (tmp_path / "file").write_text("")
    run = plan(shapes)[0]
    failed = Task(run, tmp_path, None, (), torch.get_num_threads(), (tmp_path / "file").as_uri())()
    assert failed is not None
    assert "file: cannot be written to" in failed
    assert "\n" not in failed
