"""The highest accuracies of `da-capsnet-r` with its controls: trains what is missing, writes a folder a data set.

    python benchmarks/records.py fashion-mnist --seeds 3

Each network is trained by the command that the folder quotes: on all training images, the last epoch kept, nothing
selected on the test images. Stopped runs are resumed. `results/records/DATE-DATA/` gets a table with mean and standard
deviation, the log of every run, and the weights of seed 0 of `da-capsnet-r` in half precision.
"""

import argparse
import csv
import datetime
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import ROOT
from safetensors.torch import save_file

from dualcaps import evaluate, load_data, load_model
from dualcaps.runs.run import Run

NETWORKS = ("da-capsnet-r", "capsnet-r-caps-att", "capsnet-r-conv-att", "capsnet-r", "resnet-r")


@dataclass(frozen=True)
class Card:
    """How one data set is trained.

    Attributes:
        options: of `dualcaps train`, for all networks.
        known: the best accuracy of a capsule network known from the literature, in %.
        goal: the accuracy aimed at, in %.
        copy: what the files are, where they are not the official ones.
    """

    options: tuple[str, ...]
    known: str
    goal: float
    copy: str = ""


CARDS = {
    "fashion-mnist": Card(("--width", "32", "--epochs", "30"), "94.8", 95.2),
    "mnist": Card(("--width", "32", "--epochs", "20"), "99.83 (best)", 99.75),
    "cifar-10": Card(("--epochs", "25"), "94.85", 95.3, "95 of 60,000 images from a JPEG copy"),
    "smallnorb": Card(
        (
            *("--camera", "stereo", "--image-size", "48", "48", "--crop", "32", "32", "--standardise"),
            *("--width", "32", "--epochs", "30"),
        ),
        "98.7",
        98.6,
        "a copy, not the official files",
    ),
    "svhn": Card(("--width", "32", "--epochs", "20"), "97.6", 97.6, "first 10,000 of 26,032 test images"),
}


def command(data: str, network: str, seed: int) -> list[str]:
    """The arguments of the run, but for the folder."""
    readout = [] if network == "resnet-r" else ["--options", "readout=linear"]
    return [
        *("train", data, "--recipe", "strong", "--model", network, *CARDS[data].options, "--seed", str(seed)),
        *readout,
    ]


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", choices=CARDS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "records")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "records")
    options = parser.parse_args()
    for seed in range(options.seeds):  # a first comparison of all before a second seed of any
        for network in options.networks:
            folder = options.runs / options.data / f"{network}-seed{seed}"
            arguments = [*command(options.data, network, seed), "--out", str(folder), "--resume"]
            subprocess.run([sys.executable, "-m", "dualcaps", *arguments], check=True)
    write(options.data, options.runs / options.data, options.out)


def write(data: str, runs: Path, out: Path) -> None:
    """Write the folder of a data set from its finished runs."""
    by_network = {name: sorted(runs.glob(f"{name}-seed*/result.json")) for name in NETWORKS}
    found = {name: [Run.open(file.parent) for file in files] for name, files in by_network.items() if files}
    folder = out / f"{datetime.date.today().isoformat()}-{data}"
    folder.mkdir(parents=True, exist_ok=True)
    card = CARDS[data]
    lines = [
        f"# {data}",
        "",
        *([f"Files: {card.copy}.", ""] if card.copy else []),
        f"Best capsule network known {card.known} %, aim {card.goal} %. All training images, last epoch kept.",
        "",
        "| network | test accuracy, % | of each seed | parameters | minutes a run |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for name, opened in found.items():
        accuracies = [100 * run.result["test_accuracy"] for run in opened if run.result]
        minutes = statistics.mean(run.result["training_seconds"] / 60 for run in opened if run.result)
        assert opened[0].result is not None
        cells = (name, _mean(accuracies), ", ".join(f"{a:.2f}" for a in accuracies))
        lines.append(f"| {' | '.join(cells)} | {opened[0].result['parameters']:,} | {minutes:.0f} |")
    if data == "cifar-10":
        lines += ["", *_without_lossy(found)]
    sessions = {_session(run) for opened in found.values() for run in opened}
    lines += ["", "Trained with", "", "    dualcaps " + shlex.join(command(data, "NETWORK", 0)), "", "on", ""]
    lines += [f"- {session}" for session in sorted(sessions)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "log.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["network", "seed", "epoch", "loss", "train_accuracy", "test_accuracy", "seconds"])
        for name, opened in found.items():
            for run in opened:
                for line in run.history:
                    accuracies = (f"{line[part]:.4f}" for part in ("loss", "train_accuracy", "test_accuracy"))
                    writer.writerow([name, run.training.seed, line["epoch"], *accuracies, f"{line['seconds']:.1f}"])
    first = runs / "da-capsnet-r-seed0"
    if (first / "result.json").is_file():
        weights = {name: _half(tensor) for name, tensor in Run.open(first).weights().items()}
        save_file(weights, folder / "da-capsnet-r-seed0.safetensors")
    print(f"{folder}: {', '.join(f'{name} {len(opened)}' for name, opened in found.items())}")


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} (n = {len(values)})"


def _without_lossy(found: dict[str, list[Run]]) -> list[str]:
    """The accuracies without the test images that come from a JPEG copy."""
    data = load_data("cifar-10")
    file = next(path for path in Path(data.provenance["from"]).parent.rglob("lossy.txt"))
    lossy = {int(line) - 50_000 for line in file.read_text(encoding="ascii").split() if int(line) >= 50_000}
    kept = [number for number in range(len(data.test)) if number not in lossy]
    lines = [f"Without the {len(lossy)} test images from a JPEG copy:", ""]
    for name, opened in found.items():
        accuracies = []
        for run in opened:
            evaluation = evaluate(load_model(run), data.test, precision="float32", tta=run.training.tta)
            accuracies.append(100 * float((evaluation.predicted == evaluation.labels)[kept].mean()))
        lines.append(f"- {name}: {_mean(accuracies)} %")
    return lines


def _session(run: Run) -> str:
    session = run.provenance["sessions"][-1]
    versions = session["versions"]
    threads = f"{session['threads']} thread{'s' * (session['threads'] > 1)}"
    software = f"torch {versions['torch']}, commit {session['commit'][:9]}"
    return f"{session['processor']}, {threads}, {session['precision']}, {software}"


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
