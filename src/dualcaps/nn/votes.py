"""Votes: what each child capsule predicts for each parent."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.nn.layers import glorot_linear
from dualcaps.routing import squash


class GridVotes(nn.Module):
    """Votes of the capsules of a feature map (Eq. 5), one weight matrix for all positions.

    Child i is the vector of channels at grid position (i // width, i % width). The map to the
    votes is linear, without bias and without a squash on the children.

    Args:
        channels: of the feature map.
        parents: number of parent capsules.
        dim: of each parent.
        scaled: whether the children are multiplied by the buffer `scale`, 1 at first, for trunks whose features are
            larger than those of the paper's.
    """

    scale: Float[Tensor, ""] | None

    def __init__(self, channels: int, parents: int, dim: int, scaled: bool = False) -> None:
        super().__init__()
        self.parents, self.dim = parents, dim
        self.transform = glorot_linear(channels, parents * dim, bias=False)
        self.register_buffer("scale", torch.ones(()) if scaled else None)

    def child_vectors(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch children channels"]:
        """The vector of channels at each position, scaled."""
        children = features.flatten(2).transpose(1, 2)
        return children if self.scale is None else children * self.scale

    def matrices(self) -> Float[Tensor, "parents dim channels"]:
        """The matrices that map each child to its vote for each parent."""
        return self.transform.weight.unflatten(0, (self.parents, self.dim))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Compute the votes of the children for each parent."""
        return self.transform(self.child_vectors(features)).unflatten(2, (self.parents, self.dim)).transpose(1, 2)


class PositionVotes(nn.Module):
    """Votes with a weight matrix for each (child, parent) pair, of the capsules of a feature map.

    Sabour et al. 2017: the channels at each grid position are `channels / child_dim` squashed
    capsules; child `(row * width + column) * types + type` has its own matrices.
    """

    def __init__(
        self, channels: int, positions: int, child_dim: int, parents: int, dim: int, squash_constant: float
    ) -> None:
        super().__init__()
        self.child_dim, self.parents, self.dim = child_dim, parents, dim
        self.squash_constant = squash_constant
        children = positions * channels // child_dim
        self.transform = nn.Parameter(torch.empty(children, child_dim, parents * dim))
        nn.init.trunc_normal_(self.transform, std=0.1, a=-0.2, b=0.2)  # as in the authors' code

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Squash the primary capsules and compute their votes for each parent."""
        children = features.permute(0, 2, 3, 1).reshape(features.shape[0], -1, self.child_dim)
        children = squash(children.to(torch.promote_types(children.dtype, torch.float32)), self.squash_constant)
        votes = torch.einsum("bni,nio->bno", children.to(self.transform.dtype), self.transform)
        return votes.unflatten(2, (self.parents, self.dim)).transpose(1, 2)


class PrimaryVotes(nn.Module):
    """Votes of normalised primary capsules, with a weight matrix for each (child, parent) pair.

    A 1x1 convolution makes `types` capsules of `child_dim` at each grid position, which LayerNorm scales instead of
    a squash; child `(row * width + column) * types + type` has its own matrices, as in `PositionVotes`.
    """

    def __init__(self, channels: int, positions: int, parents: int, dim: int, types: int, child_dim: int) -> None:
        super().__init__()
        self.positions, self.child_dim, self.parents, self.dim = positions, child_dim, parents, dim
        self.primary = nn.Linear(channels, types * child_dim)
        self.norm = nn.LayerNorm(child_dim)
        self.transform = nn.Parameter(torch.empty(positions * types, child_dim, parents * dim))
        nn.init.trunc_normal_(self.transform, std=0.03, a=-0.06, b=0.06)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Compute the primary capsules and their votes for each parent."""
        children = self.primary(features.permute(0, 2, 3, 1).flatten(1, 2))
        children = self.norm(children.reshape(features.shape[0], -1, self.child_dim))
        votes = torch.einsum("bni,nio->bno", children.to(self.transform.dtype), self.transform)
        return votes.unflatten(2, (self.parents, self.dim)).transpose(1, 2)
