"""Dynamic routing by tensor operations, for any device and float type; the default."""

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.config import Update
from dualcaps.routing.types import RoutingIteration


def squash(vectors: Float[Tensor, "*batch dim"], constant: float = 0.5) -> Float[Tensor, "*batch dim"]:
    """Shrink each vector to a length below 1, keeping its direction (Eq. 1).

    `v = |s|^2 / (k + |s|^2) * s / |s|`, computed as `s * |s| / (k + |s|^2)`, so that a zero vector gives
    zero and a zero gradient.

    Args:
        vectors: s, any float type.
        constant: k > 0; 0.5 in the paper, 1 in Sabour et al. 2017.

    Returns:
        v, of the same shape.

    Example:
        >>> squash(torch.tensor([[3.0, 4.0]]), constant=1.0).norm()
        tensor(0.9615)
    """
    square = vectors.square().sum(dim=-1, keepdim=True)
    length = square.clamp_min(torch.finfo(vectors.dtype).tiny).sqrt()
    return vectors * (length / (constant + square))


def route_eager(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int,
    squash_constant: float,
    update: Update,
    trace: list[RoutingIteration] | None = None,
) -> tuple[Float[Tensor, "batch parents dim"], Float[Tensor, "batch parents children"]]:
    """Route the whole batch at once; see `dualcaps.route` for the arguments.

    `trace` is given an entry for each iteration.
    """
    votes = votes.to(torch.promote_types(votes.dtype, torch.float32)).contiguous()
    batch, parents, children, _ = votes.shape
    # Zero logits give uniform couplings, so the first sum needs no softmax.
    couplings = votes.new_full((batch, parents, children), 1 / parents)
    poses = squash(votes.sum(dim=2) / parents, squash_constant)
    logits = None
    if trace is not None:
        trace.append(RoutingIteration(torch.zeros_like(couplings), couplings, poses))
    for _ in range(iterations - 1):
        agreement = torch.matmul(votes, poses.unsqueeze(-1)).squeeze(-1)
        logits = agreement if logits is None or update == "replace" else logits + agreement
        couplings = logits.softmax(dim=1)
        poses = squash(torch.matmul(couplings.unsqueeze(-2), votes).squeeze(-2), squash_constant)
        if trace is not None:
            trace.append(RoutingIteration(logits, couplings, poses))
    return poses, couplings
