"""The commands of the README work as written, with fewer epochs and images; so does the Python of the pages."""

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
from PIL import Image
from sklearn.utils import Bunch

from dualcaps import registry
from dualcaps.study.experiments import experiments

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/quickstart.md"]


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set `digits` has 300 of its 1,797 images."""
    digits: Any = sklearn.datasets.load_digits()
    fewer = Bunch(images=digits.images[:300], target=digits.target[:300])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: fewer)


@pytest.fixture
def fewer_networks(own_registry: None) -> None:
    """The experiment `attention` has two of its five networks."""
    card = experiments()["attention"]
    entry = registry.EXPERIMENTS["attention"]
    smaller = dataclasses.replace(card, networks=card.networks[:2])
    registry.EXPERIMENTS["attention"] = dataclasses.replace(entry, value=lambda: smaller)


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_digits", "fewer_networks", "no_pictures")
def test_the_commands_of_the_readme_work_in_their_order(
    run_cli: Callable, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shapes_folder.rename("photos")
    Path("photos/across").rename("photos/cat")
    Path("photos/cat/01.png").rename("photos/cat/001.png")
    Path("examples").symlink_to(ROOT / "examples")
    lines = "\n".join(code_blocks("README.md", "bash")).splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("dualcaps ")]
    assert len(commands) >= 8
    for command in commands:
        if {"fashion-mnist", "cifar-10", "bench", "demo", "serve"} & {*command}:
            continue  # files that are not everywhere; minutes, and tested on its own; endless
        if "reproduce" in command:  # in processes of its own, with images that are fewer and smaller
            command = [word.replace("digits", "photos") for word in command]
            command += ["--seeds", "1", "--protocols", "clean", "--jobs", "2"]
        if "--epochs" in command:
            command[command.index("--epochs") + 1] = "1"
        elif "train" in command:
            command += ["--epochs", "1"]
        said = run_cli(*command[1:])
        assert said.code == 0, (command, said.err)
        assert said.out


@pytest.mark.usefixtures("fewer_digits")
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_the_pages_runs(page: str, capsys: pytest.CaptureFixture[str]):
    (block,) = code_blocks(page, "python")
    names: dict[str, object] = {}
    exec(block.replace("epochs=10", "epochs=1"), names)
    assert "runs/digits-da-capsnet-seed0" in capsys.readouterr().out
    assert names["lengths"].shape == (60, 10)


def test_every_link_and_picture_of_the_pages_exists():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
    with Image.open(ROOT / "docs/images/fashion-mnist-reconstructions.png") as picture:
        assert picture.width > picture.height


def test_no_page_has_a_placeholder():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"@[A-Z]+@", page.read_text(encoding="utf-8")), page


def test_the_file_maps_name_every_module():
    for page in ("README.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for module in (ROOT / "src/dualcaps").iterdir():
            if module.is_dir() and module.name != "__pycache__":
                assert f"  {module.name}/" in text
            elif module.suffix == ".py" and module.name not in ("__init__.py", "__main__.py"):
                assert f"  {module.name} " in text, (page, module.name)
