"""The paper's two attention modules."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.config import Gate
from dualcaps.nn.layers import glorot_linear


class ConvAttention(nn.Module):
    """Gate each channel by the means of all channels over the plane (Eqs. 8-12).

    `g = mean over the plane`, `a = tanh(W2 relu(W1 g + b1) + b2)`, output `u + u * a`. Both
    layers are as wide as the channels. The paper's text adds a where Eq. 11 adds u; Eq. 11 is followed.
    With the gate "sigmoid" it is squeeze and excitation (Hu et al. 2018) without its bottleneck:
    `a = sigmoid(…)`, output `u * a`. With "additive" the output is `u + a`: the same
    layers as a plain residual branch, as a control for attention.
    """

    def __init__(self, channels: int, gate: Gate = "tanh") -> None:
        super().__init__()
        self.kind_of_gate: Gate = gate
        self.reduce = glorot_linear(channels, channels)
        self.expand = glorot_linear(channels, channels)

    def gate(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
        """The gates a: a channel is multiplied by 1 + a, in (0, 2), or with "sigmoid" by a, in (0, 1).

        With "additive" they are in (-1, 1) and added.
        """
        return _open(self.kind_of_gate, self.expand(torch.relu(self.reduce(features.mean(dim=(2, 3))))))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Apply the gate of each channel."""
        gates = self.gate(features)[:, :, None, None]
        if self.kind_of_gate == "additive":
            return features + gates
        return features * (gates if self.kind_of_gate == "sigmoid" else 1 + gates)


class CapsAttention(nn.Module):
    """Gate the votes by all votes together (Eqs. 13-16): output `u + u * a`.

    The paper gives no widths; `kind` selects an interpretation:

    - "element": the votes as one vector, J*N*D -> J*D -> J*N*D, one gate for each element;
    - "capsule": J*N*D -> J*N -> J*N, one gate for each vote;
    - "shared": the same layers D -> D -> D applied to every vote.

    Each is two layers, ReLU then tanh. With the gate "sigmoid" the second ends in a sigmoid and
    the output is `u * a`, as in squeeze and excitation; with "additive" it is `u + a`, which is no
    attention but has the same layers. `hidden` replaces the width of the first layer.
    """

    def __init__(
        self,
        kind: Literal["element", "capsule", "shared"],
        parents: int,
        children: int,
        dim: int,
        gate: Gate = "tanh",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        votes, numbers = parents * children, parents * children * dim
        inputs, usual, outputs = {
            "element": (numbers, parents * dim, numbers),
            "capsule": (numbers, votes, votes),
            "shared": (dim, dim, dim),
        }[kind]
        self.kind = kind
        self.kind_of_gate: Gate = gate
        self.reduce = glorot_linear(inputs, hidden or usual)
        self.expand = glorot_linear(hidden or usual, outputs)

    def gate(
        self, votes: Float[Tensor, "batch parents children dim"]
    ) -> Float[Tensor, "batch parents children gate_dim"]:
        """The gates a, in (-1, 1) or with "sigmoid" (0, 1); the last axis has size D, or 1 for "capsule"."""
        batch, parents, children, dim = votes.shape
        inputs = votes if self.kind == "shared" else votes.reshape(batch, -1)
        gates = _open(self.kind_of_gate, self.expand(torch.relu(self.reduce(inputs))))
        return gates.reshape(batch, parents, children, 1 if self.kind == "capsule" else dim)

    def forward(
        self, votes: Float[Tensor, "batch parents children dim"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Apply the gates of the votes."""
        votes = votes.contiguous()  # once, instead of in each step of routing
        gates = self.gate(votes)
        if self.kind_of_gate == "additive":
            return votes + gates
        return votes * gates if self.kind_of_gate == "sigmoid" else torch.addcmul(votes, votes, gates)


def _open(kind: Gate, logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) if kind == "sigmoid" else torch.tanh(logits)
