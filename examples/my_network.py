"""Whole networks of one's own: a `Network` subclass, and a plain module with one line of wrapping.

dualcaps train digits --plugin examples/my_network.py --model patch-capsnet --options patch=4
dualcaps train digits --plugin examples/my_network.py --model tiny-mlp
"""

from torch import Tensor, nn

from dualcaps import CapsOutput, Intermediates, ModelConfig, Network, register_model, route, wrap_module


@register_model("patch-capsnet", routing="dynamic", decoder=False)
class PatchCapsNet(Network):
    """Each patch of the image votes for the classes by one linear layer, followed by routing."""

    def __init__(self, config: ModelConfig, patch: int = 7, dim: int = 8) -> None:
        super().__init__(config)
        self.dim = dim
        self.patches = nn.Sequential(nn.Conv2d(config.image_shape[0], 64, patch, stride=patch), nn.GELU())
        self.votes = nn.Linear(64, config.num_classes * dim)

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput | Intermediates:
        """Classify images."""
        features = self.patches(self.prepare(images))  # uint8 to floats in [0, 1]
        votes = self.votes(features.flatten(2).transpose(1, 2))  # [B, patches, classes * dim]
        votes = votes.unflatten(2, (self.config.num_classes, self.dim)).transpose(1, 2)
        found = route(votes, self.config.iterations, method=self.config.routing, couplings=intermediates)
        output = CapsOutput(found.parents.norm(dim=-1), found.parents)
        if intermediates:
            return Intermediates(*output, features=features, votes=votes, couplings=found.couplings)
        return output


@register_model("tiny-mlp", decoder=False)
def tiny_mlp(config: ModelConfig) -> Network:
    """Two linear layers that know nothing of this package; trained with cross-entropy."""
    channels, height, width = config.image_shape
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU(), nn.Linear(128, config.num_classes)
    )
    return wrap_module(module, config.image_shape, config.num_classes, name=config.name)
