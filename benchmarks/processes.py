"""One training in one process and in two on Fashion-MNIST: losses of 50 steps, and speed; writes a CSV file.

    python benchmarks/processes.py

float32, SGD at a rate at which the loss falls steadily (at 0.02 it jumps, which makes rounding grow), batches of 128
in all; the first 6,400 training images, an epoch of 50 steps.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import Results, parse

from dualcaps import Callback, ImageDataset, ImageSplit, TrainConfig, create_model, fit, load_data
from dualcaps.inference import choose_device
from dualcaps.training.callbacks import TrainingState

STEPS, BATCH, EPOCHS = 50, 128, 3
NETWORK = "capsnet"


class Losses(Callback):
    """Keep the mean loss of each step of all epochs."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_batch_end(self, state: TrainingState, images: int) -> None:  # noqa: ARG002
        """Keep the epoch's sum so far."""
        assert state.progress is not None
        self.sums.append(float(state.progress.loss))

    def steps(self) -> list[float]:
        """Mean losses, from the sums of each epoch."""
        before = [0.0 if step % STEPS == 0 else self.sums[step - 1] for step in range(len(self.sums))]
        return [(now - then) / BATCH for now, then in zip(self.sums, before, strict=True)]


def main() -> None:
    """Train in one process and in two; print and write."""
    if "--train" in sys.argv:
        train(Path(sys.argv[-1]))
        return
    options = parse(__doc__ or "")
    results = Results("processes", options.out, choose_device("cpu"))
    case = f"{NETWORK}, Fashion-MNIST, batch {BATCH}"
    found, speeds = {}, {}
    for _ in range(options.rounds):
        for processes, threads in ((1, 1), (2, 1), (1, 2)):
            found[processes, threads], speed = run(processes, threads)
            speeds.setdefault((processes, threads), []).append(speed)
    one, two = (found[processes, 1][:STEPS] for processes in (1, 2))
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    results.add(case, "2 processes against 1", "difference", difference, f"in the loss of {STEPS} steps, at most")
    results.add(case, "1 process", "loss", one[-1], f"in step {STEPS}")
    for (processes, threads), values in speeds.items():
        name = f"{processes} process{'es' * (processes > 1)} of {threads} thread{'s' * (threads > 1)}"
        results.add_median(case, name, "training speed", values, "images/s")


def run(processes: int, threads: int) -> tuple[list[float], float]:
    """Losses of each step, and images per second of the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--train", folder]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        kept = json.loads((Path(folder) / "losses.json").read_text())
        return kept["losses"], kept["speed"]


def train(folder: Path) -> None:
    """Train in this process, or with the others that torchrun started."""
    data = load_data("fashion-mnist")
    few = ImageSplit(data.train.images[: STEPS * BATCH], data.train.labels[: STEPS * BATCH], data.classes)
    held = ImageSplit(data.validation.images[:1000], data.validation.labels[:1000], data.classes)
    data = ImageDataset("few", few, held, held, data.classes, config=dataclasses.replace(data.config, source=""))
    torch.manual_seed(0)
    model = create_model(NETWORK, data.image_shape, len(data.classes))
    losses = Losses()
    config = TrainConfig(
        epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", lr=0.002, precision="float32", device="cpu", compile="never"
    )
    result = fit(model, data, config, out=folder / "run", quiet=True, callbacks=[losses], pictures=False)
    if losses.sums:
        speed = result.history[-1]["images_per_second"]
        (folder / "losses.json").write_text(json.dumps({"losses": losses.steps(), "speed": speed}))


if __name__ == "__main__":
    main()
