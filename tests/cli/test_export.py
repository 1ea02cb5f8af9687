"""`dualcaps export` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import needs_exporter

from dualcaps import from_pretrained, load_data, load_model, predict

from .messages import assert_one_line


def test_a_folder_has_a_card_made_of_what_was_measured(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    said = run_cli("export", run, "--to", tmp_path / "folder", "--licence", "cc-by-4.0")
    assert said.code == 0, said.err
    assert said.out == f"{tmp_path / 'folder'}: differs from the run by at most 0.0e+00\n"
    images = load_data(shapes).test.images
    assert (predict(from_pretrained(tmp_path / "folder"), images) == predict(load_model(run), images)).all()
    card = (tmp_path / "folder" / "README.md").read_text()
    accuracy = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert f"| test accuracy | {100 * accuracy:.2f} % of 6 images, one training (seed 0) |" in card
    assert "license: cc-by-4.0" in card
    assert "# capsnet on shapes\n" in card
    assert str(tmp_path) not in card
    assert "| classes | across, down, slanted |" in card
    assert "| protocol | clean: the epoch was selected on validation images" in card
    assert_one_line(run_cli("export", run, "--to", tmp_path / "folder"), "exists already")


@pytest.mark.slow
@needs_exporter
def test_onnx_and_programs_are_written_and_compared(run_cli: Callable, run: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    said = run_cli("export", run, "--to", tmp_path / "x.onnx", "--int8")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == [
        str(tmp_path / "x.onnx"),
        str(tmp_path / "x-decoder.onnx"),
    ]
    assert lines[2].startswith("in float32 they differ from the run by at most ")
    assert lines[3].startswith("accuracy on 6 test images: ")
    said = run_cli("export", run, "--to", tmp_path / "x.pt2")
    assert said.out.startswith(f"{tmp_path / 'x.pt2'}: differs from the run by at most ")
    assert "load only files from your own disk" in said.err


def test_mistakes_are_one_line(run_cli: Callable, run_copy: Path, shapes: Path, tmp_path: Path):
    assert_one_line(run_cli("export", run_copy, "--to", tmp_path / "none" / "x.onnx"), "there is no folder")
    assert_one_line(run_cli("export", run_copy, "--to", tmp_path / "x.pt2", "--int8"), "--int8 is for ONNX")
    assert_one_line(run_cli("export", run_copy, "--to", tmp_path / "x.pt2", "--half"), "--half is for folders")
    assert_one_line(run_cli("export", run_copy), "--to")
    config = run_copy / "config.json"
    config.write_text(config.read_text().replace(str(shapes), str(shapes) + "-moved"))
    assert_one_line(run_cli("export", run_copy, "--to", tmp_path / "folder"), "-moved")
