"""The short benchmark: no speed without parity, and counts that are right."""

import json
from collections.abc import Callable

import pytest
import torch

from dualcaps import bench, create_model
from dualcaps.bench import ParityError, PlainCapsNet, Timing, check_parity, check_routing_parity, interleave
from dualcaps.routing import route

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["capsnet", "da-capsnet", "capsnet-conv-att", "capsnet-caps-att"])
def test_the_plain_network_is_the_same_network(name: str):
    model = create_model(name, (1, 20, 20), 3, update="replace")
    check_parity(model, CPU, "float32")
    check_parity(model, CPU, "bfloat16")


def test_no_speed_is_reported_for_different_outputs(monkeypatch: pytest.MonkeyPatch):
    model = create_model("capsnet", (1, 20, 20), 3)
    forward = PlainCapsNet.forward
    monkeypatch.setattr(PlainCapsNet, "forward", lambda self, images: forward(self, images.flip(3)))
    with pytest.raises(ParityError, match=r"lengths differ by .* from plain PyTorch's: speeds are not reported"):
        check_parity(model, CPU, "float32")
    votes = torch.randn(2, 3, 4, 5)
    check_routing_parity(lambda v: route(v).parents, lambda v: route(v).parents, votes, 1e-6)
    with pytest.raises(ParityError, match="routing"):
        check_routing_parity(lambda v: route(v, 2).parents, lambda v: route(v, 3).parents, votes, 1e-6)


def test_operations_are_those_of_the_layers():
    gigas = {
        shape: bench.count_operations(create_model("capsnet", shape, decoder=False).config) / 1e9
        for shape in ((3, 32, 32), (1, 28, 28))
    }
    # Convolutions forward, to their weights and, but for the first, to their inputs; then routing.
    convolutions = {
        (3, 32, 32): 2 * (2 * 900 * 64 * 27 + 3 * (784 * 64 * 576 + 144 * 128 * 576 + 100 * 128 * 1152)),
        (1, 28, 28): 2 * (2 * 676 * 64 * 9 + 3 * (576 * 64 * 576 + 121 * 128 * 256 + 100 * 128 * 512)),
    }
    for shape, found in gigas.items():
        assert convolutions[shape] / 1e9 < found < 1.03 * convolutions[shape] / 1e9


def test_candidates_take_turns():
    turns: list[str] = []
    timings = interleave({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=3, items=10)
    assert turns == ["a", "b"] * 4  # the first of each is not counted
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    timing = Timing((2.0, 1.0, 4.0), 8)
    assert (timing.rate, timing.slowest, timing.fastest) == (4.0, 2.0, 8.0)


def test_the_command_prints_speeds_and_ratios(run_cli: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "SHAPES", {"12x12x1": (1, 12, 12)})
    monkeypatch.setattr(bench, "matrix_rate", lambda *_: 1e12)
    train = bench.our_training  # compiled code would not stand the tests' run-time type checks
    monkeypatch.setattr(bench, "our_training", lambda *arguments: train(*arguments[:4], "never"))
    said = run_cli("bench", "--batch-size", "4", "--json")
    assert said.code == 0, said.err
    lines = {line["what"]: line for line in json.loads(said.out)}
    plain, ours = (
        next(line for what, line in lines.items() if text in what) for text in ("plain PyTorch, ", "compiled")
    )
    assert plain["slowest"] <= plain["value"] <= plain["fastest"]
    ratio = lines["da-capsnet 12x12x1: dualcaps / plain PyTorch"]["value"]
    assert ratio == pytest.approx(ours["value"] / plain["value"])
    assert lines["peak memory of this benchmark"]["value"] > 100
    assert run_cli("bench", "--batch-size", "0").code == 2
