"""How to prepare smallNORB, decided on held-out toys; writes `results/smallnorb/tuning.csv`.

    python benchmarks/norb_tuning.py

`da-capsnet-r` of width 16 by the recipe `strong`, 10 epochs, both cameras as channels, standardised, mixup. Two toys of
each class take turns in being held out of the training images; the test images are not read. Stopped trainings are
resumed; a finished one has a row and is not trained again, on whatever machine.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from common import ROOT, read_rows, session_cells, write_rows

from dualcaps import ImageDataset, ImageSplit, create_model, fit, load_data
from dualcaps.runs.run import Run
from dualcaps.training.recipes import recipe

EPOCHS, WIDTH = 10, 16
HELD_OUT = (4, 9)  # of the toys 4, 6, 7, 8 and 9 of each class, which are the training images
CASES = {
    "48x48, crops of 32x32": (48, 32, "shift,mixup"),
    "48x48, crops of 32x32, erased": (48, 32, "shift,mixup,erase"),
    "64x64, crops of 48x48": (64, 48, "shift,mixup"),
    "96x96, crops of 80x80": (96, 80, "shift,mixup"),
}
"""Pixels of a side, of the crop's, and augmentation."""


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "smallnorb-tuning")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "smallnorb")
    options = parser.parse_args()
    file = options.out / "tuning.csv"
    for toy in HELD_OUT:
        for number, (case, (side, crop, augment)) in enumerate(CASES.items()):
            if any((row["case"], row["held_out"]) == (case, str(toy)) for row in read_rows(file)):
                continue
            data = hold_out(load_data("smallnorb", camera="stereo", image_size=(side, side)), toy)
            chosen = recipe("strong")
            training = dataclasses.replace(chosen.training, epochs=EPOCHS, augment=augment)
            switches = {**chosen.network, "width": WIDTH, "standardise": True, "crop": (crop, crop)}
            torch.manual_seed(0)
            model = create_model(chosen.model, data.image_shape, len(data.classes), **switches)
            folder = options.runs / f"{number}-toy{toy}"
            result = fit(model, data, training, out=folder, resume=True)
            accuracy = f"{result.test_accuracy:.6g}"
            row = {"case": case, "held_out": str(toy), "epochs": str(EPOCHS), "accuracy": accuracy}
            write_rows(file, [*read_rows(file), row | session_cells(Run.open(folder))])


def hold_out(data: ImageDataset, toy: int) -> ImageDataset:
    """The training images of a data set, with one toy of each class as the test images."""
    every = data.train + data.validation
    held = every.attributes["instance"] == toy

    def part(which: np.ndarray) -> ImageSplit:
        places = torch.from_numpy(np.flatnonzero(which))
        return ImageSplit(every.images[places], every.labels[places])

    last = np.isin(np.arange(len(every)), np.flatnonzero(~held)[-100:])  # the protocol `last` trains on both parts
    return dataclasses.replace(data, train=part(~held & ~last), validation=part(last), test=part(held))


if __name__ == "__main__":
    main()
