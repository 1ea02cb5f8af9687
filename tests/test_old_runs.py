"""Runs written by commit 2be9c1a (run format 1) are read, evaluated and resumed."""

import shutil
from pathlib import Path

import pytest
import torch

from dualcaps import TrainConfig, create_model, fit, load_data, load_model
from dualcaps.inference import evaluate_run
from dualcaps.runs.run import Run

OLD = Path(__file__).parent / "golden" / "format-1"


@pytest.mark.parametrize("name", ["finished", "attention"])
def test_a_finished_run_still_gives_its_accuracy(name: str):
    evaluated = evaluate_run(OLD / name, device="cpu")
    assert evaluated.evaluation.accuracy == pytest.approx(Run.open(OLD / name).result["test_accuracy"], abs=3 / 359)
    assert load_model(OLD / name).classes == evaluated.model.classes == tuple("0123456789")


def test_a_stopped_run_is_resumed(tmp_path: Path):
    shutil.copytree(OLD / "stopped", tmp_path / "run")
    data = load_data("digits")
    torch.manual_seed(0)
    model = create_model("capsnet", data.image_shape, 10, width=8, decoder=False)
    kept = Run.open(OLD / "stopped").history
    result = fit(model, data, TrainConfig(epochs=3, precision="float32"), out=tmp_path / "run", resume=True, quiet=True)
    assert len(result.history) == 3
    assert result.history[: len(kept)] == kept
