"""`dualcaps train` as a user runs it."""

import errno
import itertools
import json
import random
import shutil
import string
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from dualcaps import DualcapsError, cli
from dualcaps.data import images
from dualcaps.runs import files
from dualcaps.runs.run import Run, locked
from dualcaps.study.scheduler import process_context

from .messages import FAST, assert_one_line, assert_one_line_at_end


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

    assert_one_line(
        run_cli("train", letters, "--model", "da-capsnet", "--image-size", 512, 512), "--caps-attention shared"
    )
    trained = run_cli("train", letters, *FAST, "--model", "capsnet", "--out", "letters-run")
    assert trained.code == 0, trained.err
    assert "test accuracy" in trained.out
    assert "26 classes" in trained.err
    assert "epoch 2/2" in trained.err
    assert "note: 130 image files used\n" in trained.err

    evaluated = run_cli("evaluate", "letters-run", letters)
    assert evaluated.code == 0
    assert evaluated.out.startswith("accuracy ")
    starts = tuple(f"{c} " for c in string.ascii_uppercase)
    assert sum(line.strip().startswith(starts) for line in evaluated.out.splitlines()) >= 26

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


def test_switches_reach_the_network_and_options_the_training(run_cli: Callable, shapes: Path):
    options = ("--caps-attention", "shared", "--iterations", 2, "--update", "replace", "--no-decoder", "--extra-conv")
    options += ("--model", "da-capsnet", "--gate", "sigmoid", "--width", 20, "--options", "update=accumulate")
    assert_one_line(run_cli("train", shapes, *options, "--options", "update"), "--options update: write NAME=VALUE")
    options = options[:-2]
    training = ("--lr", 0.01, "--optimizer", "sgd", "--schedule", "cosine", "--class-weight", 1, 2, 0.5)
    training += ("--patience", 1, "--augment", "shift,flip", "--label-smoothing", 0.1)
    said = run_cli("train", shapes, *FAST, *options, *training, "--image-size", 16, 18, "--out", "run")
    assert said.code == 0, said.err
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    model = {
        "name": "da-capsnet", "image_shape": [1, 16, 18], "num_classes": 3, "conv_attention": True,
        "caps_attention": "shared", "extra_conv": True, "iterations": 2, "squash_constant": 0.5, "update": "replace",
        "gate": "sigmoid", "width": 20, "decoder": False, "trunk": "paper", "votes": "grid", "routing": "dynamic",
    }  # fmt: skip
    assert model.items() <= config["model"].items()
    assert config["data"]["image_size"] == [16, 18]
    expected = {
        "lr": 0.01, "epochs": 2, "optimizer": "sgd", "schedule": "cosine", "class_weight": [1.0, 2.0, 0.5],
        "patience": 1, "augment": "shift,flip", "label_smoothing": 0.1,
    }  # fmt: skip
    assert expected.items() <= config["training"].items()
    assert not Path("run/reconstructions.png").exists()


def test_resuming_without_a_folder_takes_the_last_run(run_cli: Callable, shapes: Path):
    command = ("train", shapes, "--epochs", 1, "--precision", "float32", "--model", "capsnet")
    for expected in ("runs/shapes-capsnet-seed0", "runs/shapes-capsnet-seed0-2"):
        assert expected in run_cli(*command).out
    again = run_cli(*command, "--resume")
    assert "runs/shapes-capsnet-seed0-2" in again.out
    assert len(list(Path("runs").iterdir())) == 2


