"""Train, evaluate, predict and serve in a loop for an hour: memory, threads and file handles have to stay flat.

    python benchmarks/soak.py --minutes 60

Each round trains a network in this process, evaluates it, classifies images with it, and serves it from a thread until
it has answered some requests. Beside it `dualcaps serve` runs in a process of its own through all rounds and answers as
many. After each round the resident memory, threads and open files of both are taken, of this process once more after
the C library has given back unused memory: what it keeps depends on how the heap is fragmented, what is left is in use.
The first third of the rounds is warm-up; after it threads and files may not grow at all, and memory in use, by a line
fitted through the rest, by no more than 2 %. Rows are written to `results/soak/`.
"""

import argparse
import ctypes
import gc
import http.client
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import uvicorn
from common import ROOT, png_of, served

from dualcaps import ImageDataset, Network, TrainConfig, create_model, evaluate, fit, load_data, load_model, predict
from dualcaps.runs.files import write_csv
from dualcaps.runs.run import Run, environment
from dualcaps.serve.http import build_service

REQUESTS = 200
WARM_UP, MOST_GROWTH = 1 / 3, 0.02
MODELS = ("da-capsnet", "capsnet", "da-capsnet-r")
Row = dict[str, Any]


def main() -> None:
    """Run the rounds, write the rows and judge them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "soak")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = Path(folder) / "served"
        _train(data, "da-capsnet", 0, run)
        command = (sys.executable, "-m", "dualcaps", "serve", run, "--precision", "float32", "--port")
        with served(lambda port: [*command, port], _ready) as (process, port):
            until = time.monotonic() + 60 * options.minutes
            while time.monotonic() < until:
                started = time.monotonic()
                done = _round(data, len(rows), Path(folder) / str(len(rows)))
                _ask(port, data, _lengths(load_model(Run.open(run), "cpu"), data))
                gc.collect()
                row = {"round": len(rows), "seconds": round(time.monotonic() - started, 1), **done}
                resident = {"process_resident_mb": round(psutil.Process().memory_info().rss / 1e6, 1)}
                ctypes.CDLL(None).malloc_trim(0)
                rows.append(row | resident | _taken("process", psutil.Process()) | _taken("service", process))
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    facts = environment(torch.device("cpu"), "float32")
    about = {"processor": facts["processor"], "torch": torch.__version__, "commit": facts["commit"]}
    write_csv(options.out / "rounds.csv", [*rows[0], *about], [list((row | about).values()) for row in rows])
    failures = judge(rows)
    print("\n".join(failures) if failures else f"{len(rows)} rounds: memory, threads and files are flat")
    sys.exit(bool(failures))


def _round(data: ImageDataset, number: int, out: Path) -> Row:
    """Train, evaluate, predict, serve; what came out."""
    name = MODELS[number % len(MODELS)]
    _train(data, name, number, out)
    model = load_model(Run.open(out), "cpu")
    found = evaluate(model, data.test)
    lengths = _lengths(model, data)
    server = uvicorn.Server(uvicorn.Config(build_service(model), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        _ask(server.servers[0].sockets[0].getsockname()[1], data, lengths)
    finally:
        server.should_exit = True
        thread.join()
    shutil.rmtree(out)
    return {"model": name, "test_accuracy": round(found.accuracy, 4)}


def _train(data: ImageDataset, name: str, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    model = create_model(name, data.image_shape, len(data.classes), width=16)
    fit(model, data, TrainConfig(epochs=1, seed=seed, precision="float32"), out=out, quiet=True)


def _lengths(model: Network, data: ImageDataset) -> np.ndarray:
    return predict(model, data.test.images[:REQUESTS]).numpy()


def _ask(port: int, data: ImageDataset, lengths: np.ndarray) -> None:
    """Send images one after another and compare the answers; every tenth request is no image and has to be refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        for number in range(REQUESTS):
            place = number % len(lengths)
            damaged = number % 10 == 9
            connection.request("POST", "/predict", b"no image" if damaged else png_of(data.test.images[place]))
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status != (422 if damaged else 200):
                sys.exit(f"request {number}: status {answer.status}, {body}")
            if not damaged and np.abs(np.array(list(body[0]["lengths"].values())) - lengths[place]).max() > 0.01:
                sys.exit(f"request {number}: a wrong answer, {body}")
    finally:
        connection.close()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _taken(name: str, process: psutil.Process) -> Row:
    """What a process holds now."""
    return {
        f"{name}_mb": round(process.memory_info().rss / 1e6, 1),
        f"{name}_threads": process.num_threads(),
        f"{name}_files": len(process.open_files()) + len(process.net_connections()),
        f"{name}_handles": process.num_fds(),
        f"{name}_children": len(process.children(recursive=True)),
    }


def judge(rows: Sequence[Row]) -> list[str]:
    """What grew after the warm-up."""
    kept = rows[round(len(rows) * WARM_UP) :]
    if len(kept) < 10:
        return [f"{len(kept)} rounds after the warm-up are too few to judge; give more --minutes"]
    failures = []
    for column in (name for name in rows[0] if name.startswith(("process_", "service_"))):
        values = [float(row[column]) for row in kept]
        if column.endswith("_mb"):
            growth = statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)
            print(f"{column}: {values[0]:.1f} to {values[-1]:.1f}, {growth:+.1f} by the line")
            if growth > MOST_GROWTH * statistics.mean(values) and column != "process_resident_mb":
                failures.append(f"{column} grew by {growth:.1f} of {statistics.mean(values):.1f}")
        elif max(values[len(values) // 2 :]) > max(values[: len(values) // 2]):
            failures.append(f"{column} grew: {values}")
    return failures


if __name__ == "__main__":
    main()
