"""Shared fixtures; shapes and types are checked at run time in tests only."""

import os
import shutil

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores, with the processes that they start
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

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
import pytest  # noqa: E402
from support import skip_pictures, write_shapes  # noqa: E402

from dualcaps import DataError, TrainConfig, create_model, fit, load_data, registry  # noqa: E402
from dualcaps.data.sources import DataSet  # noqa: E402

hypothesis.settings.register_profile("dualcaps", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("dualcaps")


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """Uninitialised tensors hold NaN, so a result that reads one is caught."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files need not survive a power cut; writing them through takes a fifth of the time of a short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each test runs in a folder of its own and finds no data but its own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("DUALCAPS_DATA", raising=False)
    monkeypatch.delenv("DUALCAPS_MODELS", raising=False)
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


@pytest.fixture(scope="session", autouse=True)
def memory_is_not_kept() -> Iterator[None]:
    """Commands that are run in this process do not change how it takes memory, which some tests measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualcaps.cli.keep_memory", lambda: False)
        yield


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


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Path:
    """Three classes of twelve grey 12x12 images."""
    return write_shapes(tmp_path / "shapes")


@pytest.fixture
def one_thread():
    """Sums of one thread are added in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process draw no pictures."""
    skip_pictures(monkeypatch)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images `shapes` and the finished run `run`, trained on them; not to be changed."""
    folder = tmp_path_factory.mktemp("shared")
    write_shapes(folder / "shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        skip_pictures(patch)
        data = load_data(folder / "shapes")
        torch.manual_seed(0)
        config = TrainConfig(epochs=2, precision="float32", device="cpu")
        fit(create_model("capsnet", data.image_shape, 3), data, config, out=folder / "run", quiet=True)
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
