"""Generalisation and attack: four networks on MNIST, trained to the same accuracy; writes `results/robustness/`.

    python benchmarks/robustness.py --seeds 3

Affine changes, rotations, shifts, corruptions and attacks: trained on MNIST on a canvas of 40x40 pixels with shifts and
nothing else, until an epoch has 99 % of the validation images right (Sabour et al. 2017 compare networks of 99.2 %),
then tested on affNIST's changes of all test images and the suite of `dualcaps robustness` of 1,000 of them. Overlapping
digits: trained on MultiMNIST for five epochs. Stopped trainings are resumed; a run whose scores are in `scores.csv` is
not trained again, on whatever machine. The curves are drawn for docs/robustness.md.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, differences, read_rows, session_cells

from dualcaps import TrainConfig, create_model, fit, load_data, load_model
from dualcaps.data.dataset import ImageDataset
from dualcaps.inference import run_data
from dualcaps.plots import png, strength_curves
from dualcaps.robustness.suite import SUITES, robustness
from dualcaps.runs.files import write_bytes, write_csv, write_text
from dualcaps.runs.run import Run
from dualcaps.training.callbacks import Callback, TrainingState

NETWORKS = ("cnn", "capsnet", "da-capsnet", "sabour-capsnet")
_REFERENCE = "capsnet"
PARTS: dict[str, dict[str, Any]] = {
    "mnist-40": {"epochs": 10, "augment": "shift=0.15"},
    "mnist-36": {"epochs": 5, "augment": "shift=0.112,overlap", "protocol": "last"},
}
TARGET = 0.99  # of the validation images, at which training on single digits ends
COUNT, ATTACKED, AFFINE = 1_000, 100, 10_000
FIELDS = (
    *("data", "network", "seed", "epochs", "suite", "change", "strength", "images", "accuracy"),
    *("commits", "processor", "torch"),
)
Row = dict[str, Any]


class StopAt(Callback):
    """Stop when an epoch has reached the target."""

    def on_start(self, state: TrainingState) -> None:
        """Stop a resumed training that had reached it."""
        self.on_epoch_end(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Compare the last epoch with the target."""
        if state.history and state.history[-1]["validation_accuracy"] >= TARGET:
            state.stop = f"{TARGET:.1%} of the validation images are right"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--data", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "robustness")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "robustness")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "robustness.png")
    options = parser.parse_args()
    found = read(options.out / "scores.csv")
    for name in options.data:
        data = load_data(name)
        for seed in range(options.seeds):
            for network in options.networks:
                if not any((row["data"], row["network"], row["seed"]) == (name, network, seed) for row in found):
                    found += measure(train(data, network, seed, options.runs), data)
                    write(found, options.out, options.picture)
    write(found, options.out, options.picture)


def train(data: ImageDataset, network: str, seed: int, runs: Path) -> Run:
    """The finished run of a network."""
    path = runs / data.name / f"{network}-seed{seed}"
    if not (path / "result.json").is_file():
        torch.manual_seed(seed)
        model = create_model(network, data.image_shape, len(data.classes))
        callbacks = [StopAt()] if data.name == "mnist-40" else []
        fit(model, data, TrainConfig(seed=seed, **PARTS[data.name]), out=path, resume=True, callbacks=callbacks)
    return Run.open(path)


def measure(run: Run, data: ImageDataset) -> Iterator[Row]:
    """Measure a run: a row for each number."""
    model, test = load_model(run), run_data(run).test
    if data.name == "mnist-36":
        found = robustness(model, test, ["overlap"], count=len(test))
        scores = found.scores
    else:
        scores = robustness(model, test, ["affine"], count=AFFINE).scores
        suites = [name for name in SUITES if name not in ("affine", "overlap")]
        found = robustness(model, test, suites, count=COUNT, attacked=ATTACKED)
        scores = [*scores, *(score for score in found.scores if score.suite != "clean")]
    made_with = session_cells(run)
    about = {
        "data": run.data.source,
        "network": run.model.name,
        "seed": run.training.seed,
        "epochs": len(run.history),
        **{name: made_with[name] for name in ("commits", "processor", "torch")},
    }
    print(f"{run.path}: measured", flush=True)
    for score in scores:
        yield {**about, **score._asdict(), "accuracy": f"{score.accuracy:.6g}"}
    for suite, group in (("gradients", found.gradients), ("overlap", found.overlap)):
        for name, value in (group._asdict() if group else {}).items():
            if isinstance(value, float):
                yield {**about, "suite": suite, "change": name, "accuracy": f"{value:.6g}"}


