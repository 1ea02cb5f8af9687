"""What explanations, poses and rejection are worth on real runs: trains what is missing, writes `results/seeing/`.

    python benchmarks/seeing.py mnist fashion-mnist coil-20 smallnorb --seeds 3
    python benchmarks/seeing.py smallnorb --only probes

`da-capsnet`, `da-capsnet` with one routing iteration, whose couplings are uniform, and where viewpoints are known
`capsnet` are trained by the command line; stopped runs are resumed. Every number is a mean over the seeds with its 95 %
interval by Student's t.
"""

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from common import ROOT
from matplotlib.figure import Figure
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from dualcaps import ImageSplit, Network, load_data, load_model
from dualcaps.calibration import held_out_images
from dualcaps.explain.maps import explain, usable_maps
from dualcaps.explain.pose_space import pose_space, pose_space_figure
from dualcaps.explain.probes import probe_all
from dualcaps.explain.rejection import rejection_of, signals
from dualcaps.explain.scores import score_maps
from dualcaps.explain.sweep import across, seen_ranges, sweep, sweep_figure
from dualcaps.inference import predict, run_data
from dualcaps.models import Intermediates
from dualcaps.nn import to_unit_range
from dualcaps.plots import image_rows, png
from dualcaps.robustness.attacks import fgsm, pgd
from dualcaps.runs.files import write_bytes, write_csv
from dualcaps.runs.run import Run

NETWORKS = {
    "capsnet": ("--model", "capsnet"),
    "da-capsnet": ("--model", "da-capsnet"),
    "da-capsnet, 1 iteration": ("--model", "da-capsnet", "--iterations", "1"),
}
EPOCHS = {"mnist": 2, "fashion-mnist": 3, "coil-20": 25, "smallnorb": 4}
PROBED = ("coil-20", "smallnorb")
OTHERS = {"mnist": ("fashion-mnist", "digits", "noise"), "fashion-mnist": ("mnist", "digits", "noise")}
SIZES = (0.05, 0.1)  # of attacks, in units of the images' values
COMBINED = "combined"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", choices=EPOCHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=200, help="test images a run that maps are scored on")
    parser.add_argument("--attacked", type=int, default=500, help="test images a run that are attacked")
    steps = ("train", *MEASURES, "pictures")
    parser.add_argument("--only", nargs="+", choices=steps, default=steps, help="leave the other steps out")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeing")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "seeing")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images" / "seeing")
    options = parser.parse_args()
    for seed in range(options.seeds):
        for data in options.data:
            for network in options.networks:
                if "train" in options.only and (network != "capsnet" or data in PROBED):
                    train(data, network, seed, options.runs)
    for name, (measure, heading) in MEASURES.items():
        if name in options.only:
            for data in options.data:
                rows = summarise(measure(data, options))
                if rows:
                    write(options.out / f"{name}-{data}.csv", [*heading, "mean", "margin", "seeds"], rows)
    if "pictures" in options.only:
        for data in options.data:
            draw(data, options)


def train(data: str, network: str, seed: int, runs: Path) -> None:
    """Train a run, or resume it; a finished one is left as it is."""
    arguments = [*("train", data), *NETWORKS[network], "--epochs", str(EPOCHS[data]), "--seed", str(seed)]
    arguments += ["--out", str(folder(data, network, seed, runs)), "--resume"]
    subprocess.run([sys.executable, "-m", "dualcaps", *arguments], check=True)


def folder(data: str, network: str, seed: int, runs: Path) -> Path:
    """The folder of a run."""
    return runs / data / f"{network.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def finished(data: str, network: str, options: argparse.Namespace) -> Iterator[tuple[Run, Network]]:
    """The finished runs of a network."""
    for seed in range(options.seeds):
        path = folder(data, network, seed, options.runs)
        if (path / "result.json").is_file():
            yield Run.open(path), load_model(path)


Measured = Iterator[tuple[tuple[str, ...], float]]


def measure_maps(data: str, options: argparse.Namespace) -> Measured:
    """The scores of each kind of map."""
    for network in options.networks:
        for run, model in finished(data, network, options):
            split = run_data(run).test
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[: options.images]
            for kind, scores in score_maps(model, split.images[order], usable_maps(model)).items():
                for metric, score in scores._asdict().items():
                    yield (network, kind, metric, str(score.images)), score.mean
            print(f"maps of {run.path}: measured", flush=True)


