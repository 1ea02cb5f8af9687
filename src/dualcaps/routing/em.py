"""EM routing of matrix capsules."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.errors import ModelError
from dualcaps.registry import register_routing
from dualcaps.routing.types import Routing, RoutingIteration, scale_to_length

_SMALLEST_VARIANCE = 1e-4


@register_routing("em")
class EMRouting(nn.Module):
    """Fit one Gaussian a parent to the votes (Hinton, Sabour & Frosst 2018).

    "Matrix capsules with EM routing", openreview.net/forum?id=HJWLfGWRb, Procedure 1. With couplings
    `c_ij = 1 / J` at first, each iteration takes the M-step for every parent,

        mu_j      = sum_i c_ij u_j|i / sum_i c_ij
        sigma_j^2 = sum_i c_ij (u_j|i - mu_j)^2 / sum_i c_ij
        cost_j    = n_j sum_h (beta_u + log sigma_jh)
        a_j       = sigmoid(lambda_t (beta_a - cost_j))

    and, but for the last, the E-step for every child: `c_ij = softmax over the parents of
    log a_j + log N(u_j|i; mu_j, sigma_j^2)`. beta_u and beta_a are learned, one of each for every parent.

    Differences: routing receives votes only, so the children's activations are 1. The data n_j that a
    parent is given is `sum_i c_ij` divided by its mean N / J, as Gritzman 2019 (arXiv:1907.00652) needs for
    stable training; so the cost does not grow with the number of children. Variances are 1e-4 at least. The
    inverse temperature is `lambda_t = lambda (1 - 0.95^t)` in iteration t = 1, 2, …, the schedule of that paper.
    That paper's lambda is 0.01; on `digits`, 0.03 learned faster and 1 did not learn. The pose is mu_j scaled to
    the length a_j, so the length of mu_j itself is lost.

    Args:
        parents, children, dim: sizes of the votes.
        inverse_temperature: lambda > 0.
    """

    def __init__(self, parents: int, children: int, dim: int, inverse_temperature: float = 0.03) -> None:  # noqa: ARG002
        super().__init__()
        if not inverse_temperature > 0:
            raise ModelError(f"inverse_temperature must be above 0, got {inverse_temperature}")
        self.inverse_temperature = inverse_temperature
        self.beta_u = nn.Parameter(torch.zeros(parents))
        self.beta_a = nn.Parameter(torch.zeros(parents))

    def forward(
        self,
        votes: Float[Tensor, "batch parents children dim"],
        iterations: int,
        *,
        trace: list[RoutingIteration] | None = None,
    ) -> Routing:
        """Route; see `dualcaps.route` for the arguments."""
        batch, parents, children, _ = votes.shape
        logits = votes.new_zeros(batch, parents, children)
        for t in range(1, iterations + 1):
            couplings = logits.softmax(dim=1)
            assigned = couplings.sum(dim=2, keepdim=True)
            weights = (couplings / assigned.clamp_min(torch.finfo(votes.dtype).tiny)).unsqueeze(-1)
            mean = (weights * votes).sum(dim=2)
            square = (votes - mean.unsqueeze(2)).square()
            variance = (weights * square).sum(dim=2).clamp_min(_SMALLEST_VARIANCE)
            cost = assigned.squeeze(-1) * parents / children * (self.beta_u[:, None] + variance.log() / 2).sum(dim=-1)
            activation_logits = self.inverse_temperature * (1 - 0.95**t) * (self.beta_a - cost)
            poses = scale_to_length(mean, activation_logits.sigmoid().unsqueeze(-1))
            if trace is not None:
                trace.append(RoutingIteration(logits, couplings, poses))
            if t < iterations:
                density = -(square / variance.unsqueeze(2) + (2 * torch.pi * variance).log().unsqueeze(2)).sum(-1) / 2
                logits = nn.functional.logsigmoid(activation_logits).unsqueeze(-1) + density
        return Routing(poses, couplings)  # pyright: ignore[reportPossiblyUnboundVariable]
