"""What several test files share: small images of three patterns, and training without pictures."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

SHAPES = ("across", "down", "slanted")


def draw_shape(kind: int, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """A grey image of one of three patterns that are easy to tell apart, with noise."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    pattern = (rows // 2 % 2, columns // 2 % 2, (rows + columns) // 3 % 2)[kind % 3]
    return (pattern * 200 + random.integers(0, 55, size)).astype(np.uint8)


def write_shapes(folder: Path, size: tuple[int, int] = (12, 12), *, each: int = 12) -> Path:
    """Write three classes of grey images, twelve of each, into a folder."""
    random = np.random.default_rng(0)
    for kind, name in enumerate(SHAPES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(draw_shape(kind, size, random)).save(folder / name / f"{number:02}.png")
    return folder


def skip_pictures(patch: pytest.MonkeyPatch) -> None:
    """Write placeholders for a training's pictures, whose drawing takes most of the time of a tiny run."""
    from dualcaps.training import callbacks

    def write_placeholder(self: callbacks.Pictures, state: callbacks.TrainingState, name: str, draw: object) -> None:
        callbacks.write_bytes(state.run / name, b"not drawn")

    patch.setattr(callbacks.Pictures, "_draw", write_placeholder)


def import_timm() -> ModuleType:
    """The library; beside a CPU build of torch, PyPI's torchvision is imported only once its operators are declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(20):
        try:
            return pytest.importorskip("timm")
        except RuntimeError as error:
            if (missing := re.search(r"operator torchvision::(\w+) does not exist", str(error))) is None:
                raise
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
                del sys.modules[name]
    raise AssertionError("torchvision cannot be imported")


needs_exporter = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="older exporters do not take these networks"
)