def read(file: Path) -> list[Row]:
    """The rows of the CSV file; none where it does not exist."""
    found: list[Row] = [dict(row) for row in read_rows(file)]
    for row in found:
        row.update(seed=int(row["seed"]), epochs=int(row["epochs"]), strength=float(row["strength"] or "nan"))
    return found


def write(found: Sequence[Row], out: Path, curves: Path) -> None:
    """Write the scores as CSV, in the order of the networks, the tables, and the picture of the curves."""
    ordered = sorted(
        found, key=lambda row: (list(PARTS).index(row["data"]), row["seed"], NETWORKS.index(row["network"]))
    )
    out.mkdir(parents=True, exist_ok=True)
    lines = ([_cell(row.get(field, "")) for field in FIELDS] for row in ordered)
    write_csv(out / "scores.csv", FIELDS, lines)
    write_text(out / "RESULTS.md", tables(ordered))
    write_bytes(curves, picture([row for row in ordered if row["data"] == "mnist-40"]))


def _cell(value: object) -> object:
    return "" if value != value else value  # a strength that a row does not have is read as NaN


def tables(found: Sequence[Row]) -> str:
    """The tables in Markdown: means over the seeds with standard deviations."""
    single = [row for row in found if row["data"] == "mnist-40"]
    pairs = [row for row in found if row["data"] == "mnist-36"]
    text = ["# Generalisation and attack", "", "Generated by `python benchmarks/robustness.py` from scores.csv.", ""]
    if single:
        text += [
            f"MNIST on 40×40 pixels, trained with shifts only until {TARGET:.1%} of the validation images are right. "
            f"Accuracy in % ± std (n seeds): unchanged and affine of {AFFINE:,} test images, the others of {COUNT:,}, "
            f"attacks of {ATTACKED}. Corruptions are means over five severities.",
            "",
            *_table(single, _LINES),
            "",
            f"Over `{_REFERENCE}`, points, with 95 % intervals, the variance pooled over the networks where n < 5:",
            "",
            *_differences(single, _LINES),
            "",
            "Gradients of the attacked networks: the check of `dualcaps robustness`.",
            "",
            *_table(single, _GRADIENTS),
            "",
        ]
    if pairs:
        text += [
            "Overlapping digits (MultiMNIST on 36×36 pixels, trained for five epochs); reconstruction errors are mean "
            "squared differences of values in [0, 1], times 10,000.",
            "",
            *_table(pairs, _PAIRS),
            "",
            f"Over `{_REFERENCE}`, with 95 % intervals as above:",
            "",
            *_differences(pairs, _PAIRS[:3]),
            "",
        ]
    return "\n".join(text)


Line = tuple[str, str, str | None, float | None, float]  # heading, suite, change, strength, factor

