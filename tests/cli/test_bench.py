"""`dualcaps bench` as a user runs it; what it measures is tested with `dualcaps.bench`."""

import json
from collections.abc import Callable

import pytest

from dualcaps import bench

from .messages import assert_one_line


def test_measurements_are_printed_as_lines_and_as_json(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    def run_short(device: str, *, model: str, batch_size: int):
        assert (device, model, batch_size) == ("cpu", "capsnet", 64)
        yield bench.Line("training, dualcaps", 2345.6, "images/s", 2000.0, 2500.0)
        yield bench.Line("training, dualcaps over plain PyTorch", 1.5, "times", 1.5, 1.5)

    monkeypatch.setattr("dualcaps.bench.run_short", run_short)
    command = ("bench", "--device", "cpu", "--model", "capsnet", "--batch-size", 64)
    lines = run_cli(*command).out.splitlines()
    assert lines[0].split() == ["training,", "dualcaps", "2,346", "images/s", "(2,000", "to", "2,500,", "n", "=", "5)"]
    assert lines[1].endswith("1.50 times")
    first, _ = json.loads(run_cli(*command, "--json").out)
    assert first["value"] == 2345.6


def test_invalid_options_are_one_line(run_cli: Callable):
    assert_one_line(run_cli("bench", "--batch-size", 0), "--batch-size must be at least 1")
    assert_one_line(run_cli("bench", "--model", "cnn"), "--model takes one of capsnet, da-capsnet, got 'cnn'")
