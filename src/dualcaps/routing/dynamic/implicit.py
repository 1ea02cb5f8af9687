"""Dynamic routing without explicit votes: couple the children first, then transform the sums.

Where all children share one linear map, û_j|i = W_j x_i, both steps of an iteration can go through W:
`s_j = sum_i c_ij û_j|i = W_j sum_i c_ij x_i` and `û_j|i . w_j = x_i . (W_j^T w_j)`. Memory holds
[B, J, N] couplings and [B, J, Q] sums instead of [B, J, N, D] votes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.config import Update
from dualcaps.routing.dynamic.eager import squash


def route_implicit(
    children: Float[Tensor, "batch children channels"],
    transform: Float[Tensor, "parents dim channels"],
    iterations: int,
    squash_constant: float,
    update: Update,
) -> tuple[Float[Tensor, "batch parents dim"], Float[Tensor, "batch parents children"]]:
    """Route the children's votes; see `dualcaps.routing.route_children` for the arguments.

    Logits are linear in the poses, so those of "accumulate" come from the sum of the poses so far.
    Half-precision children are multiplied as they are, with couplings and keys rounded to their
    type; sums over children, squash and softmax are float32.
    """
    kept = children.dtype
    precise = torch.promote_types(kept, torch.float32)
    transform = transform.to(precise)
    parents = transform.shape[0]
    couplings = children.new_full((children.shape[0], parents, children.shape[1]), 1 / parents, dtype=precise)
    means = children.sum(dim=1, dtype=precise) / parents
    poses = squash(torch.einsum("bq,jdq->bjd", means, transform), squash_constant)
    targets = poses
    for _ in range(iterations - 1):
        keys = torch.einsum("bjd,jdq->bjq", targets, transform).to(kept)
        couplings = torch.matmul(keys, children.transpose(1, 2)).to(precise).softmax(dim=1)
        sums = torch.matmul(couplings.to(kept), children).to(precise)
        poses = squash(torch.einsum("bjq,jdq->bjd", sums, transform), squash_constant)
        targets = targets + poses if update == "accumulate" else poses
    return poses, couplings
