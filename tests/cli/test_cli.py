"""The command line as a person uses it: what it prints, and what it says of mistakes."""

import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from dualcaps import DATA_SETS, MODELS, DualcapsError
from dualcaps.runs.run import is_finished, read_metrics, read_provenance

FAST = ("--epochs", 2, "--precision", "float32", "--device", "cpu")


def one_line(said, *wanted: str) -> None:
    """A user's mistake: exit code 2, nothing printed but one line that names what is wrong."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("dualcaps: ")
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    for text in wanted:
        assert text in said.err


@pytest.fixture
def run(run_cli: Callable, shapes_folder: Path, tmp_path: Path) -> Path:
    assert run_cli("train", shapes_folder, *FAST, "--model", "capsnet", "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_letters_in_mixed_sizes_and_modes_are_trained_evaluated_and_predicted(run_cli: Callable, tmp_path: Path):
    letters, dice = tmp_path / "letters", random.Random(0)
    for letter in string.ascii_uppercase:
        (letters / letter).mkdir(parents=True)
        for number in range(5):
            side = dice.randint(20, 60)
            image = Image.new("L", (side, dice.randint(20, 60)), 255)
            ImageDraw.Draw(image).text((side // 3, 4), letter, fill=0, font_size=16)
            mode = ("L", "RGB", "RGBA", "P", "1")[number]
            image.convert(mode).save(letters / letter / f"{number}.png")

    trained = run_cli("train", letters, *FAST, "--out", "letters-run")
    assert trained.code == 0, trained.err
    assert "test accuracy" in trained.out
    assert "26 classes" in trained.err
    assert "epoch 2/2" in trained.err

    evaluated = run_cli("evaluate", "letters-run", letters)
    assert evaluated.code == 0
    assert evaluated.out.startswith("accuracy ")
    assert (
        sum(
            line.strip().startswith(tuple(f"{c} " for c in string.ascii_uppercase))
            for line in evaluated.out.splitlines()
        )
        >= 26
    )

    picture = letters / "Q" / "2.png"
    predicted = run_cli("predict", "letters-run", picture, letters / "R", "--json")
    assert predicted.code == 0
    answers = json.loads(predicted.out)
    assert [answer["file"] for answer in answers] == [
        str(picture),
        *(str(letters / "R" / f"{n}.png") for n in range(5)),
    ]
    for answer in answers:
        assert list(answer["lengths"]) == list(string.ascii_uppercase)
        assert answer["class"] == max(answer["lengths"], key=answer["lengths"].get)
        assert all(0 <= length < 1 for length in answer["lengths"].values())
    table = run_cli("predict", "letters-run", picture, "--top", 2)
    assert answers[0]["class"] in table.out
    assert len(table.out.splitlines()) == 2


def test_evaluation_as_json_adds_up(run_cli: Callable, run: Path):
    answer = json.loads(run_cli("evaluate", run, "--json").out)
    confusion = np.array(answer["confusion"])
    assert answer["images"] == confusion.sum() == 6
    assert answer["accuracy"] == confusion.trace() / 6
    assert [answer["classes"][name]["images"] for name in ("across", "down", "slanted")] == [2, 2, 2]
    assert answer["accuracy"] == json.loads((run / "result.json").read_text())["test_accuracy"]


def test_switches_reach_the_network_and_the_recipe_the_training(run_cli: Callable, shapes_folder: Path):
    options = ("--caps-attention", "shared", "--iterations", 2, "--update", "replace", "--no-decoder", "--extra-conv")
    options += ("--gate", "sigmoid", "--width", 20)
    said = run_cli("train", shapes_folder, *FAST, *options, "--image-size", 16, 18, "--lr", 0.01, "--out", "run")
    assert said.code == 0, said.err
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"] == {
        "name": "da-capsnet", "image_shape": [1, 16, 18], "num_classes": 3, "conv_attention": True,
        "caps_attention": "shared", "extra_conv": True, "iterations": 2, "squash_constant": 0.5, "update": "replace",
        "gate": "sigmoid", "width": 20,
        "decoder": False,
    }  # fmt: skip
    assert config["training"]["lr"] == 0.01
    assert config["training"]["epochs"] == 2
    assert not Path("run/reconstructions.png").exists()


def test_resuming_without_a_folder_takes_the_last_run(run_cli: Callable, shapes_folder: Path):
    for expected in ("runs/shapes-capsnet-seed0", "runs/shapes-capsnet-seed0-2"):
        assert expected in run_cli("train", shapes_folder, *FAST, "--model", "capsnet").out
    again = run_cli("train", shapes_folder, *FAST, "--model", "capsnet", "--resume")
    assert "runs/shapes-capsnet-seed0-2" in again.out
    assert len(list(Path("runs").iterdir())) == 2


def test_models_are_listed_with_their_sizes(run_cli: Callable):
    said = run_cli("models").out
    assert all(name in said for name in MODELS)
    assert "6,737,136" in said
    assert "9,206,368" in said


def test_data_sets_are_listed_checked_and_shown(run_cli: Callable, shapes_folder: Path):
    listed = run_cli("data", "list").out
    assert "embedded" in listed
    assert all(f"{name} " in listed for name in DATA_SETS)
    checked = run_cli("data", "check", shapes_folder)
    assert checked.code == 0, checked.err
    assert [line.split() for line in checked.out.splitlines()[2:6]] == [
        *([name, "9", "1", "2"] for name in ("across", "down", "slanted")),
        ["all", "27", "3", "6"],
    ]
    assert "… and 16 more files" in checked.out
    assert "no official files to compare with" in checked.out
    shown = run_cli("data", "show", shapes_folder, "--out", "shapes.png")
    assert shown.code == 0, shown.err
    with Image.open("shapes.png") as picture:
        assert picture.width > picture.height
    one_line(run_cli("data", "get", "imagenet"), "unknown data set 'imagenet'")
    one_line(run_cli("data", "get", "mnist"), "no network in the tests", "train-images-idx3-ubyte.gz")
    one_line(run_cli("data", "check", "mnist"), "mnist: files not found")
    one_line(run_cli("data", "show", "digits", "--out", "nowhere/x.png"), "nowhere")


def test_images_of_64x48_pixels_in_colour_are_trained_on_as_they_are(run_cli: Callable, tmp_path: Path):
    for colour in ("red", "green", "blue"):
        (tmp_path / "flags" / colour).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (64, 48), colour)
            ImageDraw.Draw(image).ellipse((number * 4, 8, 30, 40), fill="white")
            image.save(tmp_path / "flags" / colour / f"{number}.jpg")
    said = run_cli("train", tmp_path / "flags", "--epochs", 1, "--caps-attention", "shared", "--out", "run")
    assert said.code == 0, said.err
    assert "48x64x3" in said.err
    answer = run_cli("predict", "run", tmp_path / "flags" / "red" / "0.jpg").out
    assert any(colour in answer for colour in ("red", "green", "blue"))


@pytest.mark.parametrize(
    "command",
    [
        *((), ("train",), ("evaluate",), ("predict",), ("models",), ("data",)),
        *(("data", c) for c in ("list", "check", "get", "show")),
    ],
)
def test_help_is_there(run_cli: Callable, command: tuple[str, ...]):
    said = run_cli(*command, "--help")
    assert said.code == 0
    assert "usage: dualcaps" in said.out


def test_the_help_of_training_shows_defaults(run_cli: Callable):
    said = run_cli("train", "--help").out
    for text in ("(default: digits)", "(default: da-capsnet)", "(default: 100)", "(default: 0.999)"):
        assert text in said


def test_the_version_is_printed(run_cli: Callable):
    assert run_cli("--version").out == f"dualcaps {metadata.version('dualcaps')}\n"


def test_the_module_runs_too():
    said = subprocess.run([sys.executable, "-m", "dualcaps", "models"], capture_output=True, text=True, check=True)
    assert "da-capsnet" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("train", "imagenet"), "unknown data set 'imagenet'"),
        (("train", "digits", "--model", "resnet"), "unknown model 'resnet'"),
        (("train", "mnist"), "mnist: files not found"),
        (("train", "mnist", "--data-dir", "nowhere"), "nowhere: no such folder"),
        (("train", "digits", "--image-size", "5", "5"), "too small for da-capsnet, which takes at least 10x10"),
        (("train", "digits", "--model", "cnn", "--iterations", "2"), "cnn has no iterations"),
        (("train", "digits", "--epochs", "0"), "epochs must be at least 1"),
        (("train", "digits", "--iterations", "0"), "iterations must be at least 1"),
        (("train", "digits", "--squash-constant", "0"), "squash_constant must be a number above 0"),
        (("train", "digits", "--image-size", "512", "512"), "--caps-attention shared"),
        (("train", "digits", "--epochs", "many"), "--epochs"),
        (("train", "digits", "--precision", "float8"), "--precision"),
        (("train", "digits", "--device", "warp"), "--device warp"),
        (("train", "digits", "--speed", "high"), "--speed"),
        (("evaluate", "nowhere"), "nowhere: no such run folder"),
        (("predict", "nowhere", "x.png"), "nowhere: no such run folder"),
        (("predict", "nowhere"), "IMAGE"),
        (("fly",), "fly"),
        ((), "train"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run_cli: Callable, arguments: tuple[str, ...], wanted: str):
    one_line(run_cli(*arguments), wanted)
    assert not list(Path.cwd().iterdir())


def test_images_that_cannot_be_used_are_one_line_and_leave_nothing(run_cli: Callable, shapes_folder: Path):
    text = shapes_folder / "down" / "notes.png"
    text.write_text("not a picture")
    one_line(run_cli("train", shapes_folder), str(text), "not an image")
    text.unlink()
    (shapes_folder / "empty").mkdir()
    one_line(run_cli("train", shapes_folder), "empty: no images in this class folder")
    (shapes_folder / "empty").rmdir()
    for name in ("across", "slanted"):
        shutil.rmtree(shapes_folder / name)
    one_line(run_cli("train", shapes_folder), "only one class (down)")
    for number in range(12):
        Image.new("L", (6, 6)).save(shapes_folder / "down" / f"{number:02}.png")
    shutil.copytree(shapes_folder / "down", shapes_folder / "up")
    one_line(run_cli("train", shapes_folder), "images of 6x6 pixels with 1 channel are too small", "--image-size")
    assert not list(Path.cwd().iterdir())


def test_a_damaged_image_costs_no_other_prediction(run_cli: Callable, run: Path, shapes_folder: Path, tmp_path: Path):
    (tmp_path / "cut.png").write_bytes((shapes_folder / "down" / "03.png").read_bytes()[:60])
    command = ("predict", run, tmp_path / "cut.png", shapes_folder / "down")
    said = run_cli(*command)
    assert said.code == 1
    assert said.err.startswith(f"dualcaps: {tmp_path / 'cut.png'}: cannot be read")
    assert said.err.count("\n") == 1
    files = len(list((shapes_folder / "down").iterdir()))
    assert len(said.out.splitlines()) == 1 + files
    assert "nan" not in said.out
    first, *others = json.loads(run_cli(*command, "--json").out)
    assert (first["file"], list(first)) == (str(tmp_path / "cut.png"), ["file", "error"])
    assert len(others) == files
    assert all(sum(answer["lengths"].values()) > 0 for answer in others)


def test_a_truncated_idx_file_is_one_line(run_cli: Callable, tmp_path: Path):
    for name in DATA_SETS["mnist"].layouts[0].files:
        (tmp_path / name).write_bytes(b"\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + b"\0" * 100)
    one_line(run_cli("train", "mnist", "--data-dir", tmp_path), "train-images-idx3-ubyte", "fewer than the 1568 bytes")


def test_runs_that_cannot_be_used_are_one_line(run_cli: Callable, run: Path, shapes_folder: Path, tmp_path: Path):
    one_line(run_cli("train", shapes_folder, *FAST, "--out", run), "exists already", "--resume")
    train = ("train", shapes_folder, *FAST, "--model", "capsnet", "--out", run, "--resume")
    one_line(run_cli(*train, "--batch-size", 5), "batch_size was 128, now 5")
    one_line(run_cli("predict", run, "nothing.png"), "nothing.png: no such file")
    one_line(run_cli("predict", run, "nothing.png", "none.png"), "nothing.png: no such file; the other 1 cannot")
    one_line(run_cli("predict", run, tmp_path / "cwd"), "no images in this folder")
    one_line(run_cli("evaluate", run, "imagenet"), "unknown data set 'imagenet'")
    (run / "result.json").unlink()
    one_line(run_cli("evaluate", run), "not finished")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 0}))
    one_line(run_cli("evaluate", run), "not of run format 1")
    one_line(run_cli(*train), "not of run format 1")


def test_a_full_disk_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path):
    def full(file: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("dualcaps.runs.write_bytes", full)
    one_line(run_cli("train", shapes_folder, *FAST), "No space left on device")
    assert not list(Path.cwd().iterdir())


def test_a_bug_is_not_dressed_up_as_a_mistake(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualcaps.cli.create_model", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cli("models")
    assert issubclass(DualcapsError, ValueError)


def test_out_of_memory_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    def greedy(*arguments: object, **options: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr("dualcaps.cli.create_model", greedy)
    one_line(run_cli("train", "digits"), "out of memory", "--batch-size")


def test_names_in_brackets_and_dollars_are_printed_as_they_are(run_cli: Callable, shapes_folder: Path):
    (shapes_folder / "down").rename(shapes_folder / "[down] $a_$b")
    said = run_cli("train", shapes_folder, *FAST, "--model", "capsnet", "--out", "[a run]")
    assert said.code == 0, said.err
    assert "[a run]" in said.out
    assert "[down] $a_$b" in run_cli("evaluate", "[a run]").out
    assert "[down] $a_$b" in run_cli("predict", "[a run]", shapes_folder / "across", "--top", 3).out


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_at_random_moments_of_training_it_resumes_to_the_same_weights(shapes_folder: Path, tmp_path: Path):
    command = [
        *(sys.executable, "-m", "dualcaps", "train", str(shapes_folder), "--epochs", "20"),
        *("--batch-size", "8", "--precision", "float32", "--device", "cpu", "--resume", "--out"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def start(run: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )

    def sessions(run: Path) -> int:
        return len(read_provenance(run)["sessions"]) if run.exists() else 0

    assert start(tmp_path / "whole").wait(timeout=120) == 0
    training_seconds = sum(line["seconds"] for line in read_metrics(tmp_path / "whole"))
    dice, run, kills = random.Random(0), tmp_path / "killed", 0
    while kills < 10:
        process = start(run)
        while sessions(run) == kills and process.poll() is None:
            time.sleep(0.01)  # until this process trains
        time.sleep(dice.uniform(0, training_seconds / 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if is_finished(run):
            break
        kills += 1
    assert kills >= 3, "finished before it could be killed often"
    assert start(run).wait(timeout=120) == 0
    whole, killed = (safetensors.torch.load_file(path / "model.safetensors") for path in (tmp_path / "whole", run))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_reproduce_lists_experiments_and_plans_without_training(run_cli: Callable, shapes_folder: Path):
    listed = run_cli("reproduce", "--list")
    assert listed.code == 0
    for name in ("table-1", "table-2", "table-4", "figures-8-9", "figure-10", "figure-14", "control-routing"):
        assert f"\n{name}\n" in f"\n{listed.out}"
        assert f"dualcaps reproduce {name}" in listed.out
    planned = run_cli("reproduce", "attention", "--datasets", shapes_folder, "--seeds", 3, "--epochs", 7, "--plan")
    assert planned.code == 0, planned.err
    lines = [line.split() for line in planned.out.splitlines()]
    assert ["shapes", "da-capsnet", "clean,", "paper", "7", "3", "0", "of", "6", "about"] in [
        line[:10] for line in lines
    ]
    assert lines[-1][:4] == ["all", "0", "of", "30"]
    assert not Path("runs").exists()


def test_planning_fetches_nothing(run_cli: Callable, monkeypatch):
    def fetch(*arguments, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr("dualcaps.data.load.fetch", fetch)
    said = run_cli("reproduce", "attention", "--datasets", "digits", "coil-20", "--seeds", 1, "--plan")
    assert said.code == 0
    assert said.err.startswith("left out: coil-20; coil-20 (views): files not found")
    assert said.err.count("\n") == 1


def test_a_report_says_what_it_left_out(run_cli: Callable, shapes_folder: Path):
    command = ("reproduce", "control-update", "--datasets", shapes_folder, "--seeds", 1, *FAST, "--protocols", "clean")
    assert run_cli(*command).code == 0
    next(Path("runs").rglob("result.json")).write_text("{")
    said = run_cli("report")
    assert (said.code, said.out) == (0, "report/index.html\n")
    assert said.err.startswith("left out: ")
    assert "result.json: damaged" in said.err


def test_reproduce_trains_and_report_shows_it(run_cli: Callable, shapes_folder: Path):
    command = ("reproduce", "control-update", "--datasets", shapes_folder, "--seeds", 1, *FAST, "--protocols", "clean")
    said = run_cli(*command, "--jobs", 2)
    assert said.code == 0, said.err
    assert "4 of 4 runs done, 0 failed" in said.out
    assert "4/4  " in said.err
    again = run_cli(*command)
    assert "4 of 4 runs done, 0 failed" in again.out
    assert again.err == ""
    said = run_cli("report")
    assert (said.code, said.out) == (0, "report/index.html\n")
    assert "da-capsnet, update replace" in Path("report/RESULTS.md").read_text()


def test_a_data_set_that_is_missing_does_not_stop_the_others(run_cli: Callable, shapes_folder: Path):
    command = ("reproduce", "attention", "--datasets", "svhn", shapes_folder, "--seeds", 1, "--protocols", "clean")
    said = run_cli(*command, "--epochs", 1, "--budget", 0.02)
    assert said.code == 1
    assert "left out: svhn: files not found" in said.err
    assert "of 5 runs done, 0 failed" in said.out
    assert "the same command goes on" in said.out
    one_line(run_cli(*command[:4], "--seeds", 1), "nothing to run: svhn: files not found")


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
        (("reproduce", "atention"), ("did you mean attention?",)),
        (("reproduce", "table-1", "--datasets", "digits"), ("choose from attention, control-parameters",)),
        (("report", ".", "--out", __file__), ("no finished run",)),
        (("report", "nowhere"), ("nowhere: no such folder",)),
        (("report", "."), ("no finished run",)),
    ],
)
def test_mistakes_of_reproduce_and_report_are_one_line(run_cli: Callable, arguments, wanted):
    one_line(run_cli(*arguments), *wanted)
