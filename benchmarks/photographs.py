"""`dualcaps train photos/` without options against two plain networks, on 3,000 made photographs in 12 classes.

A photograph is a real image on a real background: a garment of Fashion-MNIST (10 classes, each garment used once) or
an object of COIL-20 (2 classes, 72 views, so a view can be in training and test), tinted, turned by up to 25 degrees,
scaled to 30 to 70 % of the frame and placed anywhere on a piece of one of scikit-learn's two photographs, with noise,
as a JPEG file of 200 to 2,000 pixels a side. The made set is the same on every machine with the same Pillow.

The plain networks are trained on the same pixels and the same split, for at least as long as `dualcaps train` took,
at 32x32 and at the size that it chose: a BatchNorm CNN of 15 lines with Adam, and the packaged `cnn`.

    python benchmarks/photographs.py --controls resnet-r capsnet-r da-capsnet-r

trains by the recipe `photos` at the size and for the epochs that it chose, on as many seeds as wanted, and tells what
the network is worth beside the recipe. Stopped trainings are resumed.
Needs DUALCAPS_DATA with fashion-mnist and coil-20.
"""

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Results, train_run
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from dualcaps import (
    Evaluation,
    ImageDataset,
    Network,
    Result,
    TrainConfig,
    create_model,
    evaluate,
    fit,
    load_data,
    wrap_module,
)
from dualcaps.inference import choose_device, evaluate_run
from dualcaps.runs.run import Run

CHOSEN_SIZE, CHOSEN_EPOCHS = 128, 93  # by `dualcaps train photos/` when it was measured
COUNT, OBJECTS = 3_000, {"duck": "object 1", "cat": "object 4"}