def test_a_finished_run_is_trained_longer_and_another_starts_from_its_weights(
    run_cli: Callable, shapes: Path, run_copy: Path
):
    train = ("train", shapes, *FAST, "--model", "capsnet")
    longer = run_cli(*train, "--out", run_copy, "--resume", "--epochs", 3)
    assert longer.code == 0, longer.err
    assert "trained        3 epochs" in longer.out
    assert "resumed after epoch 2 of 3" in longer.err
    tuned = run_cli(*train, "--epochs", 1, "--init-from", run_copy, "--out", "tuned")
    assert tuned.code == 0, tuned.err
    assert f"weights from {run_copy}" in tuned.err
    assert_one_line(run_cli(*train, "--init-from", "nowhere"), "nowhere: no such run folder")


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
    ("arguments", "wanted"),
    [
        (("train", "imagenet"), "unknown data set 'imagenet'"),
        (("train", "digts"), "did you mean 'digits'?"),
        (("train", "digits", "--model", "resnet"), "unknown model 'resnet'"),
        (("train", "digits", "--model", "da-capsnt"), "did you mean 'da-capsnet'?"),
        (("train", "digits", "--routing", "dynamik"), "did you mean 'dynamic'?"),
        (("train", "mnist"), "mnist: files not found"),
        (("train", "mnist", "--data-dir", "nowhere"), "nowhere: no such folder"),
        (("train", "digits", "--image-size", "5", "5"), "too small for da-capsnet, which takes at least 10x10"),
        (("train", "digits", "--model", "cnn", "--iterations", "2"), "cnn has no iterations"),
        (("train", "digits", "--epochs", "0"), "epochs must be at least 1"),
        (("train", "digits", "--iterations", "0"), "iterations must be at least 1"),
        (("train", "digits", "--squash-constant", "0"), "squash_constant must be a number above 0"),
        (("train", "digits", "--device", "warp"), "--device warp"),
        (("train", "digits", "--logger", "tensorboards"), "did you mean 'tensorboard'?"),
        (("train", "digits", "--options", "heads=4"), "unknown switch of da-capsnet 'heads'"),
    ],
)
def test_invalid_input_is_one_line_and_leaves_nothing(run_cli: Callable, arguments: tuple[str, ...], wanted: str):
    assert_one_line(run_cli(*arguments), wanted)
    assert not list(Path.cwd().iterdir())


def test_images_that_cannot_be_used_are_one_line_and_leave_nothing(run_cli: Callable, shapes_folder: Path):
    text = shapes_folder / "down" / "notes.png"
    text.write_text("not a picture", encoding="utf-8")
    assert_one_line(run_cli("train", shapes_folder), str(text), "not an image")
    text.unlink()
    (shapes_folder / "empty").mkdir()
    assert_one_line(run_cli("train", shapes_folder), "empty: no images in this class folder")
    (shapes_folder / "empty").rmdir()
    for name in ("across", "slanted"):
        shutil.rmtree(shapes_folder / name)
    assert_one_line(run_cli("train", shapes_folder), "only one class (down)")
    for number in range(12):
        Image.new("L", (6, 6)).save(shapes_folder / "down" / f"{number:02}.png")
    shutil.copytree(shapes_folder / "down", shapes_folder / "up")
    too_small = "images of 6x6 pixels with 1 channel are too small"
    assert_one_line(run_cli("train", shapes_folder, "--model", "da-capsnet"), too_small, "--image-size")
    assert not list(Path.cwd().iterdir())


def test_damaged_images_are_left_out_only_when_asked(run_cli: Callable, shapes_folder: Path):
    damaged = shapes_folder / "down" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    train = ("train", shapes_folder, "--epochs", 1, "--precision", "float32", "--model", "capsnet")
    assert_one_line(run_cli(*train), str(damaged), "--skip-damaged")
    said = run_cli(*train, "--skip-damaged")
    assert said.code == 0, said.err
    assert str(damaged) in said.err


def test_a_truncated_idx_file_is_one_line(run_cli: Callable, tmp_path: Path):
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + b"\0" * 100)
    said = run_cli("train", "mnist", "--data-dir", tmp_path)
    assert_one_line(said, "train-images-idx3-ubyte", "fewer than the 1568 bytes")


def test_a_full_disk_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path):
    def full(file: Path, *content: object) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("dualcaps.runs.files.write_bytes", full)
    monkeypatch.setattr("dualcaps.runs.files.write_with", full)
    assert_one_line(run_cli("train", shapes, *FAST, "--model", "capsnet"), "No space left on device")
    assert not list(Path.cwd().iterdir())


def test_a_read_only_folder_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path):
    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "runs")

    with monkeypatch.context() as patch:
        patch.setattr("dualcaps.runs.files.tempfile.mkdtemp", read_only)
        assert_one_line(run_cli("train", shapes, *FAST, "--model", "capsnet"), "Read-only file system")
    assert not list(Path.cwd().iterdir())


