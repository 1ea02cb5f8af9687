"""Inverted dot-product attention routing."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.registry import register_routing
from dualcaps.routing.types import Routing, RoutingIteration, scale_to_length


@register_routing("inverted-attention")
class InvertedAttentionRouting(nn.Module):
    """The parents compete for each child by dot products (Tsai, Srivastava, Goh & Salakhutdinov 2020).

    "Capsules with inverted dot-product attention routing", arXiv:2002.04764, Procedure 1. Starting from poses
    p_j = 0, each iteration computes `c_ij = softmax over the parents of p_j . u_j|i` and
    `p_j = LayerNorm(sum_i c_ij u_j|i)`; the parents share the LayerNorm's scale and shift.

    Differences: the authors classify by a linear layer that all parents share, `w . p_j + b`, and a softmax.
    Here its sigmoid is the length of the pose, whose direction is p_j, so that every loss applies. Between
    several capsule layers they iterate all layers concurrently; one layer is routed here.

    Args:
        parents, children, dim: sizes of the votes.
    """

    def __init__(self, parents: int, children: int, dim: int) -> None:  # noqa: ARG002
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.read_out = nn.Linear(dim, 1)

    def forward(
        self,
        votes: Float[Tensor, "batch parents children dim"],
        iterations: int,
        *,
        trace: list[RoutingIteration] | None = None,
    ) -> Routing:
        """Route; see `dualcaps.route` for the arguments."""
        logits = torch.zeros_like(votes[..., 0])
        for iteration in range(iterations):
            couplings = logits.softmax(dim=1)
            directions = self.norm(torch.matmul(couplings.unsqueeze(-2), votes).squeeze(-2))
            poses = scale_to_length(directions, self.read_out(directions).sigmoid())
            if trace is not None:
                trace.append(RoutingIteration(logits, couplings, poses))
            if iteration < iterations - 1:
                logits = torch.matmul(votes, directions.unsqueeze(-1)).squeeze(-1)
        return Routing(poses, couplings)  # pyright: ignore[reportPossiblyUnboundVariable]
