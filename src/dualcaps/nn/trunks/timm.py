"""Backbones of timm (PyTorch Image Models) as trunks."""

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.config import ModelConfig
from dualcaps.errors import ModelError

_SMALLEST_GRID = 4


class TimmTrunk(nn.Module):
    """One feature map of a timm backbone.

    Images are standardised by the mean and deviation that timm lists for the backbone's pretrained weights.

    Args:
        backbone: created by timm with `features_only=True` and one stage in `out_indices`.
        stage: which of its feature maps that is, counted from the first.
        channels: of the images.
        grid: rows and columns to average the feature map to; None leaves it as it is.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: nn.Module, stage: int, channels: int, grid: int | None = None) -> None:
        super().__init__()
        self.backbone, self.stage = backbone, stage
        card = getattr(backbone, "pretrained_cfg", None) or {}
        device = next(backbone.parameters()).device  # which older versions of timm choose themselves
        for buffer, value in (("mean", card.get("mean", (0.0,))), ("deviation", card.get("std", (1.0,)))):
            by_channel = value if len(value) == channels else (sum(value) / len(value),) * channels
            self.register_buffer(buffer, torch.tensor(by_channel, device=device).view(1, channels, 1, 1))
        self.pool = nn.Identity() if grid is None else nn.AdaptiveAvgPool2d(grid)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """The feature map of images with values in [0, 1]."""
        return self.pool(self.backbone((images - self.mean) / self.deviation)[0])


_SMALL_BACKBONES = (
    *("resnet18.a1_in1k", "resnet18.tv_in1k", "resnet26.bt_in1k", "resnet34.a1_in1k", "resnet34.tv_in1k"),
    *("efficientnet_b0.ra_in1k", "resnet50.a1_in1k", "resnet50.tv_in1k"),
)
"""Backbones that train on a CPU, in the order of preference."""


def find_pretrained() -> tuple[str, str] | None:
    """A small backbone whose pretrained weights are in the cache of Hugging Face, and the weights' file; or None.

    Nothing is downloaded. None too if timm is not installed.
    """
    try:
        import timm  # noqa: F401  # pyright: ignore[reportMissingImports]
        from huggingface_hub import try_to_load_from_cache
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return None
    for name in _SMALL_BACKBONES:
        file = try_to_load_from_cache(f"timm/{name}", "model.safetensors")
        if isinstance(file, str):
            return name, file
    return None


def build_timm_trunk(
    config: ModelConfig, name: str, stage: int | None = None, grid: int | None = None, **options: Any
) -> TimmTrunk:
    """A timm backbone by its name, such as "resnet18".

    Args:
        config: of the network.
        name: the backbone's name in timm.
        stage: which of its feature maps; by default the last one with at least 4x4 positions for these
            images, or the first where none has.
        grid: rows and columns to average that feature map to; by default it is left as it is.
        **options: passed on to `timm.create_model`.

    Raises:
        ModelError: timm is not installed, does not know the name, or the backbone has no such stage.
    """
    if grid is not None and not (isinstance(grid, int) and grid >= 1):
        raise ModelError(f"grid must be a whole number of at least 1, got {grid!r}")
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise ModelError(
            f"--trunk timm:{name} needs timm, which cannot be imported ({' '.join(str(error).split())}): "
            "pip install 'dualcaps[timm]', with a torchvision that fits this torch"
        ) from error
    arguments = {"pretrained": False, "features_only": True, "in_chans": config.image_shape[0], **options}
    try:
        strides = _strides(timm, name, arguments)
        if stage is None:
            stage = _choose_stage(strides, config.image_shape[1:])
        elif not -1 <= stage < len(strides):
            raise ModelError(f"--trunk timm:{name} has stages 0 to {len(strides) - 1}, got {stage}")
        stage %= len(strides)
        backbone = _create(timm, name, arguments | {"out_indices": (stage,)})  # without the layers after that stage
    except ModelError:
        raise
    except Exception as error:  # timm raises errors of many types for names and options
        raise ModelError(f"--trunk timm:{name}: {' '.join(str(error).split())}") from error
    return TimmTrunk(backbone, stage, config.image_shape[0], grid)


def _strides(timm: Any, name: str, arguments: dict[str, Any]) -> list[int]:
    """How much smaller than the image each feature map of a backbone is."""
    with torch.device("meta"):
        return list(_create(timm, name, arguments).feature_info.reduction())


def _create(timm: Any, name: str, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **arguments)
    except NotImplementedError:  # older versions of timm compute with tensors when they build some backbones
        device = torch.get_default_device()
        with torch.device("cpu"), torch.random.fork_rng([]):
            return timm.create_model(name, **arguments).to(device)


def _choose_stage(strides: list[int], size: tuple[int, int]) -> int:
    fitting = [stage for stage, stride in enumerate(strides) if min(size) // stride >= _SMALLEST_GRID]
    return fitting[-1] if fitting else 0


def load_trunk_weights(trunk: nn.Module, path: str) -> str:
    """Load pretrained weights into a trunk from a safetensors file, as far as names and shapes fit.

    Weights of a classifier, and of a first convolution for another number of channels, are left out.

    Args:
        trunk: a trunk, or a `TimmTrunk`, whose weights timm names without `backbone.`.
        path: the file.

    Returns:
        A sentence on how many tensors were loaded and which keep their initial values.

    Raises:
        ModelError: the file cannot be read, or no tensor fits.
    """
    import safetensors
    import safetensors.torch

    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"--trunk-weights {path}: not a safetensors file that can be read ({error})") from error
    target = trunk.backbone if isinstance(trunk, TimmTrunk) else trunk
    own = target.state_dict()
    by_words = {_words(name): name for name in own}  # timm's feature extractors write stages_0 for stages.0
    fitting = {
        by_words[_words(name)]: tensor
        for name, tensor in weights.items()
        if _words(name) in by_words and own[by_words[_words(name)]].shape == tensor.shape
    }
    if not fitting:
        raise ModelError(f"--trunk-weights {path}: none of its {len(weights)} tensors fits the trunk")
    with torch.no_grad():
        target.load_state_dict(fitting, strict=False)
    initial = [name for name in own if name not in fitting]
    others = f"; initialised: {', '.join(initial[:4])}{' …' if len(initial) > 4 else ''}" if initial else ""
    return f"{len(fitting)} of the trunk's {len(own)} tensors loaded from {path}{others}"


def _words(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"[._]", name))
