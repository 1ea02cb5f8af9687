"""The highest accuracies of `da-capsnet-r` with its controls: trains what is missing, writes a folder a data set.

    python benchmarks/records.py fashion-mnist --seeds 3

Each network is trained by the command that the folder quotes: on all training images, the last epoch kept, nothing
selected on the test images. Stopped runs are resumed. `results/records/DATE-DATA/` gets a table with mean and standard
deviation, the log of every run, and the weights of one run of `da-capsnet-r` in half precision. It also keeps what a
run folder holds besides weights, so that runs that were finished on other machines count and are not trained again.
All tables are written into docs/records.md, below its own text.
"""

import argparse
import datetime
import json
import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, differences, in_half_precision, mean_and_spread, train_run
from safetensors.torch import save_file

from dualcaps import evaluate, load_data, load_model
from dualcaps.runs.files import new_folder, write_csv, write_json, write_text
from dualcaps.runs.run import CONFIG, METRICS, PROVENANCE, RESULT, Run

WITHOUT_LOSSY = "without-lossy.json"
TRUNK = "resnet-r"
BELOW = "<!-- What follows is written by benchmarks/records.py. -->"
NETWORKS = ("da-capsnet-r", "capsnet-r-caps-att", "capsnet-r-conv-att", "capsnet-r", TRUNK)


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
    "mnist": Card(("--width", "32", "--augment", "policy,rotate", "--epochs", "30"), "99.83 (best)", 99.75),
    "cifar-10": Card(("--width", "32", "--epochs", "30"), "94.85", 95.3, "95 of 60,000 images from a JPEG copy"),
    "smallnorb": Card(
        (
            *("--camera", "stereo", "--crop", "80", "80", "--standardise", "--augment", "shift,mixup"),
            *("--image-size", "96", "96", "--width", "32", "--epochs", "20"),
        ),
        "98.7",
        98.6,
        "a copy, not the official files",
    ),
    "svhn": Card(("--width", "32", "--epochs", "20"), "97.6", 97.6, "first 10,000 of 26,032 test images"),
}


def command(data: str, network: str, seed: int) -> list[str]:
    """The arguments of the run, but for the folder."""
    readout = [] if network == TRUNK else ["--options", "readout=linear"]
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
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "records.md")
    options = parser.parse_args()
    folder = _folder(options.data, options.out)
    for seed in range(options.seeds):  # a first comparison of all before a second seed of any
        for network in options.networks:
            name = f"{network}-seed{seed}"
            if (folder / "runs" / name).is_dir():
                continue
            run = options.runs / options.data / name
            keep(train_run(command(options.data, network, seed), run), options.data, folder)
            write(options.data, folder)
            own_text = options.page.read_text(encoding="utf-8").partition(BELOW)[0]
            write_text(options.page, own_text + tables(options.out))


def _folder(data: str, out: Path) -> Path:
    """The folder of a data set's records: the one that exists, otherwise one of today's date."""
    dated = [path for path in out.glob(f"*-{data}") if (path / "runs").is_dir()]
    return dated[0] if dated else out / f"{datetime.date.today().isoformat()}-{data}"


def _kept_runs(folder: Path) -> dict[str, list[Run]]:
    """The runs that were kept, by network."""
    by_network = {name: sorted(folder.glob(f"runs/{name}-seed*/result.json")) for name in NETWORKS}
    return {name: [Run.open(file.parent) for file in files] for name, files in by_network.items() if files}


def keep(run: Run, data: str, folder: Path) -> None:
    """Keep what a finished run holds besides weights; of the first of `da-capsnet-r` also these."""
    kept = folder / "runs" / run.path.name
    with new_folder(kept) as draft:
        for file in (CONFIG, PROVENANCE, METRICS, RESULT):
            shutil.copy(run.path / file, draft / file)
        if data == "cifar-10":
            write_json(draft / WITHOUT_LOSSY, {"test_accuracy": _without_lossy(run)})
    if run.path.name.startswith("da-capsnet-r-seed") and not any(folder.glob("*.safetensors")):
        save_file(in_half_precision(run.weights()), folder / f"{run.path.name}.safetensors")


