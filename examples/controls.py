"""Controls of a sceptic: is it attention that helps `da-capsnet`, or something simpler with as many parameters?

dualcaps reproduce control-sceptic --plugin examples/controls.py --datasets fashion-mnist --seeds 3 --epochs 15 \
    --protocols paper --out runs/sceptic

Each network is `capsnet` with other modules in place of Conv-Attention and Caps-Attention.
"""

import torch
from torch import Tensor, nn

from dualcaps import ModelConfig, register_experiment, register_model
from dualcaps.models import PARENT_DIM, CapsNet
from dualcaps.nn import CapsAttention, ConvAttention, GridVotes
from dualcaps.study.experiments import Experiment, variant
from dualcaps.study.experiments.card import CAPSNET, DA_CAPSNET


class ScaledBranch(nn.Module):
    """`u + s a`: the attention's layers added instead of multiplied, their scale s learned, at first 1."""

    def __init__(self, attention: ConvAttention | CapsAttention) -> None:
        super().__init__()
        self.attention = attention
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the scaled output of the layers."""
        gates = self.attention.gate(inputs)
        return inputs + self.scale * (gates[:, :, None, None] if isinstance(self.attention, ConvAttention) else gates)


class ResidualMLP(nn.Module):
    """`u + W2 relu(W1 u)` of a whole feature map as one vector."""

    def __init__(self, values: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(values, hidden), nn.ReLU(), nn.Linear(hidden, values))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the layers' output."""
        return inputs + self.layers(inputs).view_as(inputs)


class ConstantGate(nn.Module):
    """`u (1 + tanh(g))` with learned numbers g, the same for all images."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the learned gates."""
        return inputs * (1 + self.logits.tanh())


class PositionedGate(nn.Module):
    """Gates of each vote by itself, its child and its parent: the same two layers for all, with learned codes.

    The child's and the parent's code are added to the first layer's output.
    """

    def __init__(self, parents: int, children: int, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.parent_code = nn.Parameter(torch.randn(parents, 1, hidden) / hidden**0.5)
        self.child_code = nn.Parameter(torch.randn(children, hidden) / hidden**0.5)

    def forward(self, votes: Tensor) -> Tensor:
        """Apply the gates."""
        hidden = torch.relu(self.reduce(votes) + self.parent_code + self.child_code)
        return votes * (1 + torch.tanh(self.expand(hidden)))


def _channels(network: CapsNet) -> int:
    """Channels of the feature map."""
    assert isinstance(network.votes, GridVotes)
    return network.votes.transform.in_features


@register_model("capsnet-scaled-branch", conv_attention=True, caps_attention="element")
class ScaledBranchNet(CapsNet):
    """Both modules as branches that are added, with learned scales."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(self.conv_attention, ConvAttention)
        assert isinstance(self.caps_attention, CapsAttention)
        self.conv_attention = ScaledBranch(self.conv_attention)
        self.caps_attention = ScaledBranch(self.caps_attention)


@register_model("capsnet-mlp")
class MLPNet(CapsNet):
    """One residual MLP on the feature map, with the number of parameters of both attention modules together."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        channels, votes = _channels(self), config.num_classes * self.num_children * PARENT_DIM
        values, width = channels * self.num_children, config.num_classes * PARENT_DIM
        both = 2 * channels * (channels + 1) + votes * (2 * width + 1) + width
        self.conv_attention = ResidualMLP(values, round((both - values) / (2 * values + 1)))


@register_model("capsnet-constant-gates")
class ConstantGateNet(CapsNet):
    """A constant gate for each channel and each number of the votes, whatever the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.conv_attention = ConstantGate(_channels(self), 1, 1)
        self.caps_attention = ConstantGate(config.num_classes, self.num_children, PARENT_DIM)


@register_model("capsnet-positioned-gates", conv_attention=True)
class PositionedGateNet(CapsNet):
    """Conv-Attention, and gates of the votes by shared layers that know child and parent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.caps_attention = PositionedGate(config.num_classes, self.num_children, PARENT_DIM)


@register_experiment("control-sceptic")
def control_sceptic() -> Experiment:
    """The card of this experiment."""
    names = ("capsnet-scaled-branch", "capsnet-mlp", "capsnet-constant-gates", "capsnet-positioned-gates")
    return Experiment(
        asks="Is it attention that helps? Branches added with a learned scale, one MLP of equal size, gates that do "
        "not depend on the image, gates by shared layers with position codes.",
        printed="not in the paper",
        networks=(CAPSNET, DA_CAPSNET, *(variant(name) for name in names)),
        data=(("fashion-mnist", ""),),
        any_data=True,
        control=True,
        hours=40,
    )