def measure_rejection(data: str, options: argparse.Namespace) -> Measured:
    """How well each signal tells other images from test images; false alarms; attacks."""
    if data not in OTHERS:
        return
    for network in options.networks:
        for run, model in finished(data, network, options):
            rejection, split = rejection_of(run, model), run_data(run).test
            tested = split.images[held_out_images(run).others]
            known = signals(model, tested)
            yield (network, "test images", "false alarms", "", str(len(tested))), rejection.rejects(known).mean()
            scored = {**known, COMBINED: -rejection.smallest_tail(known)}
            for name, images in others(data, split.images[: options.attacked], split.labels, model):
                found = signals(model, images)
                count = str(len(images))
                yield (network, name, "rejected", "", count), rejection.rejects(found).mean()
                found = {**found, COMBINED: -rejection.smallest_tail(found)}
                for signal, values in found.items():
                    truth = np.repeat([0, 1], [len(scored[signal]), len(values)])
                    area = roc_auc_score(truth, np.concatenate([scored[signal], values]))
                    yield (network, name, "AUROC", signal, count), float(area)
            print(f"rejection by {run.path}: measured", flush=True)


def others(data: str, images: torch.Tensor, labels: torch.Tensor, model: Network) -> Iterator[tuple[str, torch.Tensor]]:
    """Images of none of the classes by name; of attacks those that change a right prediction."""
    for source in OTHERS[data]:
        if source == "noise":
            yield source, torch.rand(1_000, *images.shape[1:], generator=torch.Generator().manual_seed(0))
        else:
            yield source, load_data(source, image_size=tuple(images.shape[2:]), channels=images.shape[1]).test.images
    right = predict(model, images).argmax(dim=1) == labels[: len(images)]
    batch, truth = to_unit_range(images[right]), labels[: len(images)][right]
    for size in SIZES:
        attacks: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
            "FGSM": lambda x, y, size=size: fgsm(model, x, y, size),
            "PGD": lambda x, y, size=size: pgd(model, x, y, size),
            "PGD keeping the reconstruction": lambda x, y, size=size: pgd(
                model, x, y, size, reconstruction_weight=0.01
            ),
        }
        for name, attack in attacks.items():
            parts = zip(batch.split(100), truth.split(100), strict=True)
            changed = torch.cat([attack(part, wanted) for part, wanted in parts])
            successful = predict(model, changed).argmax(dim=1) != truth
            share = f"{name}, {size}, {100 * successful.float().mean():.0f} % successful" if len(truth) else name
            print(f"  {share}", flush=True)
            if successful.any():
                yield f"{name}, {size}", changed[successful]


def measure_probes(data: str, options: argparse.Namespace) -> Measured:
    """How well viewpoints are read from each representation."""
    if data not in PROBED:
        return
    for network in options.networks:
        for run, model in finished(data, network, options):
            for name, probe in probe_all(model, with_viewpoints(data, run)).items():
                for attribute, value in probe.values.items():
                    yield (network, name, attribute, str(probe.dimensions), str(probe.images)), value
            print(f"probes of {run.path}: measured", flush=True)


def with_viewpoints(data: str, run: Run) -> ImageSplit:
    """The test images; of COIL-20, which has seven a class, all images."""
    loaded = run_data(run)
    return loaded.train + loaded.validation + loaded.test if data == "coil-20" else loaded.test


