"""Routing methods beside each other, with a learning rate tuned for each; writes `results/routing/`.

    python benchmarks/routing_table.py digits fashion-mnist

All are `capsnet` with the paper's trunk, the same votes and parents of 16 dimensions, trained by the recipe `paper`.
First each method is trained with each of four learning rates and a seed that is not used again, and with further ones
until the rates next to the best were tried too; the rate with the highest validation accuracy is taken. Then it is
trained with several seeds; the epoch is selected on validation images and the test images are read once. Trainings run
through the command line; stopped ones are resumed. A finished one has a row in `runs-DATA.csv` and is not trained
again, on whatever machine.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import ROOT, Row, differences, read_rows, session_cells, train_run, write_rows

from dualcaps import create_model
from dualcaps.bench import interleave, our_training, peak_memory, random_split
from dualcaps.inference import choose_precision
from dualcaps.models import count_parameters
from dualcaps.runs.files import write_text
from dualcaps.runs.run import Run, environment
from dualcaps.study.statistics import ENOUGH_SEEDS

METHODS: dict[str, dict[str, Any]] = {
    "dynamic, 1 iteration": {"routing": "dynamic", "iterations": 1},
    "dynamic, 3 iterations": {"routing": "dynamic", "iterations": 3},
    "dynamic, 5 iterations": {"routing": "dynamic", "iterations": 5},
    "EM, 3 iterations": {"routing": "em", "iterations": 3},
    "self-attention": {"routing": "self-attention"},
    "inverted attention, 3 iterations": {"routing": "inverted-attention", "iterations": 3},
    "self-routing": {"routing": "self-routing"},
    "uniform": {"routing": "uniform"},
}
COMPARED_WITH = "dynamic, 3 iterations"
RATES = ("0.00003", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1")
FIRST_RATES = RATES[2:6]
TUNING_SEED = 100


class Budget(NamedTuple):
    """Epochs of tuning and of the final trainings, and how many seeds these have."""

    tuning: int
    final: int
    seeds: int


BUDGETS = {"digits": Budget(20, 40, 5), "fashion-mnist": Budget(2, 5, 3)}
BATCH = 128


def main() -> None:
    """Tune, train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", choices=BUDGETS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "routing")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "routing")
    parser.add_argument("--only", nargs="+", choices=("train", "cost", "table"), default=("train", "cost", "table"))
    parser.add_argument("--peak-memory-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_memory_of:
        _step(options.peak_memory_of, 1)()
        print(peak_memory())
        return
    for data in options.data:
        if "train" in options.only:
            train(data, options.runs, options.out / f"runs-{data}.csv")
    if "cost" in options.only:
        write_rows(options.out / "cost.csv", cost())
    if "table" in options.only:
        write_text(options.out / "RESULTS.md", table(options.out))


def train(data: str, runs: Path, file: Path) -> None:
    """All trainings of a data set; those that have a row in the file are not repeated."""
    budget = BUDGETS[data]
    for method in METHODS:
        missing = FIRST_RATES
        while missing:
            for rate in missing:
                _train(data, method, rate, TUNING_SEED, budget.tuning, runs, file)
            missing = _untried_neighbours(method, read_rows(file))
    for seed in range(budget.seeds):
        for method in METHODS:
            _train(data, method, best_rate(method, read_rows(file)), seed, budget.final, runs, file)


def _train(data: str, method: str, rate: str, seed: int, epochs: int, runs: Path, file: Path) -> None:
    found = read_rows(file)
    key = (method, rate, str(seed), str(epochs))
    if any((row["method"], row["lr"], row["seed"], row["epochs"]) == key for row in found):
        return
    name = method.lower().replace(", ", "-").replace(" ", "-")
    folder = runs / data / f"{name}-lr{rate}-{epochs}-seed{seed}"
    switches = [text for name, value in METHODS[method].items() for text in (f"--{name}", str(value))]
    arguments = ["train", data, "--model", "capsnet", *switches, "--lr", rate, "--epochs", str(epochs)]
    run = train_run([*arguments, "--seed", str(seed)], folder)
    write_rows(file, [*found, _row(run, data, method, rate, seed, epochs)])


def _untried_neighbours(method: str, found: Sequence[Row]) -> list[str]:
    """The rates next to the best one that were not tried."""
    tried = {row["lr"] for row in found if (row["method"], row["use"]) == (method, "tuning")}
    place = RATES.index(best_rate(method, found))
    return [rate for rate in RATES[max(place - 1, 0) : place + 2] if rate not in tried]


def best_rate(method: str, found: Sequence[Row]) -> str:
    """The rate with the highest validation accuracy of its best epoch; of equal ones the lowest loss of that epoch."""
    tuned = [row for row in found if (row["method"], row["use"]) == (method, "tuning")]
    return max(tuned, key=lambda row: (float(row["validation_accuracy"]), -float(row["training_loss"])))["lr"]


def _row(run: Run, data: str, method: str, rate: str, seed: int, epochs: int) -> Row:
    assert run.result is not None
    best = max(run.history, key=lambda line: line["validation_accuracy"])
    return {
        "data": data,
        "method": method,
        "use": "tuning" if seed == TUNING_SEED else "final",
        "lr": rate,
        "seed": str(seed),
        "epochs": str(epochs),
        "validation_accuracy": f"{best['validation_accuracy']:.6g}",
        "training_loss": f"{best['loss']:.6g}",
        "test_accuracy": "" if seed == TUNING_SEED else f"{run.result['test_accuracy']:.6g}",
        "seconds": f"{sum(line['seconds'] for line in run.history):.1f}",
        **session_cells(run),
    }


def cost() -> list[Row]:
    """Parameters, training speed and peak memory of each method at 28x28 pixels, 10 classes."""
    timings = interleave({method: _step(method, 10) for method in METHODS}, rounds=5, items=10 * BATCH)
    machine = environment(torch.device("cpu"), "")
    found: list[Row] = []
    for method, timing in timings.items():
        model = create_model("capsnet", decoder=False, **METHODS[method])
        command = [sys.executable, __file__, "digits", "--peak-memory-of", method]
        memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(
            {
                "method": method,
                "parameters": str(count_parameters(model)),
                "images_per_second": f"{timing.rate:.1f}",
                "slowest": f"{timing.slowest:.1f}",
                "fastest": f"{timing.fastest:.1f}",
                "n": str(len(timing.seconds)),
                "peak_megabytes": f"{float(memory):.0f}",
                "precision": choose_precision("auto", torch.device("cpu")),
                "processor": machine["processor"],
                "threads": str(machine["threads"]),
                "torch": machine["versions"]["torch"],
                "commit": str(machine["commit"]),
            }
        )
    return found


def _step(method: str, steps: int) -> Callable[[], None]:
    """Training steps without compiling, as a function."""
    model = create_model("capsnet", **METHODS[method])
    part = random_split((1, 28, 28), steps * BATCH, torch.device("cpu"))
    return our_training(model, part, BATCH, choose_precision("auto", torch.device("cpu")), "never")


def table(out: Path) -> str:
    """The tables in Markdown, from the CSV files."""
    text = [
        "# Routing methods",
        "",
        "Generated by `python benchmarks/routing_table.py` from the CSV files beside it.",
        "",
    ]
    costs = {row["method"]: row for row in read_rows(out / "cost.csv")}
    for data, budget in BUDGETS.items():
        if found := read_rows(out / f"runs-{data}.csv"):
            text += [f"## {data}", "", *_summary(budget, found, costs), ""]
    machine = next(iter(costs.values()))
    text += [
        f"Parameters without the decoder. Speed and memory: training steps of {BATCH} images of 28×28 pixels, "
        f"10 classes, with the decoder, not compiled, {machine['precision']}; medians of {machine['n']} interleaved "
        f"runs and the peak of a process of its own; {machine['processor']}, threads: {machine['threads']}, torch "
        f"{machine['torch']}.",
        "",
    ]
    return "\n".join(text)


def _summary(budget: Budget, found: Sequence[Row], costs: dict[str, Row]) -> list[str]:
    rates = {method: best_rate(method, found) for method in METHODS}
    accuracies = {
        method: [
            100 * float(row["test_accuracy"])
            for row in found
            if (row["method"], row["use"], row["lr"]) == (method, "final", rate)
        ]
        for method, rate in rates.items()
    }
    done = {method: values for method, values in accuracies.items() if len(values) >= 2}
    gains = differences(done, COMPARED_WITH)
    lines = [
        f"`capsnet`, {budget.final} epochs, n = {budget.seeds} seeds, the epoch selected on validation images. The "
        f"learning rate of each method: the best of {', '.join(FIRST_RATES)} after {budget.tuning} epochs with another "
        "seed, and of lower or higher ones where that was the lowest or the highest.",
        "",
        f"| method | rate | test accuracy, % | over {COMPARED_WITH}, points | parameters | images/s | MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, values in done.items():
        mean = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"
        price = costs[method]
        lines.append(
            f"| {method} | {rates[method]} | {mean} | {gains[method]} | {int(price['parameters']):,} | "
            f"{float(price['images_per_second']):,.0f} | {price['peak_megabytes']} |"
        )
    missing = [method for method in METHODS if len(accuracies[method]) < budget.seeds]
    how = "by Welch" if budget.seeds >= ENOUGH_SEEDS else "the variance pooled over the methods"
    lines += ["", f"± std (n); the differences with 95 % intervals, {how}, not adjusted for their number."]
    if missing:
        lines.append(f"Not all seeds are done of: {', '.join(missing)}.")
    return lines


if __name__ == "__main__":
    main()
