"""Self-routing capsules."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.registry import register_routing
from dualcaps.routing.types import Routing, RoutingIteration, scale_to_length


@register_routing("self-routing")
class SelfRouting(nn.Module):
    """Let each child choose its parents by a linear layer of its own (Hahn, Pyeon & Kim 2019).

    "Self-routing capsule networks", NeurIPS 2019, Eqs. 4-7. Couplings are `c_ij = softmax over the parents of
    b_ij`, activations `a_j = sum_i c_ij / N` and poses `mu_j = sum_i c_ij u_j|i / sum_i c_ij`. Nothing
    iterates, and votes need not agree.

    Differences: the authors compute `b_i = W_i x_i` from the child's pose x_i. Only votes come through this
    door; as they are linear in x_i, `b_ij = w_ij . u_j|i + o_ij` is a linear layer of x_i too, whose row for
    parent j lies in the span of that parent's vote matrix. The children's activations are 1. The pose is mu_j
    brought to the length a_j; the activations sum to 1 over the parents.

    Args:
        parents, children, dim: sizes of the votes.
    """

    def __init__(self, parents: int, children: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parents, children, dim))
        self.offset = nn.Parameter(torch.zeros(parents, children))

    def forward(
        self, votes: Float[Tensor, "batch parents children dim"], *, trace: list[RoutingIteration] | None = None
    ) -> Routing:
        """Route; see `dualcaps.route` for the arguments."""
        logits = (votes * self.weight).sum(dim=-1) + self.offset
        couplings = logits.softmax(dim=1)
        sums = torch.matmul(couplings.unsqueeze(-2), votes).squeeze(-2)  # in the direction of mu_j
        poses = scale_to_length(sums, couplings.mean(dim=2, keepdim=True))
        if trace is not None:
            trace.append(RoutingIteration(logits, couplings, poses))
        return Routing(poses, couplings)
