"""Votes in, parent capsules out: `route` is the one door to every implementation."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.routing.eager import route_eager
from dualcaps.routing.eager import squash as squash
from dualcaps.routing.reference import route_reference

Update = Literal["accumulate", "replace"]
Implementation = Literal["auto", "eager", "reference"]


class Routing(NamedTuple):
    """What routing found.

    parents: the poses of the parent capsules, each of length below 1.
    couplings: how much of child i went to parent j in the last iteration, in [0, 1]; they sum
        to 1 over the parents.
    """

    parents: Float[Tensor, "batch parents dim"]
    couplings: Float[Tensor, "batch parents children"]


def route(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int = 3,
    *,
    squash_constant: float = 0.5,
    update: Update = "accumulate",
    implementation: Implementation = "auto",
) -> Routing:
    """Route votes to parent capsules by agreement (Eqs. 1-7).

    Starting from logits b = 0, each iteration couples every child to the parents with
    `c = softmax over the parents of b`, sums `s_j = sum_i c_ij u_j|i`, squashes s to the pose v,
    and, but for the last, raises the logits where vote and pose agree: `b_ij += u_j|i . v_j`.
    Gradients flow through all iterations. Source: Huang & Zhou 2020 after Sabour et al. 2017.

    Args:
        votes: what each child predicts for each parent, any float type. Half precision is
            computed and returned in float32, the others in their own type.
        iterations: how often the couplings are computed, at least 1. With 1 they are uniform.
        squash_constant: k > 0 of the squash.
        update: "accumulate" adds the agreement to the logits (Eq. 7); "replace" overwrites them,
            as the Keras example does on purpose.
        implementation: "eager" (what "auto" picks) or "reference" (loops, very slow).

    Raises:
        ValueError: an argument outside its range, or votes that are not `[B, J, N, D]` floats
            with at least one parent and child.
    """
    if votes.ndim != 4 or not votes.is_floating_point():
        raise ValueError(f"votes must be a float tensor [B, J, N, D], got {votes.dtype} {tuple(votes.shape)}")
    if 0 in votes.shape[1:]:
        raise ValueError(f"votes need at least one parent, child and dimension, got {tuple(votes.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not squash_constant > 0:
        raise ValueError(f"squash_constant must be above 0, got {squash_constant}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(get_args(Update))}, got {update!r}")
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, got {implementation!r}")
    run = route_reference if implementation == "reference" else route_eager
    # Autocast would round the sums over the children to bfloat16.
    with torch.autocast(votes.device.type, enabled=False):
        return Routing(*run(votes, iterations, squash_constant, update))