def make_photographs(folder: Path, count: int = COUNT, seed: int = 0) -> Path:
    """Write the photographs, a sub-folder for each class."""
    random = np.random.default_rng(seed)
    garments = load_data("fashion-mnist")
    objects = load_data("coil-20", image_size=(128, 128), objects=20)
    backgrounds = [Image.fromarray(photo) for photo in load_sample_images().images]
    classes: dict[str, np.ndarray] = {}
    for label, name in enumerate(garments.classes):
        kept = garments.test.labels == label
        classes[name.lower().replace("/", "-").replace(" ", "-")] = garments.test.images[kept][:, 0].numpy()
    for name, number in OBJECTS.items():
        label = objects.classes.index(number)
        parts = (objects.train, objects.validation, objects.test)
        classes[name] = np.concatenate([part.images[part.labels == label][:, 0].numpy() for part in parts])
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    for name, pictures in classes.items():
        (draft / name).mkdir(parents=True)
        for number in range(count // len(classes)):
            photograph = _photograph(pictures[number % len(pictures)], backgrounds, random)
            photograph.save(draft / name / f"{number:03}.jpg", quality=85)
    draft.rename(folder)
    return folder


def _photograph(picture: np.ndarray, backgrounds: list[Image.Image], random: np.random.Generator) -> Image.Image:
    """One picture, its black background made transparent, on a piece of a photograph."""
    height, width = (round(200 * 10 ** random.uniform(0, 1)) for _ in range(2))
    width = min(max(width, height * 2 // 3), height * 3 // 2)
    background = backgrounds[random.integers(len(backgrounds))]
    room = random.uniform(0.3, 1) * min(background.width / width, background.height / height)
    left = random.uniform(0, background.width - room * width)
    top = random.uniform(0, background.height - room * height)
    box = (left, top, left + room * width, top + room * height)
    canvas = background.resize((width, height), Image.Resampling.BICUBIC, box)

    side = round(random.uniform(0.3, 0.7) * min(height, width))
    grey = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.fromarray(np.where(picture > 12, 255, 0).astype(np.uint8)).resize((side, side))
    angle = random.uniform(-25, 25)
    grey, mask = (image.rotate(angle, Image.Resampling.BICUBIC, expand=True) for image in (grey, mask))
    tint = random.uniform(0.4, 1, 3)
    coloured = np.asarray(grey, np.float32)[..., None] * tint
    place = (random.integers(0, max(1, width - grey.width)), random.integers(0, max(1, height - grey.height)))
    canvas.paste(Image.fromarray(coloured.astype(np.uint8)), tuple(map(int, place)), mask)
    noisy = np.asarray(canvas, np.float32) * random.uniform(0.7, 1.2) + random.normal(0, 6, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def batchnorm_cnn(channels: int, classes: int) -> nn.Module:
    """The usual small network."""
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def train_for(name: str, data: ImageDataset, seconds: float, runs: Path) -> tuple[Evaluation, Result]:
    """A plain network trained by Adam for at least so many seconds; the epoch is selected on the validation images."""
    size = data.image_shape[-1]
    out, epochs = runs / f"{name}-{size}", 3
    while True:
        how = TrainConfig(epochs=epochs, augment="shift,flip", batch_size=64, seed=0, compile="never")
        model = _plain(name, data)
        result = fit(model, data, how, out=out, resume=True)
        trained = sum(line["seconds"] for line in result.history)
        if trained >= seconds:
            return evaluate(model, data.test), result
        fastest = min(line["seconds"] for line in result.history)
        epochs += max(1, math.ceil((seconds - trained) / fastest))


def _plain(name: str, data: ImageDataset) -> Network:
    torch.manual_seed(0)
    channels, classes = data.image_shape[0], len(data.classes)
    if name == "cnn":
        return create_model("cnn", data.image_shape, classes)
    return wrap_module(batchnorm_cnn(channels, classes), data.image_shape, classes, name=name)


def main() -> None:
    """Make the photographs if they are not there, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=ROOT / "runs" / "photographs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "photographs-runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--only-make", action="store_true")
    parser.add_argument("--controls", nargs="+", metavar="NETWORK")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if not options.photos.is_dir():
        make_photographs(options.photos)
    if options.only_make:
        return
    if options.controls:
        train_controls(
            options.controls, options.seeds, options.photos, options.runs.with_name("photographs-controls"), options.out
        )
        return
    shutil.rmtree(options.runs, ignore_errors=True)
    results = Results("photographs", options.out, choose_device("auto"))
    started = time.perf_counter()
    command = [sys.executable, "-m", "dualcaps", "train", str(options.photos), "--out", str(options.runs / "default")]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    found, run = evaluate_run(options.runs / "default"), Run.open(options.runs / "default")
    size = run.model.image_shape[-1]
    add(results, f"dualcaps train photos/ ({run.model.name}, {size}x{size})", found.evaluation, run, seconds)
    for side in dict.fromkeys((32, size)):
        data = load_data(options.photos, image_size=(side, side))
        for name in ("batchnorm-cnn", "cnn"):
            evaluation, result = train_for(name, data, seconds, options.runs)
            trained = sum(line["seconds"] for line in result.history)
            add(results, f"{name}, {side}x{side}", evaluation, Run.open(result.run), trained)


def train_controls(networks: Sequence[str], seeds: int, photos: Path, runs: Path, out: Path) -> None:
    """Train networks by the recipe that `dualcaps train photos/` takes; compare them on the test images."""
    results = Results("photographs-controls", out, choose_device("auto"))
    for seed in range(seeds):
        for name in networks:
            folder = runs / f"{name}-seed{seed}"
            arguments = ["train", str(photos), "--recipe", "photos", "--model", name, "--seed", str(seed)]
            arguments += ["--width", "32", "--options", "grid=1"]  # the recipe's for its own network
            arguments += ["--image-size", str(CHOSEN_SIZE), str(CHOSEN_SIZE), "--epochs", str(CHOSEN_EPOCHS)]
            run = train_run(arguments, folder)
            seconds = sum(line["seconds"] for line in run.history)
            add(results, f"{name}, seed {seed}", evaluate_run(folder).evaluation, run, seconds)


def add(results: Results, candidate: str, evaluation: Evaluation, run: Run, seconds: float) -> None:
    """Add a network's test accuracy with its interval."""
    low, high = (100 * bound for bound in evaluation.interval)
    case = f"{run.training.epochs} epochs, {seconds / 60:.1f} minutes"
    accuracy = 100 * evaluation.accuracy
    results.add(case, candidate, "test accuracy", accuracy, "%", slowest=low, fastest=high, n=len(evaluation.labels))


if __name__ == "__main__":
    main()
