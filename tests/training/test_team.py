"""Several processes train as one does: the same losses, one run folder, and a killed one ends the others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import ImageSplit
from dualcaps.runs.run import Run
from dualcaps.training.team import Team

CPU = torch.device("cpu")


@given(count=st.integers(1, 20), size=st.integers(1, 6))
def test_shares_make_up_the_batch_and_weigh_as_many_images(count: int, size: int):
    teams = [Team(CPU, rank, size) for rank in range(size)]
    shares = [(torch.arange(count)[team.share(count)], team.weight(count)) for team in teams]
    assert [team.share_of(count) for team in teams] == [len(own) if weight else 0 for own, weight in shares]
    seen = torch.cat([own for own, weight in shares if weight])
    assert seen.tolist() == list(range(count))
    for own, weight in shares:
        assert len(own) >= 1
        assert weight == pytest.approx(len(own) * size / count if weight else 0)
    losses = torch.rand(count)
    mean = sum(weight * losses[own].mean() for own, weight in shares) / size
    assert mean == pytest.approx(float(losses.mean()), rel=1e-5)


@given(count=st.integers(1, 20), size=st.integers(1, 6))
def test_parts_make_up_the_images_to_evaluate(count: int, size: int):
    split = ImageSplit(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(count))
    parts = [Team(CPU, rank, size).part(split) for rank in range(size)]
    assert sorted(label for part in parts for label in part.labels.tolist()) == list(range(count))


def start_two(*arguments: Any) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "dualcaps", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def said(process: subprocess.Popen[str], code: int | None = 0) -> str:
    out, err = process.communicate(timeout=180)
    assert code is None or process.returncode == code, err
    return out + err


SETTINGS = ("--model", "capsnet", "--precision", "float32", "--device", "cpu", "--compile", "never", "--batch-size", 8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_two_processes_follow_the_loss_of_one(shapes_folder: Path, run_cli: Callable):
    settings = (*SETTINGS, "--optimizer", "sgd", "--lr", 0.02, "--ema", 0.5, "--epochs", 14)  # 4 steps each, 56
    assert run_cli("train", shapes_folder, *settings, "--out", "run-1").code == 0
    output = said(start_two("train", shapes_folder, *settings, "--out", "run-2"))
    one, two = (Run.open(Path(f"run-{processes}")) for processes in (1, 2))
    for line, other in zip(one.history, two.history, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert line["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=0.08)
        assert line["validation_accuracy"] == pytest.approx(other["validation_accuracy"], abs=0.4)
    assert one.history[-1]["loss"] < one.history[0]["loss"]
    assert [run.provenance["sessions"][0]["processes"] for run in (one, two)] == [1, 2]
    assert output.count("epoch 14/14") == output.count("test accuracy") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun and signals")
def test_a_killed_process_ends_the_others_and_any_number_goes_on(
    shapes_folder: Path, run_cli: Callable, tmp_path: Path
):
    command = ("train", shapes_folder, *SETTINGS, "--epochs", 2000, "--out", tmp_path / "run")
    training = start_two(*command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() and training.poll() is None:
        time.sleep(0.05)
    victim = next(process for process in _children(training.pid) if _environment(process).get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    words = said(training, code=None)
    assert time.monotonic() - killed < 60
    assert training.returncode != 0
    assert (
        words.count("dualcaps: another process of this training has ended: start all of them again with --resume") == 1
    )
    done = len(metrics.read_text(encoding="utf-8").splitlines())
    for processes in (1, 2):
        done += 3
        resumed = ("train", shapes_folder, *SETTINGS, "--epochs", done, "--out", tmp_path / "run", "--resume")
        if processes == 1:
            code, out, err = run_cli(*resumed)
            assert code == 0, err
            words = out + err
        else:
            words = said(start_two(*resumed))
        assert f"resumed after epoch {done - 3} of {done}" in words
    run = Run.open(tmp_path / "run")
    assert [line["epoch"] for line in run.history] == list(range(1, done + 1))
    assert [session["processes"] for session in run.provenance["sessions"]] == [2, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_an_error_is_said_once(shapes_folder: Path):
    Path("taken").mkdir()
    Path("taken/file").touch()
    words = said(start_two("train", shapes_folder, *SETTINGS, "--epochs", 1, "--out", "taken"), code=1)
    assert words.count("dualcaps: taken: exists already") == 1


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {name.decode(): value.decode() for name, _, value in (pair.partition(b"=") for pair in pairs)}
