"""A routing method of one's own: couple by the cosine between vote and parent.

dualcaps train digits --plugin examples/my_routing.py --model capsnet --routing mine
dualcaps train digits --plugin examples/my_routing.py --routing mine --options sharpness=8
"""

import torch
from torch import Tensor

from dualcaps import Routing, register_routing, squash


@register_routing("mine")
def route_by_cosine(votes: Tensor, iterations: int, *, sharpness: float = 4.0, trace: list | None = None) -> Routing:
    """Spherical k-means with soft assignment: `c_ij = softmax over the parents of sharpness cos(u_j|i, v_j)`.

    Args:
        votes: [B, parents, children, dim].
        iterations: how often the children are assigned.
        sharpness: how decided the assignment is; 0 is uniform routing.
        trace: given by `model(images, intermediates=True)`, for maps of the couplings after each iteration.
    """
    directions = torch.nn.functional.normalize(votes, dim=-1)
    logits = votes.new_zeros(votes.shape[:3])
    for iteration in range(iterations):
        couplings = logits.softmax(dim=1)
        poses = squash(torch.einsum("bjn,bjnd->bjd", couplings, votes))
        if trace is not None:
            trace.append((logits, couplings, poses))
        if iteration < iterations - 1:
            parents = torch.nn.functional.normalize(poses, dim=-1)
            logits = sharpness * torch.einsum("bjnd,bjd->bjn", directions, parents)
    return Routing(poses, couplings)  # pyright: ignore[reportPossiblyUnboundVariable]
