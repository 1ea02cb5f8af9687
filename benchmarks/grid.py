"""What the paper's whole grid costs: a few epochs of every network at every data set's size, the rest by counting.

Images are noise; sizes, shapes and batches are the paper's. COIL-20's epochs have 41 steps of 16 images,
too little for a GPU, so its networks are also trained several at once, each in a process of its own.
"""

import sys
import time

import torch
from common import Results, parse, place
from torch import multiprocessing

from dualcaps import create_model
from dualcaps.bench import our_training, random_split
from dualcaps.inference import choose_precision, evaluate

NETWORKS = ("cnn", "capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet")
# Training images, test images, shape, batch.
SETS = {
    "mnist": (60_000, 10_000, (1, 28, 28), 128),
    "fashion-mnist": (60_000, 10_000, (1, 28, 28), 128),
    "cifar-10": (50_000, 10_000, (3, 32, 32), 128),
    "svhn": (73_257, 26_032, (3, 32, 32), 128),
    "smallnorb": (24_300, 24_300, (3, 32, 32), 128),
    "coil-20": (648, 72, (3, 32, 32), 16),
}
PAPER_EPOCHS = 100
AT_ONCE = (1, 2, 4, 8)
EPOCHS_AT_ONCE = 20


def main() -> None:
    """Measure an epoch with its evaluation for each pair, then add up."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("grid", options.out, device)
    total = 0.0
    for name, (training, test, shape, batch) in SETS.items():
        shrink = 1 if device.type == "cuda" or name == "coil-20" else 50  # on a CPU only to see that it runs
        for network in NETWORKS:
            compiling, epoch = _epoch(network, training // shrink, test // shrink, shape, batch, device)
            seconds = compiling + PAPER_EPOCHS * epoch * shrink
            total += seconds
            results.add(f"{network} on {name}", f"{PAPER_EPOCHS} epochs", "time", seconds, "s, extrapolated")
    results.add("all networks, all sets", f"{PAPER_EPOCHS} epochs", "time", total / 60, "minutes, extrapolated")
    if device.type == "cuda":
        for at_once in AT_ONCE:
            started = time.perf_counter()
            workers = [
                multiprocessing.get_context("spawn").Process(target=_train_coil, args=(str(device),))
                for _ in range(at_once)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if any(worker.exitcode for worker in workers):
                sys.exit("a training process failed")
            rate = at_once * EPOCHS_AT_ONCE / (time.perf_counter() - started)
            results.add("da-capsnet on coil-20", f"{at_once} processes at once", "speed", rate, "epochs/s, with start")


def _epoch(
    network: str, training: int, test: int, shape: tuple[int, int, int], batch: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of the first epoch beyond an ordinary one, and of an ordinary one with its evaluation."""
    precision = choose_precision("auto", device)
    model = create_model(network, shape)
    epoch = our_training(model, random_split(shape, training, device), batch, precision, "always")
    held_out = random_split(shape, max(test, 1), device)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        epoch()
        evaluate(model, held_out, precision=precision)
        seconds.append(time.perf_counter() - started)
    ordinary = sorted(seconds[1:])[1]
    return max(seconds[0] - ordinary, 0.0), ordinary


def _train_coil(device: str) -> None:
    training, _, shape, batch = SETS["coil-20"]
    place = torch.device(device)
    part = random_split(shape, training, place)
    epoch = our_training(create_model("da-capsnet", shape), part, batch, "bfloat16", "always")
    for _ in range(EPOCHS_AT_ONCE):
        epoch()


if __name__ == "__main__":
    main()
