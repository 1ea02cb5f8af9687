"""`dualcaps data` as a user runs it."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dualcaps.registry import DATASETS

from .messages import assert_one_line


def test_data_sets_are_listed(run_cli: Callable):
    listed = run_cli("data", "list")
    assert listed.code == 0, listed.err
    assert "embedded" in listed.out
    assert all(f"{name} " in listed.out for name in DATASETS)


def test_own_images_are_checked_and_shown(run_cli: Callable, shapes: Path):
    checked = run_cli("data", "check", shapes)
    assert checked.code == 0, checked.err
    assert [line.split() for line in checked.out.splitlines()[2:6]] == [
        *([name, "9", "1", "2"] for name in ("across", "down", "slanted")),
        ["all", "27", "3", "6"],
    ]
    assert "36 image files used\n" in checked.out
    assert "… and 16 more files" in checked.out
    assert "no official files to compare with" in checked.out
    shown = run_cli("data", "show", shapes, "--out", "shapes.png")
    assert shown.code == 0, shown.err
    assert shown.out == "shapes.png\n"
    assert "note: 36 image files used" in shown.err
    with Image.open("shapes.png") as picture:
        assert picture.width > picture.height


def test_every_damaged_file_is_named_at_once(run_cli: Callable, shapes_folder: Path):
    damaged = [shapes_folder / "across/03.png", shapes_folder / "down/07.png", shapes_folder / "slanted/00.png"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:60])
    assert_one_line(run_cli("data", "check", shapes_folder), *map(str, damaged), "--skip-damaged")
    said = run_cli("data", "check", shapes_folder, "--skip-damaged")
    assert said.code == 0, said.err
    assert all(str(file) in said.out for file in damaged)
    (shapes_folder / "down" / "notes.txt").touch()
    assert ".txt" in run_cli("data", "check", shapes_folder, "--skip-damaged").out


def test_data_sets_that_cannot_be_found_are_one_line(run_cli: Callable, shapes: Path):
    assert_one_line(run_cli("data", "get", "imagenet"), "unknown data set 'imagenet'")
    assert_one_line(run_cli("data", "get", "mnst"), "did you mean 'mnist'?")
    assert_one_line(run_cli("data", "get", "mnist"), "no network in the tests", "train-images-idx3-ubyte.gz")
    assert_one_line(run_cli("data", "check", "mnist"), "mnist: files not found")
    assert_one_line(run_cli("data", "show", shapes, "--out", "nowhere/x.png"), "nowhere")
    assert_one_line(run_cli("data", "check"), "DATA is missing")
