"""Export as a program of `torch.export`, to be run without this package."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualcaps.export.graphs import Classifier, compare, exporting, on_cpu
from dualcaps.models import Network
from dualcaps.runs.files import write_bytes

CAUTION = "a .pt2 file holds a pickle, which can run any code when it is loaded: load only files from your own disk"


def export_program(model: Network, file: Path, images: Tensor) -> float:
    """Write a network as a .pt2 file: uint8 images of its size to lengths and poses.

    Args:
        model: the network; it is moved to the CPU.
        file: the file to write.
        images: real images, uint8, to compare on.

    Returns:
        The largest difference between the network's outputs and the program's.

    Raises:
        ModelError: torch cannot export the network, or they differ by more than 1e-4; nothing is written then.
    """
    model, images = on_cpu(model, images)
    classifier = Classifier(model)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), exporting(str(file)):
        program = torch.export.export(classifier, (images[:1].repeat(2, 1, 1, 1),), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory(prefix="dualcaps-") as folder:
        draft = Path(folder) / "model.pt2"
        with exporting(str(file)):
            torch.export.save(program, draft)
            loaded = torch.export.load(draft).module()

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            with torch.no_grad():
                return [output.numpy() for output in loaded(*map(torch.from_numpy, inputs))]

        difference = compare(run, classifier, [images], str(file))
        write_bytes(file, draft.read_bytes())
    return difference
