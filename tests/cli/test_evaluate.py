"""`dualcaps evaluate` as a user runs it."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualcaps.cli.display import shorten_names

from .messages import FAST, assert_one_line


def test_evaluation_as_json_adds_up(run_cli: Callable, run: Path):
    answer = json.loads(run_cli("evaluate", run, "--json").out)
    confusion = np.array(answer["confusion"])
    assert answer["images"] == confusion.sum() == 6
    assert answer["accuracy"] == confusion.trace() / 6
    assert [answer["classes"][name]["images"] for name in ("across", "down", "slanted")] == [2, 2, 2]
    assert answer["accuracy"] == json.loads((run / "result.json").read_text(encoding="utf-8"))["test_accuracy"]
    low, high = answer["interval"]
    assert 0 <= low < answer["accuracy"] < high <= 1 or answer["accuracy"] in (low, high)
    assert answer["balanced_accuracy"] == pytest.approx(answer["accuracy"])  # as many images of each class
    assert 0 <= answer["calibration_error"] <= 1
    assert "top_3" not in answer  # of three classes it says nothing


def test_the_confusion_matrix_is_headed_by_names(run_cli: Callable, run: Path, shapes_folder: Path):
    said = run_cli("evaluate", run, shapes_folder)
    assert said.code == 0, said.err
    first, second = said.out.splitlines()[:2]
    assert " of 36 images), 95 % interval " in first
    assert second.startswith("balanced accuracy ")
    assert "calibration error" in second
    matrix = [line.split() for line in said.out.partition("predicted class\n")[2].splitlines()]
    assert matrix[0] == ["across", "down", "slanted"]
    assert [row[0] for row in matrix[1:4]] == ["across", "down", "slanted"]
    assert [sum(int(count) for count in row[1:] if count != "·") for row in matrix[1:4]] == [12, 12, 12]


def test_evaluation_is_written_as_pictures_and_tables(run_cli: Callable, run: Path, shapes_folder: Path):
    said = run_cli("evaluate", run, shapes_folder, "--out", "deep/evaluation")
    assert said.code == 0, said.err
    out = Path("deep/evaluation")
    answer = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    wrong = 36 - round(36 * answer["accuracy"])
    with (out / "mistakes.csv").open(encoding="utf-8", newline="") as file:
        mistakes = list(csv.DictReader(file))
    assert len(mistakes) == wrong > 0
    assert all(line["true class"] != line["predicted class"] for line in mistakes)
    assert all(
        Path(line["file"]).is_file() and Path(line["file"]).parent.name == line["true class"] for line in mistakes
    )
    lengths = [float(line["predicted length"]) for line in mistakes]
    assert lengths == sorted(lengths, reverse=True)
    assert all(float(line["true length"]) <= float(line["predicted length"]) for line in mistakes)
    for name in ("confusion.png", "mistakes.png"):
        assert name in said.out
        with Image.open(out / name) as picture:
            assert picture.width > 200
    Path("a-file").touch()
    assert_one_line(run_cli("evaluate", run, "--out", "a-file"), "--out a-file: is a file")


def test_an_unfinished_run_is_evaluated_with_a_note(run_cli: Callable, run_copy: Path):
    (run_copy / "result.json").unlink()
    said = run_cli("evaluate", run_copy)
    assert said.code == 0
    assert said.err.startswith(f"note: {run_copy} is not finished: these are the weights of epoch ")
    assert said.out.startswith("accuracy ")


def test_files_are_written_even_if_the_reader_of_the_output_stops(run: Path):
    code = f"import dualcaps.cli; dualcaps.cli.main(['evaluate', {str(run)!r}, '--out', 'evaluation'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=120)
    assert Path("evaluation/mistakes.csv").is_file()


def test_runs_that_cannot_be_used_are_one_line(run_cli: Callable, run: Path, run_copy: Path, shapes: Path):
    assert_one_line(run_cli("train", shapes, *FAST, "--model", "capsnet", "--out", run), "exists already", "--resume")
    train = ("train", shapes, *FAST, "--model", "capsnet", "--out", run_copy, "--resume")
    assert_one_line(run_cli(*train, "--batch-size", 5), "batch_size was 128, now 5")
    assert_one_line(run_cli("evaluate", run, "imagenet"), "unknown data set 'imagenet'")
    assert_one_line(run_cli("evaluate", "nowhere"), "nowhere: no such run folder")
    config = json.loads((run_copy / "config.json").read_text(encoding="utf-8"))
    (run_copy / "config.json").write_text(json.dumps(config | {"format": 0}), encoding="utf-8")
    assert_one_line(run_cli("evaluate", run_copy), "not of run format 2")
    assert_one_line(run_cli(*train), "not of run format 2")


def test_long_names_are_shortened_so_that_all_differ():
    names = ["wooden spoon", "wooden fork", "cat", "caterpillar", "aaaaaaaaaaaabbb", "aaaaaaaaaaaacbb", "1", "10", "11"]
    for most in (4, 6, 8, 12, 20):
        short = shorten_names(names, most)
        assert len(set(short)) == len(names)
        assert all(len(text) <= most for text in short)
        assert [text for text, name in zip(short, names, strict=True) if len(name) <= most] == [
            name for name in names if len(name) <= most
        ]
    assert shorten_names(["golden retriever", "apple"], 8) == ["golden …", "apple"]
