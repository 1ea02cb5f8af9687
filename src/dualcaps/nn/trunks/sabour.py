"""The trunk of Sabour, Frosst & Hinton 2017 (arXiv:1710.09829)."""

from collections import OrderedDict

from torch import nn

from dualcaps.config import ModelConfig
from dualcaps.nn.layers import LayerStack, glorot_conv
from dualcaps.registry import register_trunk


@register_trunk("sabour")
def sabour_trunk(config: ModelConfig) -> LayerStack:
    """Two convolutions 9x9 of 256 channels; the second has stride 2 and holds 32 types of capsules of 8 dimensions."""
    return LayerStack(
        OrderedDict(
            conv1=glorot_conv(config.image_shape[0], 256, 9),
            relu1=nn.ReLU(),
            primary=glorot_conv(256, 256, 9, stride=2),
        )
    )