def test_a_folder_that_becomes_read_only_keeps_the_run(
    run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path
):
    write, written = files.write_with, []

    def read_only(file: Path, content: Any) -> None:
        if written.count("metrics.jsonl") == 1:
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        written.append(file.name)
        write(file, content)

    command = ("train", shapes, *FAST, "--model", "cnn", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr("dualcaps.runs.files.write_with", read_only)
        assert_one_line_at_end(run_cli(*command), "Read-only file system")
    said = run_cli(*command, "--resume")
    assert said.code == 0, said.err
    assert "resumed after epoch 1 of 2" in said.err


def test_images_that_vanished_are_named_and_the_run_waits_for_them(run_cli: Callable, shapes_folder: Path):
    command = ("train", shapes_folder, "--model", "cnn", "--precision", "float32", "--out", "run", "--epochs")
    assert run_cli(*command, 1).code == 0
    away = shapes_folder.rename(shapes_folder.with_name("away"))
    assert_one_line(run_cli(*command, 2, "--resume"), str(shapes_folder))
    (away / "down" / "03.png").rename(away / "down" / "kept.tmp")
    away.rename(shapes_folder)
    assert_one_line(run_cli(*command, 2, "--resume"), "not those it was started with")
    (shapes_folder / "down" / "kept.tmp").rename(shapes_folder / "down" / "03.png")
    assert run_cli(*command, 2, "--resume").code == 0
    assert len(Run.open(Path("run")).history) == 2


def test_files_that_vanish_while_they_are_read_are_named(
    run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path
):
    read = images.read_images

    def vanishing(paths: Any, *arguments: Any, **options: Any) -> Any:
        shutil.rmtree(shapes_folder / "down")
        return read(paths, *arguments, **options)

    monkeypatch.setattr("dualcaps.data.sources.encoded.read_images", vanishing)
    assert_one_line(run_cli("train", shapes_folder, *FAST, "--model", "cnn"), "down/00.png", "12 of 36")
    assert [path.name for path in Path.cwd().iterdir()] == []


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(run_cli: Callable, shapes: Path):
    command = ("train", shapes, *FAST, "--model", "cnn", "--out", "run")
    assert run_cli(*command, "--epochs", 1).code == 0
    with locked(Path("run")):
        said = run_cli(*command, "--epochs", 2, "--resume")
        assert_one_line(said, "run: another process is training in this folder: wait for it or stop it")
        assert len(Run.open(Path("run")).history) == 1
    assert run_cli(*command, "--epochs", 2, "--resume").code == 0


def test_a_clock_that_jumps_changes_nothing(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path):
    jumps = itertools.cycle([0.0, 4e9, 1e9, 2e9])
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: next(jumps))
        assert run_cli("train", shapes, *FAST, "--model", "cnn", "--out", "jumping").code == 0
        assert run_cli("evaluate", "jumping").code == 0
    assert run_cli("train", shapes, *FAST, "--model", "cnn", "--out", "steady").code == 0
    one, other = (Run.open(Path(name)) for name in ("jumping", "steady"))
    assert [line["loss"] for line in one.history] == [line["loss"] for line in other.history]
    assert all(0 < line["seconds"] < 600 for line in one.history)


