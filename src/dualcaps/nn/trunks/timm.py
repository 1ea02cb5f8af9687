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

    Args:
        backbone: created by timm with `features_only=True` and one stage in `out_indices`.
        stage: which of its feature maps that is, counted from the first.
    """

    def __init__(self, backbone: nn.Module, stage: int) -> None:
        super().__init__()
        self.backbone, self.stage = backbone, stage

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """The feature map of images with values in [0, 1]."""
        return self.backbone(images)[0]


def build_timm_trunk(config: ModelConfig, name: str, stage: int | None = None, **options: Any) -> TimmTrunk:
    """A timm backbone by its name, such as "resnet18".

    Args:
        config: of the network.
        name: the backbone's name in timm.
        stage: which of its feature maps; by default the last one with at least 4x4 positions for these
            images, or the first where none has.
        **options: passed on to `timm.create_model`.

    Raises:
        ModelError: timm is not installed, does not know the name, or the backbone has no such stage.
    """
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
    return TimmTrunk(backbone, stage)


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
