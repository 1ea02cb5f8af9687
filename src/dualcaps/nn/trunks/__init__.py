"""Trunks: from images to the feature map whose positions become the child capsules."""

from typing import Any

import torch
from torch import nn

from dualcaps.config import ModelConfig
from dualcaps.errors import ModelError
from dualcaps.nn.layers import training_mode
from dualcaps.nn.trunks import paper as paper
from dualcaps.nn.trunks import residual as residual
from dualcaps.nn.trunks import sabour as sabour
from dualcaps.nn.trunks.timm import build_timm_trunk
from dualcaps.registry import TRUNKS, lookup

TIMM_PREFIX = "timm:"


def build_trunk(config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """The trunk that a configuration names, with fresh weights.

    Args:
        config: of the network.
        options: the trunk's own options.

    Raises:
        ModelError: an unknown trunk, or one that is not a `torch.nn.Module`.
    """
    if config.trunk.startswith(TIMM_PREFIX):
        return build_timm_trunk(config, config.trunk.removeprefix(TIMM_PREFIX), **options)
    trunk = lookup(TRUNKS, "trunk", config.trunk).value(config, **options)
    if not isinstance(trunk, nn.Module):
        raise ModelError(f"trunk {config.trunk} must be a torch.nn.Module, got {type(trunk).__name__}")
    return trunk


def feature_shape(trunk: nn.Module, config: ModelConfig) -> tuple[int, int, int]:
    """Channels, rows and columns of the trunk's feature map, found by running it on zeros.

    Raises:
        ModelError: the images are too small for it, or it does not return a feature map [B, C, H, W].
    """
    channels, height, width = config.image_shape
    parameter = next(trunk.parameters(), torch.zeros(()))
    try:
        with training_mode(trunk, False), torch.no_grad(), torch.random.fork_rng([]):
            zeros = torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)
            features = trunk(zeros)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "size" not in reason and "dimension" not in reason:
            raise
        raise _too_small(trunk, config, reason) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ModelError(
            f"trunk {config.trunk} must return a feature map [batch, channels, rows, columns], got {found}"
        )
    if 0 in features.shape:
        raise _too_small(trunk, config, f"an empty feature map {tuple(features.shape)}")
    return int(features.shape[1]), int(features.shape[2]), int(features.shape[3])


def _too_small(trunk: nn.Module, config: ModelConfig, reason: str) -> ModelError:
    smallest = _smallest_side(trunk, config)
    takes = f", which takes at least {smallest}x{smallest} pixels" if smallest else f" ({reason})"
    return ModelError(
        f"images of {describe_shape(config.image_shape)} are too small for {config.name}{takes}: enlarge them "
        "(--image-size)"
    )


def _smallest_side(trunk: nn.Module, config: ModelConfig) -> int | None:
    """The smallest side of square images that the trunk accepts; None above 64."""
    with torch.no_grad(), torch.random.fork_rng([]):
        for side in range(min(config.image_shape[1:]) + 1, 65):
            parameter = next(trunk.parameters(), torch.zeros(()))
            try:
                zeros = torch.zeros(1, config.image_shape[0], side, side, device=parameter.device)
                if 0 not in trunk(zeros).shape:
                    return side
            except RuntimeError:
                continue
    return None


def describe_shape(shape: tuple[int, ...] | torch.Size) -> str:
    """A readable image shape (channels, height, width)."""
    channels, height, width = shape
    return f"{height}x{width} pixels with {channels} channel{'s' if channels > 1 else ''}"
