"""README and docs: every command and code block runs, with fewer epochs and images; links and options exist."""

import dataclasses
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpus
import numpy as np
import pytest
import sklearn.datasets
from browser import start_chromium
from PIL import Image
from sklearn.utils import Bunch
from support import import_timm, skip_pictures, write_shapes
from test_sets import norb_files, write_coil

from dualcaps import cli, registry
from dualcaps.study.experiments import experiments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ALL_COMMANDS = ("bench", "data", "demo", "evaluate", "explain", "export", "models", "predict", "report", "reproduce")
ALL_COMMANDS = (*ALL_COMMANDS, "robustness", "serve", "train")


def code_blocks(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if language in languages]


def commands_of(page: str) -> list[list[str]]:
    lines = "\n".join(code_blocks(page, "bash", "sh")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


WITH_COMMANDS = [page for page in NAMES if any(command[0] == "dualcaps" for command in commands_of(page))]
WITH_PYTHON = [page for page in NAMES if code_blocks(page, "python")]


@pytest.fixture
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set `digits` has 300 of its 1,797 images."""
    digits: Any = sklearn.datasets.load_digits()
    fewer = Bunch(images=digits.images[:300], data=digits.data[:300], target=digits.target[:300])

    def load(*, return_X_y: bool = False) -> Any:  # noqa: N803
        return (fewer.data, fewer.target) if return_X_y else fewer

    monkeypatch.setattr("sklearn.datasets.load_digits", load)


@pytest.fixture
def fewer_networks(own_registry: None) -> None:
    """The experiment `attention` has two of its five networks."""
    card = experiments()["attention"]
    entry = registry.EXPERIMENTS["attention"]
    smaller = dataclasses.replace(card, networks=card.networks[:2])
    registry.EXPERIMENTS["attention"] = dataclasses.replace(entry, value=lambda: smaller)


@pytest.fixture
def servers_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dualcaps serve` and `dualcaps demo` load their runs and end."""
    pytest.importorskip("uvicorn")
    monkeypatch.setattr("uvicorn.run", lambda app, **options: None)
    closed = SimpleNamespace(close=lambda verbose: None)
    monkeypatch.setattr("dualcaps.serve.demo.build_demo", lambda subjects, names: closed)
    monkeypatch.setattr("dualcaps.serve.demo.launch", lambda demo, host, port: f"http://{host}:7860")

    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("dualcaps.cli.demo.threading", SimpleNamespace(Event=Interrupted))


@pytest.fixture
def small_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named data sets in their official forms, with few images."""
    random = np.random.default_rng(0)
    files = {f"{part}-images-idx3-ubyte": random.integers(0, 256, (40, 28, 28), np.uint8) for part in ("train", "t10k")}
    files |= {f"{part}-labels-idx1-ubyte": (np.arange(40) % 10).astype(np.uint8) for part in ("train", "t10k")}
    folder = tmp_path / "sets"
    for name in ("mnist", "fashion-mnist"):
        (folder / name).mkdir(parents=True)
        for file, array in files.items():
            (folder / name / file).write_bytes(corpus.idx_bytes(array))
    batches = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    (folder / "cifar-10").mkdir()
    cifar = corpus.tar_gz({name: corpus.cifar_record(20) for name in batches})
    (folder / "cifar-10" / "cifar-10-binary.tar.gz").write_bytes(cifar)
    (folder / "smallnorb").mkdir()
    for name, content in norb_files(packed=False)[0].items():
        (folder / "smallnorb" / name).write_bytes(content)
    write_coil(folder)
    monkeypatch.setenv("DUALCAPS_DATA", str(folder))


@pytest.fixture(scope="session")
def photos_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a narrow `da-capsnet-r` on a folder of images."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        skip_pictures(patch)
        write_shapes(folder / "photos", each=90)
        short = ("--epochs", "1", "--width", "8")
        cli.main([*("train", str(folder / "photos")), *short, "--out", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def files_of_the_pages(
    run: Path, photos_run: Path, shapes: Path, run_cli: Callable, small_data_sets: None
) -> Callable[[str], None]:
    """Make the images and runs that a page takes for granted."""

    def make(page: str) -> None:
        write_shapes(Path("photos"))
        Path("photos/across").rename("photos/cat")
        Path("photos/cat/01.png").rename("photos/cat/001.png")
        shutil.copytree(shapes, "other-photos")
        shutil.copytree("photos", "birds")
        shutil.copytree("photos/cat", "new")
        for name in ("photo.png", "photo.jpg", "snapshot.jpg", "digit.png", "a.jpg", "b.png"):
            Image.open("photos/cat/001.png").save(name)
        Path("examples").symlink_to(ROOT / "examples")
        made = [command[command.index("--out") + 1] for command in commands_of(page) if "--out" in command]
        for name in ("first", "photos", "a", "b", "digits-da-capsnet-seed0"):
            if f"runs/{name}" not in made:
                shutil.copytree(photos_run if name == "photos" else run, f"runs/{name}")
        text = (ROOT / page).read_text(encoding="utf-8")
        if "runs/norb" in text:
            small = ("--model", "capsnet", "--width", "8", "--epochs", "1", "--no-decoder")
            assert run_cli("train", "smallnorb", *small, "--out", "runs/norb").code == 0
        if "resnet18.safetensors" in text:
            timm = import_timm()
            from safetensors.torch import save_file

            save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_digits", "fewer_networks", "no_pictures", "servers_that_end")
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_work_in_their_order(
    page: str,
    run_cli: Callable,
    run: Path,
    files_of_the_pages: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    files_of_the_pages(page)
    shutil.copytree(run, tmp_path / "models" / "da-capsnet.fashion-mnist")
    monkeypatch.setenv("DUALCAPS_MODELS", str(tmp_path / "models"))
    reproduced = False
    for command in commands_of(page):
        if command[0] != "dualcaps" or "bench" in command:  # minutes; tests/cli/test_bench.py runs it
            continue
        if "reproduce" in command and not {"--list", "--plan"} & {*command}:
            if reproduced:
                command = [*command, "--plan"]
            else:  # in processes of its own, with images that are fewer and smaller
                kept = [word for word in command[:2] if not word.startswith("--")]
                command = [*kept, "attention", "--datasets", "photos/", "--seeds", "1", "--protocols", "clean"]
                command += ["--epochs", "1", "--jobs", "2"]
            reproduced = True
        if "train" in command:
            command = made_short(command)
        said = run_cli(*command[1:])
        assert said.code == 0, (command, said.err)
        assert said.out or said.err, command


def made_short(command: list[str]) -> list[str]:
    """The training with one epoch, and where nothing else determines the layers, a narrow network."""
    if "--epochs" in command:
        place = command.index("--epochs")
        command = command[:place] + command[place + 2 :]
    narrow = [] if {"--plugin", "--trunk"} & {*command} else ["--width", "8"]
    return [*command, "--epochs", "1", *narrow]


@pytest.mark.parametrize("page", NAMES)
def test_other_programs_are_called_with_what_exists(page: str):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *arguments in commands_of(page):
        if program == "make":
            assert {*arguments} <= {*targets}, arguments
        elif program == "pip":
            for wanted in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
                assert {*wanted.split(",")} <= {*extras}, arguments
        elif program == "docker":
            copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
            assert all((ROOT / name).exists() for names in copied for name in names.split())
        else:
            assert program in ("dualcaps", "curl"), program


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_requests_of_the_pages_are_answered(run: Path, files_of_the_pages: Callable[[str], None]):
    files_of_the_pages("docs/deployment.md")
    commands = [command for page in NAMES for command in commands_of(page) if command[0] == "curl"]
    assert commands
    with served(run) as address:
        for command in commands:
            sent = [word.replace("http://127.0.0.1:8000", address) for word in command]
            answer = subprocess.run([*sent, "--silent", "--fail"], capture_output=True, text=True, check=True)
            assert '"class"' in answer.stdout


@contextmanager
def served(run: Path) -> Iterator[str]:
    """A service of a run in a thread; its address."""
    uvicorn = pytest.importorskip("uvicorn")
    from dualcaps import load_model
    from dualcaps.serve.http import build_service

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(build_service(load_model(run)), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_digits", "own_registry", "no_pictures")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names: dict[str, Any] = {}
    shutil.copytree(run, "FOLDER")
    for block in code_blocks(page, "python"):
        exec(re.sub(r"epochs=\d+", "epochs=1", block), names)
    if "lengths" in names:
        assert names["lengths"].shape == (60, 10)


def test_every_option_and_command_that_the_pages_name_exists(run_cli: Callable):
    words = set()
    for command in ALL_COMMANDS:
        actions = (
            [("data", action) for action in ("list", "check", "get", "show")] if command == "data" else [(command,)]
        )
        for action in actions:
            words |= {*re.findall(r"--[a-z][\w-]*", run_cli(*action, "--help").out)}
    for page in NAMES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for code in re.findall(r"`(dualcaps [^`]+)`", text):
            assert code.split()[1] in (*ALL_COMMANDS, "COMMAND", "--help"), (page, code)
        for code in re.findall(r"`(--[^`]+)`", text):
            named = {*re.findall(r"--[a-z][\w-]*", code)}
            assert named <= words | {"--help"}, (page, code)


def test_every_link_and_picture_of_the_pages_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
    with Image.open(ROOT / "docs/images/fashion-mnist-reconstructions.png") as picture:
        assert picture.width > picture.height


def test_no_page_has_a_placeholder():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@", page.read_text(encoding="utf-8")), page


def test_the_file_maps_name_every_module():
    for page in ("README.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for module in (ROOT / "src/dualcaps").iterdir():
            if module.is_dir() and module.name != "__pycache__":
                assert f"  {module.name}/" in text
            elif module.suffix == ".py" and module.name not in ("__init__.py", "__main__.py"):
                assert f"  {module.name} " in text, (page, module.name)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody_else(tmp_path: Path):
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    built = subprocess.run([*map(str, build)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "create_model" in (site / "api.html").read_text(encoding="utf-8")
    with start_chromium() as browser:
        for width in (1280, 400):
            tab = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
            told: list[str] = []
            tab.on("console", lambda message, told=told: told.append(message.text))
            tab.on("request", lambda request, told=told: _tell_others(request.url, told))
            for page in sorted(site.glob("*.html")):
                if page.name == "404.html":  # written for the root of a server
                    continue
                tab.goto(page.as_uri())
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, (page.name, width)
            assert not told


def _tell_others(url: str, told: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        told.append(url)


def test_every_fault_of_the_table_has_its_test():
    rows = re.findall(r"`(tests/[\w/]+\.py)`: `(test_\w+)` \|$", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    assert len(rows) >= 30
    for file, test in rows:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}: no {test}"
