"""A trunk of one's own: any module that maps images to a feature map.

dualcaps train digits --plugin examples/my_trunk.py --trunk residual-small
dualcaps train digits --plugin examples/my_trunk.py --trunk residual-small --options channels=64
"""

from torch import Tensor, nn

from dualcaps import ModelConfig, register_trunk


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Add what the layers compute."""
        return (features + self.layers(features)).relu()


@register_trunk("residual-small")
def residual_trunk(config: ModelConfig, channels: int = 32) -> nn.Module:
    """A small residual network that ends in a grid a quarter as wide as the image.

    Args:
        config: of the network; `config.image_shape` has the images' channels.
        channels: of every layer.
    """
    return nn.Sequential(
        nn.Conv2d(config.image_shape[0], channels, 3, stride=2, padding=1),
        Block(channels),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        Block(channels),
    )
