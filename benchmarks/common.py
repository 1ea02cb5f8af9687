"""What the benchmarks share: where results go, with what they were measured, fresh processes."""

import argparse
import contextlib
import csv
import datetime
import functools
import http.client
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does, for all candidates
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import platformdirs
import psutil
import torch
from PIL import Image
from scipy.stats import t

from dualcaps import ImageSplit, Network
from dualcaps.bench import Timing, interleave, matrix_rate, our_training
from dualcaps.inference import Precision, choose_device, choose_precision
from dualcaps.runs.files import write_csv
from dualcaps.runs.run import Run
from dualcaps.runs.run import environment as machine_and_versions
from dualcaps.study.statistics import ENOUGH_SEEDS, difference, pooled_variance

ROOT = Path(__file__).parents[1]
FIELDS = (
    *("benchmark", "case", "candidate", "measure", "value", "unit", "slowest", "fastest", "n"),
    *("date", "commit", "machine", "versions"),
)
Row = dict[str, str]


def usual_precision(device: torch.device) -> Precision:
    """What `dualcaps` computes in by default; float32 where oneDNN is held to AVX2 to imitate another machine."""
    return "float32" if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" else choose_precision("auto", device)


def parse(description: str) -> argparse.Namespace:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


class Results:
    """Rows of one benchmark, printed as they come and written as a CSV file at the end of each case.

    The file is named by benchmark, hardware and torch version; a new run replaces it.
    """

    def __init__(self, benchmark: str, out: Path, device: torch.device, versions: str = "") -> None:
        machine_facts = machine_and_versions(device, "")
        machine = machine_facts["device"] if device.type == "cuda" else machine_facts["processor"]
        if device.type == "cpu" and (limit := os.environ.get("ONEDNN_MAX_CPU_ISA")):
            machine += f", instructions up to {limit}"
        self._fixed = {
            "date": datetime.date.today().isoformat(),
            "commit": machine_facts["commit"],
            "machine": machine,
            "versions": versions or f"torch {torch.__version__}, python {machine_facts['versions']['python']}",
        }
        words = re.sub(r"[^a-z0-9.]+", "-", f"{machine} torch {torch.__version__}".lower()).strip("-")
        self.file = out / f"{benchmark}--{words}.csv"
        self._benchmark, self._rows = benchmark, []
        print(f"{benchmark}: {machine}, {self._fixed['versions']}", flush=True)

    def add(
        self,
        case: str,
        candidate: str,
        measure: str,
        value: float,
        unit: str,
        *,
        slowest: float | None = None,
        fastest: float | None = None,
        n: int = 1,
    ) -> None:
        """Keep and print one number."""
        number = {"value": f"{value:.6g}", "slowest": _text(slowest), "fastest": _text(fastest), "n": n}
        row = {"benchmark": self._benchmark, "case": case, "candidate": candidate, "measure": measure, "unit": unit}
        self._rows.append(row | number | self._fixed)
        spread = f"  ({slowest:,.4g} to {fastest:,.4g}, n = {n})" if slowest is not None else ""
        print(f"  {case:<40}{candidate:<42}{measure:<14}{value:>12,.4g} {unit}{spread}", flush=True)
        self.write()

    def add_timing(self, case: str, candidate: str, measure: str, timing: Timing, unit: str) -> None:
        """Keep and print a rate."""
        spread = {"slowest": timing.slowest, "fastest": timing.fastest, "n": len(timing.seconds)}
        self.add(case, candidate, measure, timing.rate, unit, **spread)

    def add_median(self, case: str, candidate: str, measure: str, values: Sequence[float], unit: str) -> None:
        """Keep and print the median of some numbers with their range."""
        spread = {"slowest": min(values), "fastest": max(values), "n": len(values)}
        self.add(case, candidate, measure, statistics.median(values), unit, **spread)

    def write(self) -> None:
        """Write the file as it stands."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".draft")
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self._rows)
        draft.replace(self.file)


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def read_rows(file: Path) -> list[Row]:
    """The rows of a CSV file; none where it does not exist."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(file, list(rows[0]), (row.values() for row in rows))
    print(file, flush=True)


def train_run(arguments: Sequence[str], folder: Path) -> Run:
    """Run `dualcaps` with these arguments, or go on with what stopped in the folder; returns the finished run."""
    subprocess.run([sys.executable, "-m", "dualcaps", *arguments, "--out", str(folder), "--resume"], check=True)
    return Run.open(folder)


