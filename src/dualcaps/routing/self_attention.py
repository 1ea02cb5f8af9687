"""Self-attention routing of Efficient-CapsNet."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.registry import register_routing
from dualcaps.routing.types import Routing, RoutingIteration, safe_length, scale_to_length


@register_routing("self-attention")
class SelfAttentionRouting(nn.Module):
    """Couple by the agreement of a child's vote with those of all children (Mazzia, Salvetti & Chiaberge 2021).

    "Efficient-CapsNet: capsule network with self-attention routing", arXiv:2101.12491, Eqs. 5-8. For each
    parent j, `b_ij = sum_k u_j|i . u_j|k / sqrt(D)`, `c_ij = softmax over the parents of b_ij`,
    `s_j = sum_i (c_ij + p_ij) u_j|i` with learned priors p, which start at zero, and
    `v_j = (1 - exp(-|s_j|)) s_j / |s_j|`. There are no iterations. As `sum_k u_j|k` is the same for all children, time
    and memory are linear in their number.

    The couplings returned are c, without the priors.

    Args:
        parents, children, dim: sizes of the votes.
    """

    def __init__(self, parents: int, children: int, dim: int) -> None:  # noqa: ARG002
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(parents, children))

    def forward(
        self, votes: Float[Tensor, "batch parents children dim"], *, trace: list[RoutingIteration] | None = None
    ) -> Routing:
        """Route; see `dualcaps.route` for the arguments."""
        logits = torch.matmul(votes, votes.sum(dim=2).unsqueeze(-1)).squeeze(-1) / votes.shape[3] ** 0.5
        couplings = logits.softmax(dim=1)
        sums = torch.matmul((couplings + self.prior).unsqueeze(-2), votes).squeeze(-2)
        poses = scale_to_length(sums, 1 - torch.exp(-safe_length(sums)))
        if trace is not None:
            trace.append(RoutingIteration(logits, couplings, poses))
        return Routing(poses, couplings)
