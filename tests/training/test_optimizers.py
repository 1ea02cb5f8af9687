"""Optimizers and schedules: torch's own numbers, formulas by hand, and the same after being stopped."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import draw_shape
from torch import nn

from dualcaps import Callback, ImageDataset, ModelConfig, Network, Run, TrainConfig, create_model, fit
from dualcaps.training.optimizers import build_optimizer, build_schedule, default_learning_rate

LR = 0.1


def rates(epochs: int, steps_per_epoch: int, **options: Any) -> list[float]:
    """The learning rate of each step of a training."""
    schedule = build_schedule(TrainConfig(epochs=epochs, **options), LR, steps_per_epoch)
    return [LR if schedule is None else schedule(step) for step in range(epochs * steps_per_epoch)]


def test_a_constant_rate_needs_no_schedule():
    assert build_schedule(TrainConfig(), LR, 5) is None


def test_cosine_falls_by_half_a_wave():
    wave = [0.1, 0.1 * (1 + math.cos(math.pi / 4)) / 2, 0.05, 0.1 * (1 + math.cos(3 * math.pi / 4)) / 2]
    assert rates(2, 2, schedule="cosine") == pytest.approx(wave)


def test_one_cycle_rises_over_three_tenths_of_the_steps_and_falls_by_half_a_wave():
    rising = [0.004 + 0.096 * share for share in (0, 1 / 3, 2 / 3)]
    falling = [0.1 * (1 + math.cos(math.pi * seventh / 7)) / 2 for seventh in range(7)]
    assert rates(5, 2, schedule="one-cycle") == pytest.approx(rising + falling)


def test_steps_are_a_tenth_after_each_third():
    assert rates(3, 2, schedule="step") == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rates(1, 4, schedule="step") == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_a_warm_up_rises_by_equal_steps_and_the_schedule_spans_the_rest():
    assert rates(3, 2, warmup_epochs=2) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert rates(3, 2, warmup_epochs=1, schedule="cosine") == pytest.approx(
        [0.05, 0.1, *rates(2, 2, schedule="cosine")]
    )
    assert rates(4, 2, warmup_epochs=1, schedule="step") == pytest.approx([0.05, 0.1, *rates(3, 2, schedule="step")])
    assert rates(2, 3, warmup_epochs=0.5) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_a_warm_up_longer_than_the_training_ends_at_the_full_rate():
    assert rates(1, 4, warmup_epochs=9) == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert rates(1, 1, warmup_epochs=1) == [0.1]


@given(
    schedule=st.sampled_from(["constant", "cosine", "one-cycle", "step"]),
    epochs=st.integers(1, 9), steps=st.integers(1, 9), warmup=st.floats(0, 10),
)  # fmt: skip
def test_every_rate_is_above_zero_and_none_above_the_one_asked_for(schedule, epochs, steps, warmup):
    found = rates(epochs, steps, schedule=schedule, warmup_epochs=warmup)
    assert all(0 < rate <= LR * (1 + 1e-12) for rate in found)


@pytest.mark.parametrize(("optimizer", "usual"), [("adam", 1e-3), ("adamw", 1e-3), ("sgd", 0.05)])
def test_the_usual_rate_falls_with_a_width_above_the_paper_s(optimizer: str, usual: float):
    for width, share in ((8, 1), (64, 1), (128, 0.5), (256, 0.25)):
        config = ModelConfig("capsnet", width=width)
        assert default_learning_rate(optimizer, config) == pytest.approx(usual * share)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def train(module: nn.Linear, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    images = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        optimizer.zero_grad()
        (module(images) - step).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, lambda p, d: torch.optim.Adam(p, LR, (0.9, 0.999), 1e-7, weight_decay=d)),
        (
            {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3},
            lambda p, d: torch.optim.Adam(p, LR, (0.5, 0.9), 1e-3, weight_decay=d),
        ),
        ({"optimizer": "adamw"}, lambda p, d: torch.optim.AdamW(p, LR, (0.9, 0.999), 1e-7, weight_decay=d)),
        ({"optimizer": "sgd"}, lambda p, d: torch.optim.SGD(p, LR, 0.9, nesterov=True, weight_decay=d)),
        ({"optimizer": "sgd", "momentum": 0.0}, lambda p, d: torch.optim.SGD(p, LR, weight_decay=d)),
    ],
    ids=["adam", "adam's options", "adamw", "sgd", "sgd without momentum"],
)
def test_steps_are_those_of_torch(options: dict[str, Any], reference: Any, weight_decay: float):
    ours, theirs = layer(), layer()
    found = train(ours, build_optimizer(ours, TrainConfig(weight_decay=weight_decay, **options), LR))
    expected = train(theirs, reference(theirs.parameters(), weight_decay))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "after"),
    [
        ("adam", lambda w, g: w - LR * g.sign()),  # the mean gradient over its root mean square
        ("adamw", lambda w, g: w - LR * g.sign()),
        ("sgd", lambda w, g: w - LR * (g + 0.9 * g)),  # Nesterov looks one step ahead
    ],
)
def test_the_first_step_is_the_formula(optimizer: Any, after: Any):
    module = layer()
    before = module.weight.detach().clone()
    train(module, build_optimizer(module, TrainConfig(optimizer=optimizer, epsilon=1e-12), LR), steps=1)
    torch.testing.assert_close(module.weight.detach(), after(before, module.weight.grad), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "after"),
    [
        ("adam", lambda w: w - LR * w.sign()),  # the decay is a gradient like others, and so is scaled
        ("adamw", lambda w: w - LR * 0.3 * w),
        ("sgd", lambda w: w - LR * 1.9 * 0.3 * w),
    ],
)
def test_without_a_gradient_weights_decay_as_each_optimizer_does_it(optimizer: Any, after: Any):
    module = layer()
    before = module.weight.detach().clone()
    build = TrainConfig(optimizer=optimizer, weight_decay=0.3, epsilon=1e-12)
    module.weight.grad = torch.zeros_like(module.weight)
    build_optimizer(module, build, LR).step()
    torch.testing.assert_close(module.weight.detach(), after(before), rtol=1e-4, atol=1e-6)


def test_frozen_parameters_are_left_alone():
    module = layer()
    module.bias.requires_grad_(False)
    frozen = module.bias.clone()
    optimizer = build_optimizer(module, TrainConfig(weight_decay=0.3), LR)
    train(module, optimizer)
    assert torch.equal(module.bias, frozen)
    assert len(optimizer.param_groups[0]["params"]) == 1


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    monkeypatch.setattr("dualcaps.training.callbacks.png", lambda figure: b"drawn elsewhere, and slowly")
    random = np.random.default_rng(0)
    images = np.stack([draw_shape(number, (12, 12), random) for number in range(36)])
    return ImageDataset.from_arrays(images, [number % 3 for number in range(36)])


def fresh() -> Network:
    torch.manual_seed(0)
    return create_model("capsnet", (1, 12, 12), 3, width=8, decoder=False)


class Watch(Callback):
    """Notes the learning rate of each step, and stops as a bug would in a chosen epoch."""

    def __init__(self, fail_in: int = 0) -> None:
        self.rates: list[float] = []
        self.fail_in = fail_in

    def on_batch_end(self, state: Any, images: int) -> None:
        self.rates.append(state.optimizer.param_groups[0]["lr"])
        if self.fail_in == len(state.history) + 1:
            raise RuntimeError("a bug")


TINY = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu")
EVERYTHING = dataclasses.replace(
    TINY, optimizer="sgd", schedule="cosine", warmup_epochs=1, ema=0.8, weight_decay=1e-3, grad_clip=0.5, lr=0.1
)


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(file)


@pytest.mark.parametrize(
    "config", [EVERYTHING, dataclasses.replace(TINY, optimizer="adamw", schedule="one-cycle")], ids=["sgd", "adamw"]
)
@pytest.mark.parametrize("stopped_in", [1, 2, 3])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    data: ImageDataset, tmp_path: Path, config: TrainConfig, stopped_in: int
):
    whole, first, second = Watch(), Watch(fail_in=stopped_in), Watch()
    uninterrupted = fit(fresh(), data, config, out=tmp_path / "whole", quiet=True, callbacks=[whole])
    with pytest.raises(RuntimeError, match="a bug"):
        fit(fresh(), data, config, out=tmp_path / "stopped", quiet=True, callbacks=[first])
    assert len(Run.open(tmp_path / "stopped").history) == stopped_in - 1
    resumed = fit(fresh(), data, config, out=tmp_path / "stopped", quiet=True, callbacks=[second], resume=True)
    steps = math.ceil(len(data.train) / 8)
    assert first.rates[: steps * (stopped_in - 1)] + second.rates == whole.rates
    schedule = build_schedule(config, config.lr or 1e-3, steps)
    assert schedule is not None
    assert whole.rates == [schedule(step) for step in range(3 * steps)]
    assert [line["loss"] for line in resumed.history] == [line["loss"] for line in uninterrupted.history]
    for file in ("model.safetensors", "checkpoint.safetensors"):
        expected, found = tensors(tmp_path / "whole" / file), tensors(tmp_path / "stopped" / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    if config.optimizer == "sgd":
        assert {"momentum_buffer", "module", "n_averaged"} <= {part for name in expected for part in name.split(".")}