def session_cells(run: Run) -> Row:
    """With what a run was made, in all its sessions."""
    assert run.result is not None
    sessions = run.provenance["sessions"]

    def values(of: Callable[[Any], object]) -> str:
        return "; ".join(dict.fromkeys(str(of(session)) for session in sessions))

    return {
        "images_sha256": run.provenance["data"]["sha256"],
        "precision": run.result["precision"],
        "processor": values(lambda session: session["processor"]),
        "threads": values(lambda session: session["threads"]),
        "torch": values(lambda session: session["versions"]["torch"]),
        "commits": " ".join(sorted({str(session["commit"]) for session in sessions})),
    }


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and number of some values."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} (n = {len(values)})"


def differences(groups: Mapping[str, Sequence[float]], reference: str) -> dict[str, str]:
    """How much each group's mean lies over that of the reference, with its 95 % interval, as text.

    By Welch if all groups have at least `ENOUGH_SEEDS` values; otherwise the variance is pooled over the groups, as in
    the verdicts on the paper. "–" for the reference, and for all if there is no group of several values.
    """
    variance, freedom = pooled_variance(groups.values())
    baseline = groups.get(reference)
    if not freedom or not baseline:
        return dict.fromkeys(groups, "–")
    texts = {}
    for name, values in groups.items():
        gain = statistics.mean(values) - statistics.mean(baseline)
        margin = float(t.ppf(0.975, freedom)) * (variance * (1 / len(values) + 1 / len(baseline))) ** 0.5
        if min(map(len, groups.values())) >= ENOUGH_SEEDS:
            margin = difference(values, baseline).high - gain
        texts[name] = "–" if name == reference else f"{gain:+.2f} ± {margin:.2f}"
    return texts


def time_training(
    network: Network,
    part: ImageSplit,
    batch: int,
    precision: Precision,
    rounds: int,
    others: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Timing], dict[str, list[float]]]:
    """Time epochs of training, eager and compiled, in float32 and another number type, interleaved with `others`.

    Returns:
        Timings by candidate; and by number type the rates of large matrix products meanwhile, in operations per second.
    """
    rates: dict[Precision, list[float]] = {"float32": [], precision: []}
    candidates = dict(others)
    for number_type in rates:
        candidates[f"dualcaps {number_type}, eager"] = our_training(network, part, batch, number_type, "never")
        candidates[f"dualcaps {number_type}, compiled"] = our_training(network, part, batch, number_type, "always")
    products = {f"matrix product {number_type}": number_type for number_type in rates}
    for name, number_type in products.items():
        candidates[name] = functools.partial(_add_matrix_rate, rates[number_type], part.labels.device, number_type)
    timings = interleave(candidates, rounds=rounds, items=len(part))
    return {name: timing for name, timing in timings.items() if name not in products}, dict(rates)


def _add_matrix_rate(rates: list[float], device: torch.device, number_type: str) -> None:
    rates.append(matrix_rate(device, getattr(torch, number_type)))


def add_share(results: Results, case: str, number_type: str, rates: Sequence[float], achieved: float) -> None:
    """Add the rate of matrix products, and the share of it that was achieved, in operations per second."""
    results.add_median(case, f"matrix product {number_type}", "speed", [rate / 1e9 for rate in rates], "GFLOP/s")
    share = 100 * achieved / statistics.median(rates)
    results.add(case, f"of the {number_type} matrix rate", "share", share, "%")


def in_fresh_process(script: str, arguments: Sequence[object]) -> float:
    """The number that a script of this folder prints last, run on its own."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return float(done.stdout.split()[-1])


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment of its own, which is made if it does not exist."""
    folder = platformdirs.user_cache_path("dualcaps") / "peers" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        print(f"installing {', '.join(packages)} into {folder}", flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        subprocess.run([*install, *packages], check=True)
        ready.touch()
    return python


def in_half_precision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in half the space."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def png_of(image: torch.Tensor) -> bytes:
    """An image of 8 bits as a PNG file."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(content, "PNG")
    return content.getvalue()


@contextlib.contextmanager
def served(
    command: Callable[[int], Sequence[object]], ready: Callable[[int], bool]
) -> Iterator[tuple[psutil.Process, int]]:
    """A service in a process of its own, for a free port, once it is ready; and that port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    service = subprocess.Popen([*map(str, command(port))], env=environ, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if service.poll() is not None:
                sys.exit(f"{command(port)}: ended with {service.returncode}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ready(port):
                    break
            time.sleep(0.2)
        yield psutil.Process(service.pid), port
    finally:
        for child in psutil.Process(service.pid).children(recursive=True):
            child.kill()
        service.kill()
        service.wait()


def place(name: str) -> torch.device:
    """The device to measure."""
    return choose_device(name)
