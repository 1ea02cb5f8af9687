"""Own photographs at 224x224 from their files: training against the network alone, memory against their number.

    python benchmarks/large_images.py

The photographs are those of `photographs.py`. A training reads the files, augments them and trains by the recipe
`photos`; its rate is that of the last of its epochs. The network's own rate is that of training steps on random images
in memory, without augmentation. The two take turns. Memory is what the process holds beside mapped files, at its
highest, when it trains on a quarter of the photographs, on all, and once on two and a half times as many.
"""

import argparse
import contextlib
import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from common import ROOT, Results, in_fresh_process
from photographs import make_photographs

from dualcaps import load_data
from dualcaps.bench import our_training, random_split
from dualcaps.inference import choose_precision
from dualcaps.models import build_model
from dualcaps.runs.run import Run

CPU = torch.device("cpu")
NETWORK, SIDE, EPOCHS = "da-capsnet-r", 224, 2


def main() -> None:
    """Make the photographs, take the rates in turn, then the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", type=int, default=2_400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "large-images")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--own", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.own:
        print(own_rate(Run.open(options.own)))
        return
    all_photographs, some, many = (options.folder / name for name in ("all", "some", "many"))
    counts = {all_photographs: options.photographs, some: options.photographs // 4, many: options.photographs * 5 // 2}
    for folder, count in counts.items():
        if not folder.is_dir():
            make_photographs(folder, count)
    results = Results("large-images", options.out, CPU)
    case = f"{NETWORK} {SIDE}x{SIDE}x3"
    trained, alone, held = [], [], []
    for _ in range(options.rounds):
        rate, memory = train(all_photographs, options.folder / "run")
        trained.append(rate)
        held.append(memory)
        alone.append(in_fresh_process("large_images.py", ["--own", options.folder / "run"]))
    for name, rates in (("photographs from files", trained), ("network alone", alone)):
        results.add_median(case, name, "training speed", rates, "images/s")
    shares = [100 * rate / own for rate, own in zip(trained, alone, strict=True)]
    results.add_median(case, "of the network alone", "share", shares, "%")
    few = [train(some, options.folder / "run")[1] for _ in range(options.rounds)]
    for folder, values in ((some, few), (all_photographs, held)):
        results.add_median(case, f"{counts[folder]:,} photographs", "peak memory", values, "MB")
    results.add(case, f"{counts[many]:,} photographs", "peak memory", train(many, options.folder / "run")[1], "MB")


def train(photographs: Path, run: Path) -> tuple[float, float]:
    """Images per second of the last epoch, and the most megabytes held beside mapped files."""
    shutil.rmtree(run, ignore_errors=True)
    how = ["--recipe", "photos", "--model", NETWORK, "--epochs", str(EPOCHS), "--compile", "never"]
    command = [sys.executable, "-m", "dualcaps", "train", str(photographs), *how, "--image-size", str(SIDE), str(SIDE)]
    command += ["--out", str(run)]
    process, most = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            held = psutil.Process(process.pid).memory_info()
            most = max(most, (held.rss - held.shared) / 1e6)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return Run.open(run).history[-1]["images_per_second"], most


def own_rate(run: Run) -> float:
    """Images per second of training steps of the run's network on random images."""
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(run.model, trunk_weights=None))
    assert run.training.batch_size is not None
    count = len(load_data(run.data.source, image_size=run.model.image_shape[1:]).train)
    split = random_split(run.model.image_shape, count, CPU, run.model.num_classes)
    precision = choose_precision(run.training.precision, CPU)
    epoch = our_training(model, split, run.training.batch_size, precision, "never")
    epoch()  # warms up
    started = time.perf_counter()
    epoch()
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