def test_out_of_memory_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    def greedy(*arguments: object, **options: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr("dualcaps.models.create_model", greedy)
    assert_one_line(run_cli("train", "digits"), "out of memory", "--batch-size")


def test_an_interrupted_training_says_how_to_continue(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, shapes: Path):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dualcaps.training.fit.fit", interrupted)
    said = run_cli("train", shapes, "--model", "da-capsnet", "--out", "my run")
    assert said.code == 130
    assert said.err.endswith(
        f"dualcaps: interrupted; to continue: dualcaps train {shapes} --model da-capsnet --out 'my run' --resume\n"
    )


def test_a_bug_is_not_reported_as_invalid_input(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualcaps.models.create_model", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cli("train", "digits")
    assert issubclass(DualcapsError, ValueError)


def test_names_with_brackets_and_dollars_are_printed_as_they_are(run_cli: Callable, shapes_folder: Path):
    (shapes_folder / "down").rename(shapes_folder / "[down] $a_$b")
    said = run_cli("train", shapes_folder, *FAST, "--model", "capsnet", "--out", "[a run]")
    assert said.code == 0, said.err
    assert "[a run]" in said.out
    assert "[down] $a_$b" in run_cli("evaluate", "[a run]").out
    assert "[down] $a_$b" in run_cli("predict", "[a run]", shapes_folder / "across", "--top", 3).out


PLUGIN = """
import torch
from dualcaps import ImageDataset, register_dataset, register_model, register_routing, wrap_module
from dualcaps import Routing

@register_routing("mean-of-votes")
def mean_of_votes(votes, iterations, scale=1.0):
    return Routing(scale * votes.mean(dim=2), None)

@register_model("linear")
def linear(config):
    size = config.image_shape[0] * config.image_shape[1] * config.image_shape[2]
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, config.num_classes))
    return wrap_module(module, config.image_shape, config.num_classes)

@register_dataset("stripes")
def stripes(config):
    images = torch.arange(60 * 144).reshape(60, 12, 12) % 256
    return ImageDataset.from_arrays(images.to(torch.uint8).numpy(), [0, 1] * 30, ["even", "odd"])
"""


@pytest.mark.usefixtures("own_registry")
def test_plugins_are_listed_trained_evaluated_and_needed_to_load(run_cli: Callable, shapes: Path):
    Path("mine.py").write_text(PLUGIN, encoding="utf-8")
    plugin = ("--plugin", "mine.py")
    listed = run_cli(*plugin, "models")
    assert listed.code == 0, listed.err
    assert "linear (mine.py)" in listed.out
    assert "mean-of-votes (mine.py)" in listed.out
    assert "stripes (mine.py)" in listed.out
    assert "plug-in mine.py" in run_cli("data", "list", *plugin).out
    train = ("train", shapes, "--epochs", 1, "--precision", "float32", *plugin)
    said = run_cli(*train, "--model", "capsnet", "--routing", "mean-of-votes", "--options", "scale=0.5", "--out", "a")
    assert said.code == 0, said.err
    config = json.loads(Path("a/config.json").read_text(encoding="utf-8"))
    assert (config["model"]["routing"], config["model"]["options"]) == ("mean-of-votes", {"scale": 0.5})
    said = run_cli("train", "stripes", "--epochs", 1, "--model", "linear", *plugin, "--out", "b")
    assert said.code == 0, said.err
    for run in ("a", "b"):
        assert run_cli("evaluate", run, *plugin).out.startswith("accuracy ")


@pytest.mark.usefixtures("own_registry")
def test_plugins_that_cannot_be_loaded_are_one_line(run_cli: Callable):
    assert_one_line(run_cli("--plugin", "none.py", "models"), "--plugin none.py: no such Python file")
    Path("broken.py").write_text("import nothing_of_this_name", encoding="utf-8")
    assert_one_line(run_cli("models", "--plugin", "broken.py"), "--plugin broken.py", "nothing_of_this_name")
    assert_one_line(run_cli("--plugin"), "--plugin")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_at_random_moments_of_training_it_resumes_to_the_same_weights(shapes: Path, tmp_path: Path):
    command = [
        *("train", str(shapes), "--model", "da-capsnet", "--epochs", "20", "--batch-size", "8", "--device", "cpu"),
        *("--precision", "float32", "--deterministic", "--resume", "--out"),
    ]

    def start(run: Path) -> BaseProcess:
        process = process_context().Process(target=cli.main, args=([*command, str(run)],))
        process.start()
        return process

    def sessions(run: Path) -> int:
        return len(Run.open(run).provenance["sessions"]) if run.exists() else 0

    def train(run: Path) -> None:
        process = start(run)
        process.join(timeout=300)
        assert process.exitcode == 0

    train(tmp_path / "whole")
    training_seconds = sum(line["seconds"] for line in Run.open(tmp_path / "whole").history)
    dice, run, kills = random.Random(0), tmp_path / "killed", 0
    while kills < 3:
        process = start(run)
        while sessions(run) == kills and process.is_alive():
            time.sleep(0.01)  # until this process trains
        time.sleep(dice.uniform(0, training_seconds / 8))
        process.kill()
        process.join()
        if Run.open(run).finished:
            break
        kills += 1
    assert kills == 3, "finished before it could be killed often"
    train(run)
    whole, killed = (safetensors.torch.load_file(path / "model.safetensors") for path in (tmp_path / "whole", run))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_photos_has_a_learning_rate_for_networks_that_end_in_a_softmax(
    run_cli: Callable, shapes_folder: Path, tmp_path: Path
):
    how = ("--recipe", "photos", "--epochs", 1, "--device", "cpu", "--width", 4, "--image-size", 12, 12)
    for name, model, rate in (
        ("capsules", ("--model", "capsnet-r"), 0.15),
        ("softmax", ("--model", "resnet-r"), 0.025),
        ("asked", ("--model", "resnet-r", "--lr", 0.15), 0.15),
    ):
        run = tmp_path / name
        said = run_cli("train", shapes_folder, *how, *model, "--out", run)
        assert ("as resnet-r ends in a softmax" in said.err) == (name == "softmax")
        assert Run.open(run).training.lr == rate
