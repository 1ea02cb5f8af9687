"""The paper's trunk (Table 3)."""

from collections import OrderedDict

from torch import nn

from dualcaps.config import ModelConfig
from dualcaps.nn.layers import LayerStack, glorot_conv
from dualcaps.registry import register_trunk


@register_trunk("paper")
def paper_trunk(config: ModelConfig) -> LayerStack:
    """Two convolutions of `width` channels, an average pool, two convolutions of twice as many.

    The two columns of Table 3 differ in the kernel of the last two: 2x2 for images of 28x28 pixels, 3x3
    for 32x32. Here any image whose smaller side is below 32 pixels has 2x2 (D20). The 256 channels of a fifth
    convolution are Table 3's but not the text's (D3, `extra_conv`).
    """
    kernel, width = 2 if min(config.image_shape[1:]) < 32 else 3, config.width
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=glorot_conv(config.image_shape[0], width, 3),
        relu1=nn.ReLU(),
        conv2=glorot_conv(width, width, 3),
        relu2=nn.ReLU(),
        pool=nn.AvgPool2d(2),
        conv3=glorot_conv(width, 2 * width, kernel),
        relu3=nn.ReLU(),
        conv4=glorot_conv(2 * width, 2 * width, kernel),
        relu4=nn.ReLU(),
    )
    if config.extra_conv:
        layers |= OrderedDict(conv5=glorot_conv(2 * width, 4 * width, 3), relu5=nn.ReLU())
    return LayerStack(layers)
