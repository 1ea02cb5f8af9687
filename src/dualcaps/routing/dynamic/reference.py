"""Eqs. 1-7 of the paper as loops over scalars: the reference that the fast versions are tested against.

Never optimised: every sum and exponential of the equations is one Python statement.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.config import Update


def route_reference(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int,
    squash_constant: float,
    update: Update,
) -> tuple[Float[Tensor, "batch parents dim"], Float[Tensor, "batch parents children"]]:
    """Route each sample on its own; see `dualcaps.route` for the arguments."""
    votes = votes.to(torch.promote_types(votes.dtype, torch.float32))
    routed = [_route_sample(sample, iterations, squash_constant, update) for sample in votes]
    return torch.stack([p for p, _ in routed]), torch.stack([c for _, c in routed])


def _route_sample(
    votes: Float[Tensor, "parents children dim"], iterations: int, squash_constant: float, update: str
) -> tuple[Float[Tensor, "parents dim"], Float[Tensor, "parents children"]]:
    parents, children, dim = votes.shape
    zero = votes.new_zeros(())
    logits = [[zero for _ in range(children)] for _ in range(parents)]
    couplings = logits
    poses: list[list[Tensor]] = []
    for iteration in range(iterations):
        couplings = [[zero for _ in range(children)] for _ in range(parents)]
        for i in range(children):
            largest = max(logits[j][i].item() for j in range(parents))
            weights = [torch.exp(logits[j][i] - largest) for j in range(parents)]
            for j in range(parents):
                couplings[j][i] = weights[j] / sum(weights, start=zero)  # Eq. 6
        poses = []
        for j in range(parents):
            total = [
                sum((couplings[j][i] * votes[j, i, d] for i in range(children)), start=zero) for d in range(dim)
            ]  # Eq. 4
            poses.append(_squash(total, squash_constant))
        if iteration == iterations - 1:
            break
        for j in range(parents):
            for i in range(children):
                agreement = sum((votes[j, i, d] * poses[j][d] for d in range(dim)), start=zero)
                logits[j][i] = logits[j][i] + agreement if update == "accumulate" else agreement  # Eq. 7
    return torch.stack([torch.stack(pose) for pose in poses]), torch.stack([torch.stack(row) for row in couplings])


def _squash(vector: list[Tensor], constant: float) -> list[Tensor]:
    square = sum((x * x for x in vector), start=torch.zeros_like(vector[0]))
    if square == 0:  # the limit of Eq. 1 at zero, where s / |s| is not defined
        return [x * 0 for x in vector]
    return [square / (constant + square) * x / torch.sqrt(square) for x in vector]  # Eq. 1
