"""Shared fixtures; shapes and types are checked at run time in tests only."""

import os

import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

install_import_hook(
    [
        # Not routing as a whole: Triton's interpreter reads its kernels' source, and finds no decorated ones.
        *(f"dualcaps.routing.dynamic.{module}" for module in ("eager", "implicit", "reference")),
        *(f"dualcaps.routing.{module}" for module in ("em", "inverted_attention", "self_attention", "self_routing")),
        *("dualcaps.routing.uniform", "dualcaps.nn", "dualcaps.losses", "dualcaps.data.augment"),
    ],
    "beartype.beartype",
)

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from dualcaps import DataError, registry  # noqa: E402
from dualcaps.data.sources import DataSet  # noqa: E402

hypothesis.settings.register_profile("dualcaps", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("dualcaps")


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """Uninitialised tensors hold NaN, so a result that reads one is caught."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each test runs in a folder of its own and finds no data but its own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("DUALCAPS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def no_network(data_set: DataSet, **options: object) -> None:
        raise DataError("no network in the tests")

    monkeypatch.setattr("dualcaps.data.load.fetch", no_network)


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Forget afterwards what a test's plug-ins registered."""
    registries = (
        *(registry.MODELS, registry.TRUNKS, registry.ROUTING_METHODS, registry.DATASETS, registry.EXPERIMENTS),
        registry._plugin_files,
    )
    before = [dict(entries) for entries in registries]
    yield
    for entries, kept in zip(registries, before, strict=True):
        entries.clear()
        entries.update(kept)


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run the command line as a user would, with wide output."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        from dualcaps import cli

        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


def draw_shape(kind: int, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """A grey image that shows one of three easily told patterns, with noise."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    pattern = (rows // 2 % 2, columns // 2 % 2, (rows + columns) // 3 % 2)[kind % 3]
    return (pattern * 200 + random.integers(0, 55, size)).astype(np.uint8)


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Path:
    """Three classes of twelve grey 12x12 images."""
    random = np.random.default_rng(0)
    folder = tmp_path / "shapes"
    for kind, name in enumerate(("across", "down", "slanted")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(draw_shape(kind, (12, 12), random)).save(folder / name / f"{number:02}.png")
    return folder