def draw(data: str, options: argparse.Namespace) -> None:
    """Pictures of `da-capsnet` of seed 0: maps, poses, and the sweep of one image's pose."""
    for run, model in list(finished(data, "da-capsnet", options))[:1]:
        split = run_data(run).test
        chosen = [int((split.labels == label).nonzero()[0]) for label in split.labels.unique()[:6]]
        images = to_unit_range(split.images[chosen])
        with torch.no_grad():
            output = model(images)
        predicted = output.lengths.argmax(dim=1)
        rows = {"image": images, **{kind: explain(model, images, predicted, kind) for kind in usable_maps(model)}}
        drawn = {name: _over(images, row) for name, row in rows.items()}
        titles = [model.classes[label] for label in predicted.tolist()]
        figures = {
            "maps": image_rows(drawn, titles),
            "poses": pose_space_figure(pose_space(model, with_viewpoints(data, run)), model.classes, most=3),
            "routing": routing_figure(model, images[:1]),
        }
        if model.decoder is not None:
            label = int(predicted[0])
            values = across(seen_ranges(model, split)[label])
            changed = sweep(model, output.poses[0], label, values)
            figures["sweep"] = sweep_figure(changed, values, f"{data}: {model.classes[label]}")
        for name, figure in figures.items():
            file = options.pictures / f"{data}-{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, png(figure))
            print(file, flush=True)


def routing_figure(model: Network, image: torch.Tensor) -> Figure:
    """The couplings of the three longest classes over the grid, and all lengths, after each routing iteration."""
    with torch.no_grad():
        found = model(image, intermediates=True)
    assert isinstance(found, Intermediates)
    rows, columns = found.features.shape[2:]
    longest = found.lengths[0].topk(3).indices.tolist()
    steps = found.iterations
    most = max(float(step.couplings[0, longest].max()) for step in steps)
    figure = Figure((2.2 * (len(steps) + 1), 8), layout="constrained")
    axes = figure.subplots(4, len(steps) + 1)
    axes[0, 0].imshow(image[0].mean(dim=0), cmap="gray")
    axes[0, 0].set_title("image")
    for place, label in enumerate(longest):
        for number, step in enumerate(steps):
            axes[place, number + 1].imshow(step.couplings[0, label].reshape(rows, columns), vmin=0, vmax=most)
            axes[place, number + 1].set_title(f"{model.classes[label]}, iteration {number + 1}", fontsize=9)
    for number, step in enumerate(steps):
        lengths = step.parents[0].norm(dim=1)
        colours = ["C1" if label in longest else "C0" for label in range(len(lengths))]
        axes[3, number + 1].barh(range(len(lengths)), lengths, color=colours)
        axes[3, number + 1].set(xlim=(0, 1), title="lengths")
        axes[3, number + 1].invert_yaxis()
        axes[3, number + 1].set_yticks(range(len(lengths)), model.classes if number == 0 else [""] * len(lengths))
    for ax in axes[:, 0][1:]:
        ax.set_visible(False)
    for ax in axes[:3].flat:
        ax.set_axis_off()
    return figure


def _over(images: torch.Tensor, maps: torch.Tensor) -> np.ndarray:
    """Images [N, H, W, 3] in grey below maps: red speaks for the class, blue against it."""
    grey = images.mean(dim=1)
    if maps.ndim == 4:
        return grey.unsqueeze(-1).expand(-1, -1, -1, 3).numpy()
    strength = maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
    red, blue = strength.clamp(min=0), (-strength).clamp(min=0)
    base = 0.6 * grey
    return torch.stack([base + red, base, base + blue], dim=-1).clamp(0, 1).numpy()


MEASURES: dict[str, tuple[Callable[[str, argparse.Namespace], Measured], Sequence[str]]] = {
    "maps": (measure_maps, ("network", "map", "measure", "images")),
    "rejection": (measure_rejection, ("network", "other images", "measure", "signal", "images")),
    "probes": (measure_probes, ("network", "from", "attribute", "numbers", "images")),
}


def summarise(measured: Measured) -> list[list[str]]:
    """Mean and half the 95 % interval over the seeds, for each key; the number of images may differ by seed."""
    found: dict[tuple[str, ...], list[float]] = {}
    images: dict[tuple[str, ...], set[str]] = {}
    for key, value in measured:
        found.setdefault(key[:-1], []).append(value)
        images.setdefault(key[:-1], set()).add(key[-1])
    rows = []
    for key, values in found.items():
        margin = math.nan
        if len(values) > 1:
            margin = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        counts = sorted(map(int, images[key]))
        shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        rows.append([*key, shown, f"{statistics.fmean(values):.4f}", f"{margin:.4f}", str(len(values))])
    return rows


def write(file: Path, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(file, heading, rows)
    print(file, flush=True)


if __name__ == "__main__":
    main()
