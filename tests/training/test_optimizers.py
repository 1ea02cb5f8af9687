"""Optimizers, schedules and class weights against their formulas."""

import math
from typing import Any

import pytest
import torch

from dualcaps import ConfigError, TrainConfig
from dualcaps.training.optimizers import build_optimizer, build_schedule, class_weights


def rates(schedule: Any, epochs: int = 6, steps: int = 10, **options: Any) -> list[float]:
    rate = build_schedule(TrainConfig(epochs=epochs, schedule=schedule, **options), 0.4, steps)
    assert rate is not None
    return [rate(step) for step in range(epochs * steps)]


def test_a_constant_rate_needs_no_schedule():
    assert build_schedule(TrainConfig(), 0.4, 10) is None


def test_cosine_falls_to_zero():
    assert rates("cosine") == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 60)) / 2 for step in range(60)])


def test_step_is_a_tenth_after_each_third():
    assert rates("step") == pytest.approx([0.4] * 20 + [0.04] * 20 + [0.004] * 20)


def test_one_cycle_rises_and_falls():
    found = rates("one-cycle")
    assert found[0] == pytest.approx(0.4 / 25)
    assert max(found) == pytest.approx(0.4)
    assert found.index(max(found)) == 18  # 30 % of 60 steps
    assert sorted(found[:19]) == found[:19]
    assert sorted(found[18:], reverse=True) == found[18:]
    assert found[-1] < 0.001


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle"])
def test_warm_up_is_linear_and_the_schedule_follows(schedule: str):
    found = rates(schedule, warmup_epochs=2.0)
    assert found[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert found[20:] == pytest.approx(rates(schedule, epochs=4) if schedule != "constant" else [0.4] * 40)


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        ({"beta1": 0.8, "weight_decay": 0.1}, lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.999), 1e-7, 0.1)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, 0.1, (0.9, 0.999), 1e-7, 0.1)),
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
        ({"optimizer": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.1)),
    ],
)  # fmt: skip
def test_optimizers_are_torchs(config: dict[str, Any], optimizer: Any):
    outcomes = []
    for build in (lambda m: build_optimizer(m, TrainConfig(**config), 0.1), lambda m: optimizer(m.parameters())):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        built = build(model)
        for _ in range(3):
            built.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            built.step()
        outcomes.append(model.weight.detach())
    torch.testing.assert_close(*outcomes)


def test_balanced_weights_make_every_class_count_equally():
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = class_weights(TrainConfig(class_weight="balanced"), labels, 4)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 0.0, 10 / 3]))
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))
    given = class_weights(TrainConfig(class_weight=(1, 2, 3, 4)), labels, 4)
    torch.testing.assert_close(given, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for wrong in ((1, 2), (0, 0, 0, 0)):
        with pytest.raises(ConfigError, match="class_weight must be 4 weights"):
            class_weights(TrainConfig(class_weight=wrong), labels, 4)