def write(data: str, folder: Path) -> None:
    """Write table and log of a data set from the runs that were kept."""
    found = _kept_runs(folder)
    card = CARDS[data]
    lines = [
        f"# {data}",
        "",
        *([f"Files: {card.copy}.", ""] if card.copy else []),
        f"Best capsule network known {card.known} %, aim {card.goal} %. All training images, last epoch kept.",
        "",
        f"| network | test accuracy, % | of each seed | over {TRUNK}, points | parameters | minutes a run |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    accuracies = {name: _accuracies(opened) for name, opened in found.items()}
    gains = differences(accuracies, TRUNK)
    for name, opened in found.items():
        cells = (name, mean_and_spread(accuracies[name]), ", ".join(f"{a:.2f}" for a in accuracies[name]), gains[name])
        lines.append(f"| {' | '.join(cells)} | {_parameters(opened):,} | {_minutes(opened):.0f} |")
    lines += ["", "Mean ± std (n); differences with 95 % intervals, the variance pooled over the networks where n < 5."]
    lines += ["Minutes beside other programs."]
    if data == "cifar-10":
        lines += ["", "Without the test images that come from a JPEG copy:", ""]
        for name, opened in found.items():
            texts = [(run.path / WITHOUT_LOSSY).read_text(encoding="utf-8") for run in opened]
            lines.append(f"- {name}: {mean_and_spread([100 * json.loads(text)['test_accuracy'] for text in texts])} %")
    runs = [run for opened in found.values() for run in opened]
    sessions = {_conditions(session) for run in runs for session in run.provenance["sessions"]}
    commands = [f"    dualcaps {shlex.join(command(data, name, 0))}" for name in found]
    lines += ["", "Trained with", "", *commands, "", "and the next seeds, on", ""]
    lines += [f"- {session}" for session in sorted(sessions)]
    write_text(folder / "README.md", "\n".join([*lines, ""]))
    columns = ["network", "seed", "epoch", "loss", "train_accuracy", "test_accuracy", "seconds"]
    write_csv(
        folder / "log.csv",
        columns,
        (row for name, opened in found.items() for run in opened for row in _log(name, run)),
    )
    print(f"{folder}: {', '.join(f'{name} {len(opened)}' for name, opened in found.items())}")


def _accuracies(opened: Sequence[Run]) -> list[float]:
    return [100 * run.result["test_accuracy"] for run in opened if run.result]


def _minutes(opened: Sequence[Run]) -> float:
    return statistics.mean(run.result["training_seconds"] / 60 for run in opened if run.result)


def _parameters(opened: Sequence[Run]) -> int:
    return next(run.result["parameters"] for run in opened if run.result)


def tables(out: Path) -> str:
    """The table of all data sets and then that of each one in Markdown."""
    lines = [
        BELOW,
        "",
        f"| data | best capsule network known | aim | {' | '.join(NETWORKS)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(NETWORKS),
    ]
    each: list[str] = []
    for data, card in CARDS.items():
        folder = _folder(data, out)
        found = _kept_runs(folder)
        if not found:
            continue
        cells = [mean_and_spread(_accuracies(found[name])) if name in found else "–" for name in NETWORKS]
        lines.append(f"| {data} | {card.known} | {card.goal} | {' | '.join(cells)} |")
        each += ["", "#" + (folder / "README.md").read_text(encoding="utf-8").rstrip()]
    return "\n".join([*lines, *each, ""])


def _log(name: str, run: Run) -> Iterator[list[object]]:
    """A row for each epoch of a run."""
    for line in run.history:
        accuracies = (f"{line[part]:.4f}" for part in ("loss", "train_accuracy", "test_accuracy"))
        yield [name, run.training.seed, line["epoch"], *accuracies, f"{line['seconds']:.1f}"]


def _without_lossy(run: Run) -> float:
    """The accuracy without the test images that come from a JPEG copy."""
    data = load_data("cifar-10")
    file = next(path for path in Path(data.provenance["from"]).parent.rglob("lossy.txt"))
    lossy = {int(line) - 50_000 for line in file.read_text(encoding="ascii").split() if int(line) >= 50_000}
    kept = [number for number in range(len(data.test)) if number not in lossy]
    evaluation = evaluate(load_model(run), data.test, precision="float32", tta=run.training.tta)
    return float((evaluation.predicted == evaluation.labels)[kept].mean())


def _conditions(session: Mapping[str, Any]) -> str:
    versions = session["versions"]
    threads = f"{session['threads']} thread{'s' * (session['threads'] > 1)}"
    software = f"torch {versions['torch']}, commit {session['commit'][:9]}"
    return f"{session['processor']}, {threads}, {session['precision']}, {software}"


if __name__ == "__main__":
    main()
