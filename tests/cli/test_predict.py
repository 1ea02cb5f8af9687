"""`dualcaps predict` as a user runs it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SHAPES, draw_shape

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
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in others)


def test_what_is_skipped_in_a_folder_is_reported(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    folder = shutil.copytree(shapes / "down", tmp_path / "photos")
    (folder / "notes.txt").touch()
    said = run_cli("predict", run, folder)
    assert said.code == 0
    assert len(said.out.splitlines()) == 1 + 12
    assert said.err.startswith(f"note: {folder}: 12 image files used; skipped: 1 ")
    assert ".txt" in said.err


def test_without_a_calibration_there_are_no_probabilities(run_cli: Callable, run_copy: Path, shapes: Path):
    (run_copy / "calibration.json").unlink()
    (answer,) = json.loads(run_cli("predict", run_copy, shapes / "down" / "00.png", "--json").out)
    assert list(answer) == ["file", "class", "lengths"]


def test_a_trained_network_is_used_by_its_name(
    run_cli: Callable, run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image = shapes / "down" / "00.png"
    wanted = run_cli("predict", run, image).out
    shutil.copytree(run, tmp_path / "models" / "capsnet.shapes")
    monkeypatch.setenv("DUALCAPS_MODELS", str(tmp_path / "models"))
    assert run_cli("predict", "capsnet.shapes", image).out == wanted
    assert "trained capsnet.shapes: capsnet on " in run_cli("models").out
    assert_one_line(run_cli("predict", "capsnet.shape", image), "no trained network of this name: there are capsnet.sh")
    monkeypatch.setenv("DUALCAPS_MODELS", str(tmp_path / "nothing"))
    assert_one_line(run_cli("predict", "capsnet.shapes", image), "DUALCAPS_MODELS must name the folder")


def test_an_exported_network_is_no_run(run_cli: Callable, run: Path, shapes: Path):
    assert run_cli("export", run, "--to", "exported").code == 0
    assert_one_line(run_cli("predict", "exported", shapes / "down" / "00.png"), "load it with dualcaps.from_pretrained")


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


@pytest.mark.usefixtures("no_pictures")
def test_images_unlike_all_classes_are_rejected(run_cli: Callable, tmp_path: Path):
    random = np.random.default_rng(0)
    for kind, name in enumerate(SHAPES):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(60):
            picture = Image.fromarray(draw_shape(kind, (12, 12), random))
            picture.save(tmp_path / "many" / name / f"{number}.png")
    Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8)).save(tmp_path / "noise.png")
    said = run_cli(
        *("train", tmp_path / "many", "--model", "capsnet", "--recipe", "paper", "--epochs", 5),
        *("--validation", 0.3, "--out", tmp_path / "known", "--device", "cpu", "--precision", "float32"),
    )
    assert said.code == 0, said.err
    command = ("predict", tmp_path / "known", tmp_path / "noise.png", tmp_path / "many" / "down" / "0.png", "--reject")
    said = run_cli(*command)
    assert said.code == 0, said.err
    assert said.err.startswith("note: thresholds set on 42 images (the validation images), kept in ")
    noise, known = (line.strip().split(maxsplit=1)[1] for line in said.out.splitlines()[1:])
    assert noise.startswith("none of these: ")
    assert noise.endswith(" of known images")
    assert known.startswith("down ")
    shutil.move(tmp_path / "many", tmp_path / "elsewhere")  # the thresholds are kept
    command = (*command[:3], tmp_path / "elsewhere" / "down" / "0.png", "--reject", "--json")
    said = run_cli(*command)
    assert said.err == ""
    noise, known = json.loads(said.out)
    assert (noise["rejected"], known["rejected"]) == (True, False)
    assert set(noise["known_images_as_unusual"]) == {"length", "reconstruction", "entropy"}
    assert min(noise["known_images_as_unusual"].values()) < min(known["known_images_as_unusual"].values())


def test_too_few_held_out_images_are_named(run_cli: Callable, run_copy: Path, shapes: Path):
    assert_one_line(run_cli("predict", run_copy, shapes, "--reject"), "held-out images are too few to set thresholds")
    assert not (run_copy / "rejection.json").exists()
