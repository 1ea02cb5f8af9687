"""Optimizers, learning-rate schedules and class weights by the names of `TrainConfig`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dualcaps.config import ModelConfig, TrainConfig
from dualcaps.errors import ConfigError
from dualcaps.models import default_switches

_ADAM_RATE, _SGD_RATE = 1e-3, 0.05  # for networks as wide as the paper's
_RISING_SHARE = 0.3  # of one-cycle's steps


def default_learning_rate(optimizer: str, model: ModelConfig) -> float:
    """The default learning rate.

    Lower in proportion for a network wider than its default (D25): with 397 channels and Adam at 1e-3,
    `capsnet` stayed at chance.
    """
    rate = _SGD_RATE if optimizer == "sgd" else _ADAM_RATE
    return rate * min(1.0, default_switches(model.name)["width"] / model.width)


def build_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a configuration, over all parameters that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(
            parameters, lr, config.momentum, weight_decay=config.weight_decay, nesterov=nesterov, fused=fused
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    betas = (config.beta1, config.beta2)
    return kind(parameters, lr, betas, config.epsilon, weight_decay=config.weight_decay, fused=fused)


def build_schedule(config: TrainConfig, lr: float, steps_per_epoch: int) -> Callable[[int], float] | None:
    """The learning rate as a function of the step, counted from 0 over the whole training; None if constant.

    With e epochs of n steps and warm-up over the first w steps, the rate is `lr (t + 1) / w` before w, and then,
    with p from 0 to 1 over the rest: constant `lr`; cosine `lr (1 + cos(pi p)) / 2`; one-cycle from lr / 25
    up to lr at p = 0.3 and by a cosine down to 0; step `lr 0.1^floor(3 p)`.
    """
    if config.schedule == "constant" and not config.warmup_epochs:
        return None
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)

    def rate(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        progress = (step - warmup) / max(total - warmup, 1)
        match config.schedule:
            case "cosine":
                return lr * (1 + math.cos(math.pi * progress)) / 2
            case "one-cycle":
                if progress < _RISING_SHARE:
                    return lr / 25 + (lr - lr / 25) * progress / _RISING_SHARE
                return lr * (1 + math.cos(math.pi * (progress - _RISING_SHARE) / (1 - _RISING_SHARE))) / 2
            case "step":
                return lr * 0.1 ** math.floor(3 * progress)
            case _:
                return lr

    return rate


def class_weights(config: TrainConfig, labels: Tensor, classes: int) -> Tensor | None:
    """Weight of each class [classes] on the labels' device; None if all are equal.

    "balanced" is N / (C n_c) for the n_c of N training images in class c of the C that have any.

    Raises:
        ConfigError: another number of weights than classes, or only zeros.
    """
    if config.class_weight is None:
        return None
    if config.class_weight == "balanced":
        counts = torch.bincount(labels, minlength=classes).to(torch.float32)
        return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp_min(1)), 0.0)
    weights = torch.tensor(config.class_weight, dtype=torch.float32, device=labels.device)
    if len(weights) != classes or not weights.any():
        raise ConfigError(
            f"class_weight must be {classes} weights, one for each class and not all 0, got {len(weights)}"
        )
    return weights
