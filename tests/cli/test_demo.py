"""`dualcaps demo` up to its serving; what the page does is tested in tests/serve."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualcaps.cli.demo import last_finished

from .messages import assert_one_line


class Demo:
    closed = False

    def close(self, verbose: bool) -> None:
        self.closed = True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been served; the demo is interrupted at once, as by Ctrl-C."""
    calls: list[tuple[Any, ...]] = []

    def build_demo(subjects: list[Any], names: list[str]) -> Demo:
        calls.append((subjects, names, Demo()))
        return calls[-1][2]

    def launch(demo: Demo, host: str, port: int | None) -> str:
        calls.append((host, port))
        return "http://there/"

    def wait(self: threading.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dualcaps.serve.demo.require_gradio", lambda: None)
    monkeypatch.setattr("dualcaps.serve.demo.build_demo", build_demo)
    monkeypatch.setattr("dualcaps.serve.demo.launch", launch)
    monkeypatch.setattr("dualcaps.cli.demo.threading", type("Threading", (), {"Event": type("E", (), {"wait": wait})}))
    return calls


def test_runs_are_served_until_interrupted(run_cli: Callable, run: Path, served: list[tuple[Any, ...]]):
    said = run_cli("demo", run, "--compare", run, "--port", 7999)
    assert said.code == 0, said.err
    assert said.out == f"{run}, {run}: http://there/ (Ctrl-C ends the demo)\n"
    (subjects, names, demo), place = served
    assert [len(subject.images) for subject in subjects] == [3, 3]
    assert [name.partition(": ")[2] for name in names] == ["across", "down", "slanted"]
    assert place == ("127.0.0.1", 7999)
    assert demo.closed


def test_without_its_images_a_run_is_served_for_other_images(
    run_cli: Callable, run_copy: Path, shapes: Path, served: list[tuple[Any, ...]]
):
    config = run_copy / "config.json"
    config.write_text(config.read_text().replace(str(shapes), str(shapes) + "-moved"))
    said = run_cli("demo", run_copy)
    assert said.code == 0, said.err
    assert "its range cannot be computed" in said.err
    assert served[0][1] == []


def test_the_run_finished_last_is_taken(run_cli: Callable, run: Path, served: list[tuple[Any, ...]], tmp_path: Path):
    assert last_finished(Path("runs")) is None
    for number, name in enumerate(("old", "new", "unfinished")):
        Path("runs", name).mkdir(parents=True)
        for file in run.iterdir():
            if name != "unfinished" or file.name != "result.json":
                Path("runs", name, file.name).write_bytes(file.read_bytes())
        if (result := Path("runs", name, "result.json")).exists():
            os.utime(result, (1_000 + number, 1_000 + number))
    assert last_finished(Path("runs")) == Path("runs/new")
    said = run_cli("demo")
    assert said.out.startswith(f"{Path('runs/new')}: http://there/")


@pytest.mark.usefixtures("no_pictures")
def test_with_no_run_digits_are_trained(
    run_cli: Callable, served: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dualcaps.cli.demo._EPOCHS", 1)
    said = run_cli("demo", "--device", "cpu")
    assert said.code == 0, said.err
    assert "no finished run in runs/: da-capsnet is trained on digits first" in said.err
    assert last_finished(Path("runs")) == Path("runs/digits-da-capsnet-seed0")
    assert len(served[0][1]) == 10


def test_mistakes_are_one_line(run_cli: Callable, run: Path, monkeypatch: pytest.MonkeyPatch):
    assert_one_line(run_cli("demo", run, "--port", 70_000), "--port must be from 1 to 65535")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_one_line(run_cli("demo", run), "pip install 'dualcaps[demo]'")