_LINES: tuple[Line, ...] = (
    ("unchanged", "clean", None, None, 100),
    ("affine, as affNIST", "affine", None, None, 100),
    *((f"rotated by {degrees:g}°", "rotation", None, degrees, 100) for degrees in (15.0, 30.0, 45.0, 60.0, 90.0)),
    *((f"shifted by {100 * share:g} %", "shift", None, share, 100) for share in (0.05, 0.1, 0.15, 0.2, 0.25)),
    ("all corruptions", "corruption", None, None, 100),
    *(
        (name, "corruption", name, None, 100)
        for name in (
            *("gaussian noise", "shot noise", "impulse noise", "gaussian blur", "motion blur", "brightness"),
            *("contrast", "pixelate", "jpeg", "spatter", "stripe", "zigzag"),
        )
    ),
    *(
        (f"{attack}, {label}", "attack", attack, size, 100)
        for attack in ("FGSM", "PGD")
        for label, size in (("2/255", 2 / 255), ("8/255", 8 / 255), ("0.1", 0.1), ("0.2", 0.2), ("0.3", 0.3))
    ),
)
_GRADIENTS: tuple[Line, ...] = (
    ("images without a gradient, %", "gradients", "zero_gradients", None, 100),
    ("difference from finite differences, %", "gradients", "finite_difference", None, 100),
    ("right under random changes of 0.1, %", "gradients", "noise_accuracy", None, 100),
    ("right under PGD of 0.1, %", "gradients", "pgd_accuracy", None, 100),
    ("right under PGD without a bound, %", "gradients", "unbounded_accuracy", None, 100),
)
_PAIRS: tuple[Line, ...] = (
    ("both digits right, %", "overlap", "both", None, 100),
    ("digits right, %", "overlap", "each", None, 100),
    ("reconstruction error", "overlap", "reconstruction_error", None, 10_000),
    ("of a black picture", "overlap", "blank_error", None, 10_000),
)


def _table(found: Sequence[Row], lines: Sequence[Line]) -> list[str]:
    networks = _networks(found)
    text = [f"| | {' | '.join(networks)} |", f"| --- |{' ---: |' * len(networks)}"]
    for line in lines:
        cells = []
        for network in networks:
            values = _of_each_seed(found, network, line)
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} ({len(values)})" if values else "–")
        text.append(f"| {line[0]} | {' | '.join(cells)} |")
    epochs = {
        network: sorted({(row["seed"], row["epochs"]) for row in found if row["network"] == network})
        for network in networks
    }
    cells = [", ".join(str(count) for _, count in epochs[network]) for network in networks]
    return [*text, f"| epochs of each seed | {' | '.join(cells)} |"]


def _differences(found: Sequence[Row], lines: Sequence[Line]) -> list[str]:
    """How much each network lies over `capsnet`, with 95 % intervals."""
    networks = _networks(found)
    others = [name for name in networks if name != _REFERENCE]
    text = [f"| | {' | '.join(others)} |", f"| --- |{' ---: |' * len(others)}"]
    for line in lines:
        values = {network: _of_each_seed(found, network, line) for network in networks}
        gains = differences({network: values[network] for network in networks if values[network]}, _REFERENCE)
        text.append(f"| {line[0]} | {' | '.join(gains.get(network, '–') for network in others)} |")
    return text


def _networks(found: Sequence[Row]) -> list[str]:
    return [name for name in NETWORKS if any(row["network"] == name for row in found)]


def _of_each_seed(found: Sequence[Row], network: str, line: Line) -> list[float]:
    """The mean of each seed of a network over the rows that a line of a table is about."""
    _, suite, change, strength, factor = line
    by_seed: dict[int, list[float]] = {}
    for row in found:
        if (
            (row["network"], row["suite"]) == (network, suite)
            and change in (None, row["change"])
            and (strength is None or abs(row["strength"] - strength) < 1e-9)
        ):
            by_seed.setdefault(row["seed"], []).append(factor * float(row["accuracy"]))
    return [statistics.mean(by_seed[seed]) for seed in sorted(by_seed)]


_KINDS = {
    "rotation": "degrees",
    "shift": "share of the side",
    "FGSM": "largest change of a value in [0, 1]",
    "PGD": "largest change of a value in [0, 1]",
}


def picture(single: Sequence[Row]) -> bytes:
    """Mean accuracies over the seeds against the strength of rotation, shift and attacks, a line for each network."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {kind: {} for kind in _KINDS}
    for kind in _KINDS:
        for network in NETWORKS:
            by_strength: dict[float, list[float]] = {}
            for row in single:
                if row["network"] == network and (row["suite"] == "clean" or row["change"] == kind):
                    by_strength.setdefault(row["strength"], []).append(100 * float(row["accuracy"]))
            if by_strength:
                strengths = sorted(by_strength)
                curves[kind][network] = strengths, [statistics.mean(by_strength[strength]) for strength in strengths]
    return png(strength_curves(curves, _KINDS))


if __name__ == "__main__":
    main()
