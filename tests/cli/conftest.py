"""A trained run that the tests of several commands share."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_shape
from PIL import Image

from dualcaps import cli

from .messages import FAST


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images `shapes` and the finished run `run`, trained on them; not to be changed."""
    folder, random = tmp_path_factory.mktemp("shared"), np.random.default_rng(0)
    for kind, name in enumerate(("across", "down", "slanted")):
        (folder / "shapes" / name).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(draw_shape(kind, (12, 12), random))
            picture.save(folder / "shapes" / name / f"{number:02}.png")
    command = ("train", folder / "shapes", *FAST, "--model", "capsnet", "--out", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        cli.main([str(argument) for argument in command])
    return folder


@pytest.fixture
def shapes(shared: Path) -> Path:
    """Three classes of twelve grey 12x12 images, not to be changed."""
    return shared / "shapes"


@pytest.fixture
def run(shared: Path) -> Path:
    """A finished run of `shapes`, not to be changed."""
    return shared / "run"


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    """A finished run of `shapes` that may be changed."""
    return shutil.copytree(run, tmp_path / "run")
