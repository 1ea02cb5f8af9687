"""`dualcaps robustness` as a user runs it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .messages import FAST, assert_one_line


def test_accuracies_are_printed_in_tables_and_written(run_cli: Callable, run: Path):
    said = run_cli("robustness", run, "--count", 6, "--attacked", 2, "--out", "robust")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].endswith(" on 6 unchanged test images")
    assert lines[1].endswith(" under affine changes in affNIST's ranges")
    for heading in ("15° ", "25 %", "gaussian noise", "zigzag", "FGSM", "PGD", "gradient"):
        assert heading in said.out
    assert "overlapping" not in said.out
    found = json.loads(Path("robust/robustness.json").read_text(encoding="utf-8"))
    with Path("robust/robustness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [score["accuracy"] for score in found["scores"]]
    assert len(rows) == 1 + 5 + 5 + 1 + 60 + 10
    assert found["overlap"] is None
    for name in ("robustness.png", "changed.png"):
        with Image.open(Path("robust", name)) as picture:
            assert picture.width > 400


def test_suites_are_chosen_and_printed_as_json(run_cli: Callable, run: Path):
    said = run_cli("robustness", run, "--suites", "shift", "overlap", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {score["suite"] for score in found["scores"]} == {"clean", "shift"}
    assert found["gradients"] is None
    assert found["overlap"]["images"] == 6
    assert "not trained on overlapping images" in said.err


def test_a_run_trained_on_overlapping_images_is_scored_on_them(run_cli: Callable, shapes_folder: Path):
    settings = ("--model", "capsnet", "--image-size", 12, 12, *FAST)
    trained = run_cli("train", shapes_folder, *settings, "--augment", "overlap", "--out", "pairs")
    assert trained.code == 0, trained.err
    said = run_cli("robustness", "pairs", "--suites", "overlap", "--out", "robust")
    assert said.code == 0, said.err
    assert "both classes found in " in said.out
    assert "reconstruction of each from its class's pose" in said.out
    assert sorted(path.name for path in Path("robust").iterdir()) == ["robustness.csv", "robustness.json"]
    by_default = json.loads(run_cli("robustness", "pairs", "--count", 4, "--attacked", 1, "--json").out)
    assert by_default["overlap"]["images"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suites", "rotate"], "unknown suite 'rotate': did you mean 'rotation'"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--attacked", "-1"], "--attacked must be at least 1, got -1"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["mnis"], "mnis"),
    ],
)
def test_invalid_input_is_refused_in_one_line(run_cli: Callable, run: Path, arguments: list[str], message: str):
    assert_one_line(run_cli("robustness", run, *arguments), message)


def test_a_file_in_place_of_the_folder_is_refused(run_cli: Callable, run: Path):
    Path("a-file").touch()
    assert_one_line(run_cli("robustness", run, "--out", "a-file"), "--out a-file: is a file")
