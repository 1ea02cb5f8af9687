"""`dualcaps reproduce` and `dualcaps report` as a user runs them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from dualcaps import registry

from .messages import FAST, assert_one_line


def test_reproduce_lists_experiments_and_plans_without_training(run_cli: Callable, shapes: Path):
    listed = run_cli("reproduce", "--list")
    assert listed.code == 0
    for name in ("table-1", "table-2", "table-4", "figures-8-9", "figure-10", "figure-14", "control-routing"):
        assert f"\n{name}\n" in f"\n{listed.out}"
        assert f"dualcaps reproduce {name}" in listed.out
    planned = run_cli("reproduce", "attention", "--datasets", shapes, "--seeds", 3, "--epochs", 7, "--plan")
    assert planned.code == 0, planned.err
    lines = [line.split() for line in planned.out.splitlines()]
    assert ["shapes", "da-capsnet", "clean,", "paper", "7", "3", "0", "of", "6", "about"] in [
        line[:10] for line in lines
    ]
    assert lines[-1][:4] == ["all", "0", "of", "30"]
    assert not Path("runs").exists()


def test_planning_fetches_nothing(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    def fetch(*arguments: object, **options: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("dualcaps.data.load.fetch", fetch)
    said = run_cli("reproduce", "attention", "--datasets", "digits", "coil-20", "--seeds", 1, "--plan")
    assert said.code == 0
    assert said.err.startswith("left out: coil-20; coil-20 (views): files not found")
    assert said.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("own_registry")
def test_reproduce_trains_and_report_shows_it(run_cli: Callable, shapes: Path):
    entry = registry.EXPERIMENTS["control-update"]
    fewer = dataclasses.replace(entry.value(), networks=entry.value().networks[-2:])
    registry.EXPERIMENTS["control-update"] = dataclasses.replace(entry, value=lambda: fewer)
    command = ("reproduce", "control-update", "--datasets", shapes, "--seeds", 1, *FAST, "--protocols", "clean")
    said = run_cli(*command, "--jobs", 2)
    assert said.code == 0, said.err
    assert "2 of 2 runs done, 0 failed" in said.out
    assert "2/2  " in said.err
    again = run_cli(*command)
    assert "2 of 2 runs done, 0 failed" in again.out
    assert again.err == ""
    said = run_cli("report")
    assert (said.code, said.out) == (0, "report/index.html\n")
    assert "da-capsnet, update replace" in Path("report/RESULTS.md").read_text(encoding="utf-8")

    next(Path("runs").rglob("result.json")).write_text("{", encoding="utf-8")
    said = run_cli("report")
    assert (said.code, said.out) == (0, "report/index.html\n")
    assert said.err.startswith("left out: ")
    assert "result.json: damaged" in said.err


def test_a_data_set_that_is_missing_does_not_stop_the_others(run_cli: Callable, shapes: Path):
    command = ("reproduce", "attention", "--datasets", "svhn", shapes, "--seeds", 1, "--protocols", "clean")
    said = run_cli(*command, "--epochs", 1, "--budget", 0.02)
    assert said.code == 1
    assert "left out: svhn: files not found" in said.err
    assert "of 5 runs done, 0 failed" in said.out
    assert "the same command continues" in said.out
    assert_one_line(run_cli(*command[:4], "--seeds", 1), "nothing to run: svhn: files not found")


def test_an_interrupted_grid_says_how_to_continue(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dualcaps.study.scheduler.reproduce", interrupted)
    said = run_cli("reproduce", "control-update", "--datasets", shapes, "--seeds", 1)
    assert said.code == 130
    assert said.err == "dualcaps: interrupted; the same command continues\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("reproduce", "table-9"), ("table-9", "table-1")),
        (("reproduce", "--datasets", "nowhere"), ("nowhere", "digits")),
        (("reproduce", "table-1", "--datasets", "digits"), ("nothing to run", "digits")),
        (("reproduce", "--datasets", "digits", "--seeds", 0), ("seeds must be at least 1",)),
        (("reproduce", "--datasets", "digits", "--epochs", 0), ("epochs must be at least 1",)),
        (("reproduce", "--datasets", "digits", "--protocols"), ("protocols: choose clean, paper or both",)),
        (("reproduce", "--datasets"), ("--datasets: name at least one",)),
        (("reproduce", "--datasets", "digits", "--jobs", 0), ("jobs must be at least 1",)),
        (("reproduce", "--datasets", "digits", "--out", __file__), ("is a file: choose a folder",)),
        (("reproduce", "atention"), ("did you mean 'attention'?",)),
        (("reproduce", "table-1", "--datasets", "digits"), ("choose from attention, control-parameters",)),
        (("report", ".", "--out", __file__), ("no finished run",)),
        (("report", "nowhere"), ("nowhere: no such folder",)),
        (("report", "."), ("no finished run",)),
    ],
)
def test_invalid_input_is_one_line(run_cli: Callable, arguments: tuple[object, ...], wanted: tuple[str, ...]):
    assert_one_line(run_cli(*arguments), *wanted)
