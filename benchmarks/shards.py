"""Training on packed images against training in memory, with the peak memory of each; writes CSV files.

    python benchmarks/shards.py --images 2000000
    python benchmarks/shards.py --kills 3

Generated images of 32x32 pixels are written as WebDataset tar files, packed by `dualcaps data pack`, and trained on for
one epoch, each in a process of its own. For comparison as many steps are trained on images in memory. The network is
small, so that reading has to keep up with a fast consumer.

With `--kills` a training on the packed images is killed within its epoch and resumed so often, and has to see every
image exactly once: the network adds up a hash of each image and its square in buffers that are part of its weights.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Results
from PIL import Image
from torch import nn

from dualcaps import ImageDataset, ImageSplit, TrainConfig, fit, load_data, wrap_module
from dualcaps.inference import choose_device

CLASSES, SIDE = 10, 32
TAR_IMAGES = 20_000
HELD_OUT = 0.001  # for validation, and as much for the test
COUNTED_RUN, COUNTED_MINUTES = "run-counted", 0.2  # between checkpoints


def main() -> None:
    """Generate, pack, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "shards")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--train", choices=("packed", "memory", "counted"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train == "counted":
        train_counted(options.folder)
        return
    if options.train:
        train(options.train, options.folder)
        return
    tars, packed = options.folder / "tars", options.folder / "packed"
    if not packed.exists():
        generate(tars, options.images)
    case = f"{options.images:,} images {SIDE}x{SIDE}x3"
    if options.kills:
        kill_and_resume(options.folder, options.kills)
        return
    if not packed.exists():
        held_out = ["--validation", str(HELD_OUT), "--test", str(HELD_OUT)]
        command = [sys.executable, "-m", "dualcaps", "data", "pack", str(tars), str(packed), *held_out]
        seconds, memory, _ = measured(command)
        packing = Results("packing", options.out, choose_device("cpu"))  # kept when only training is measured again
        packing.add(case, "data pack", "packing speed", options.images / seconds, "images/s")
        packing.add(case, "data pack", "peak memory", memory, "MB")
    results = Results("shards", options.out, choose_device("cpu"))
    speeds: dict[str, list[float]] = {"packed": [], "memory": []}
    memories: dict[str, list[float]] = {"packed": [], "memory": []}
    for _ in range(options.rounds):
        for how in speeds:
            command = [sys.executable, __file__, "--train", how, "--folder", str(options.folder)]
            _, memory, said = measured(command)
            speeds[how].append(float(said.split()[-1]))
            memories[how].append(memory)
    for measure, unit, found in (("training speed", "images/s", speeds), ("peak memory", "MB", memories)):
        for how, values in found.items():
            results.add_median(case, how, measure, values, unit)


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak memory in MB, and the output of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1000, said


def generate(folder: Path, images: int) -> None:
    """Write tar files of noisy images whose colours tell their class."""
    folder.mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        pool.starmap(_tar, [(folder, number, images) for number in range(-(-images // TAR_IMAGES))])


def _tar(folder: Path, number: int, images: int) -> None:
    random = np.random.default_rng(number)
    colours = np.random.default_rng(1_000_003).integers(64, 192, (CLASSES, 3, 1, 1))
    file = folder / f"train-{number:06d}.tar"
    first, end = number * TAR_IMAGES, min(images, (number + 1) * TAR_IMAGES)
    if file.exists():
        return
    with tarfile.open(file.with_suffix(".draft"), "w", format=tarfile.USTAR_FORMAT) as archive:
        for image in range(first, end):
            label = int(random.integers(CLASSES))
            pixels = (colours[label] + random.integers(-64, 64, (3, SIDE, SIDE))).astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(encoded, "BMP")
            for suffix, content in (("bmp", encoded.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{image:09d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    file.with_suffix(".draft").rename(file)


class CountingNetwork(nn.Module):
    """A small network that adds up a hash, its square and the number of the images that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small_network()
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits."""
        if self.training:
            self.seen += hashes((images.detach() * 255).round().to(torch.uint8))
        return self.layers(images)


def hashes(images: torch.Tensor) -> torch.Tensor:
    """The sum of the images' hashes, of their squares, and their number; by integers that wrap around."""
    factors = torch.randint(-(2**62), 2**62, (SIDE * SIDE * 3,), generator=torch.Generator().manual_seed(0))
    values = (images.flatten(1).long() * factors).sum(1)
    return torch.stack([values.sum(), values.square().sum(), torch.tensor(len(values))])


def small_network() -> nn.Module:
    """Two convolutions, faster than any network of this package."""
    layers = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(32, CLASSES))


def train_counted(folder: Path) -> None:
    """Train an epoch, or what is left of it; compare the hashes seen with those of all images."""
    data = load_data(folder / "packed")
    torch.manual_seed(0)
    network = CountingNetwork()
    model = wrap_module(network, data.image_shape, CLASSES)
    config = TrainConfig(
        epochs=1,
        seed=0,
        compile="never",
        precision="float32",
        augment="none",  # so that images are trained on as they are
        checkpoint_minutes=COUNTED_MINUTES,
    )
    fit(model, data, config, out=folder / COUNTED_RUN, resume=True, pictures=False)
    seen, wanted = network.seen, sum(hashes(piece) for piece in data.train.pieces())
    print(f"seen {seen[2]:,} of {len(data.train):,} images; every one exactly once: {bool((seen == wanted).all())}")
    sys.exit(not (seen == wanted).all())


def kill_and_resume(folder: Path, kills: int) -> None:
    """Kill a training some seconds after a checkpoint, several times, and let it end."""
    shutil.rmtree(folder / COUNTED_RUN, ignore_errors=True)
    command = [sys.executable, __file__, "--train", "counted", "--folder", str(folder)]
    checkpoint, before = folder / COUNTED_RUN / "checkpoint.safetensors", 0
    for number in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            if process.poll() is not None:
                sys.exit(f"the training ended before kill {number + 1}, with {process.returncode}: use more --images")
            time.sleep(0.1)
        time.sleep(20 * COUNTED_MINUTES)
        process.kill()
        process.wait()
        before = checkpoint.stat().st_mtime_ns
        print(f"killed {number + 1} times, the last time a third of the way to the next checkpoint", flush=True)
    sys.exit(subprocess.run(command, check=False).returncode)


def train(how: str, folder: Path) -> None:
    """Train an epoch and print its speed."""
    data = load_data(folder / "packed")
    if how == "memory":
        parts = {name: getattr(data, name) for name in ("validation", "test")}
        train_images = torch.cat(list(data.train.pieces()))
        data = ImageDataset("memory", ImageSplit(train_images, data.train.labels), **parts, classes=data.classes)
    torch.manual_seed(0)
    model = wrap_module(small_network(), data.image_shape, CLASSES)
    config = TrainConfig(epochs=1, seed=0, compile="never", precision="float32", checkpoint_minutes=60)
    run = folder / f"run-{how}-{os.getpid()}"
    result = fit(model, data, config, out=run, pictures=False)
    shutil.rmtree(run)
    print(result.history[-1]["images_per_second"])


if __name__ == "__main__":
    main()
