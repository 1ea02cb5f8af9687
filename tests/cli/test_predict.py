"""`dualcaps predict` as a user runs it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .messages import assert_one_line


def test_a_damaged_image_does_not_stop_other_predictions(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    (tmp_path / "cut.png").write_bytes((shapes / "down" / "03.png").read_bytes()[:60])
    command = ("predict", run, tmp_path / "cut.png", shapes / "down")
    said = run_cli(*command)
    assert said.code == 1
    assert said.err.startswith(f"dualcaps: {tmp_path / 'cut.png'}: cannot be read")
    assert said.err.count("\n") == 1
    files = len(list((shapes / "down").iterdir()))
    assert len(said.out.splitlines()) == 1 + files
    assert "nan" not in said.out
    first, *others = json.loads(run_cli(*command, "--json").out)
    assert (first["file"], list(first)) == (str(tmp_path / "cut.png"), ["file", "error"])
    assert len(others) == files
    assert all(sum(answer["lengths"].values()) > 0 for answer in others)


def test_what_is_skipped_in_a_folder_is_reported(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    folder = shutil.copytree(shapes / "down", tmp_path / "photos")
    (folder / "notes.txt").touch()
    said = run_cli("predict", run, folder)
    assert said.code == 0
    assert len(said.out.splitlines()) == 1 + 12
    assert said.err.startswith(f"note: {folder}: skipped: 1 ")
    assert ".txt" in said.err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_file_names_that_are_not_utf_8_are_escaped(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    name = os.fsdecode(b"\xe9t\xe9.png")
    shutil.copy(shapes / "down" / "00.png", tmp_path / name)
    said = run_cli("predict", run, tmp_path / name)
    assert said.code == 0, said.err
    assert "\\xe9t\\xe9.png" in said.out
    (answer,) = json.loads(run_cli("predict", run, tmp_path / name, "--json").out)
    assert answer["file"] == str(tmp_path / name)
    assert_one_line(run_cli("predict", run, tmp_path / os.fsdecode(b"\xe0.png")), "\\xe0.png: no such file")


def test_images_that_cannot_be_found_are_one_line(run_cli: Callable, run: Path, tmp_path: Path):
    assert_one_line(run_cli("predict", run, "nothing.png"), "nothing.png: no such file")
    assert_one_line(run_cli("predict", run, "nothing.png", "none.png"), "nothing.png: no such file; the other 1 cannot")
    assert_one_line(run_cli("predict", run, tmp_path / "cwd"), "no images in this folder")
    assert_one_line(run_cli("predict", "nowhere", "x.png"), "nowhere: no such run folder")
    assert_one_line(run_cli("predict", "nowhere"), "IMAGE")
    assert_one_line(run_cli("predict", run, "x.png", "--top", 0), "--top must be at least 1")
