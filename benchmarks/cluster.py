"""A grid on a Ray cluster of three nodes on this computer, one killed twice, against the same grid run here.

    python benchmarks/cluster.py --runs 30

All runs have to be there once, with the same metrics and weights to the bit (float32, one thread each).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import safetensors.torch
import torch
from common import ROOT
from ray.cluster_utils import Cluster

from dualcaps import TrainConfig
from dualcaps.study.cluster import RayCluster, reproduce_on
from dualcaps.study.plan import PlannedRun, plan_runs
from dualcaps.study.scheduler import Progress, reproduce

KILLED_AT = (1 / 4, 1 / 2)  # of the epochs of all runs


def main() -> None:
    """Run both grids and compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "cluster")
    options = parser.parse_args()
    training = TrainConfig(epochs=options.epochs, precision="float32", device="cpu", compile="never")
    planned, _ = plan_runs(["attention"], seeds=30, data_sets=["digits"], protocols=("clean",), training=training)
    planned = planned[: options.runs]
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(planned, Path(folder))


def compare(planned: list[PlannedRun], folder: Path) -> None:
    """Run the grid on the cluster and here; print what differs."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)][0]
    ray.init(address=nodes.address, log_to_driver=False, include_dashboard=False)
    ended: list[PlannedRun] = []
    lines, kills = 0, 0
    total = sum(run.training.epochs for run in planned)

    def on_progress(progress: Progress) -> None:
        nonlocal doomed, lines, kills
        lines += progress.line is not None
        if progress.ended:
            ended.append(progress.run)
            print(f"{len(ended):>3}  {progress.run.name}  {progress.failed or ''}", flush=True)
        if kills < len(KILLED_AT) and lines >= KILLED_AT[kills] * total:
            kills += 1
            print(f"killing a node, {lines} of {total} epochs are done", flush=True)
            nodes.remove_node(doomed, allow_graceful=False)
            doomed = nodes.add_node(num_cpus=1)

    started = time.monotonic()
    failures = reproduce_on(RayCluster("auto"), planned, folder / "ray", poll=0.2, on_progress=on_progress)
    print(f"on the cluster: {time.monotonic() - started:.0f} s, {kills} kills, {len(failures)} failures")
    ray.shutdown()
    nodes.shutdown()
    torch.set_num_threads(1)
    reproduce(planned, folder / "here", jobs=1, on_progress=lambda _: None)
    same = sum(_content(run, folder / "ray") == _content(run, folder / "here") for run in planned)
    sessions = [
        json.loads((folder / "ray" / run.folder / "provenance.json").read_text())["sessions"] for run in planned
    ]
    resumed = sum(len(found) > 1 for found in sessions)
    print(f"{len(set(ended))} of {len(planned)} runs done, {len(ended) - len(set(ended))} of them twice")
    print(f"{resumed} runs were resumed on another node; {same} of {len(planned)} are equal to the bit to local ones")
    sys.exit(not (len(ended) == len(set(ended)) == same == len(planned)))


def _content(run: PlannedRun, out: Path) -> tuple[Any, ...]:
    """Metrics but for durations, and the weights."""
    folder = out / run.folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{**line, "seconds": 0, "images_per_second": 0} for line in lines]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    return metrics, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


if __name__ == "__main__":
    main()
