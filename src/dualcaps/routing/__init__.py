"""Votes in, parent capsules out: `route` is the one door to every implementation.

`route_children` is the door for votes that are one linear map of the children and need not be made.
"""

import importlib.util
import os
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.routing.dynamic.eager import route_eager
from dualcaps.routing.dynamic.eager import squash as squash
from dualcaps.routing.dynamic.implicit import route_implicit
from dualcaps.routing.dynamic.reference import route_reference

Update = Literal["accumulate", "replace"]
Implementation = Literal["auto", "eager", "triton", "reference"]


class Routing(NamedTuple):
    """What routing found.

    parents: the poses of the parent capsules, each of length below 1.
    couplings: how much of child i went to parent j in the last iteration, in [0, 1]; they sum
        to 1 over the parents. None where they were not asked for.
    """

    parents: Float[Tensor, "batch parents dim"]
    couplings: Float[Tensor, "batch parents children"] | None


def route(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int = 3,
    *,
    squash_constant: float = 0.5,
    update: Update = "accumulate",
    couplings: bool = False,
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
        couplings: whether to return the couplings too, which costs memory.
        implementation: "triton" (one fused kernel, CUDA), "eager" (any device) or "reference"
            (loops, very slow); "auto" is "triton" where `why_not_triton` has nothing against it.

    Raises:
        ValueError: an argument outside its range, votes that are not `[B, J, N, D]` floats
            with at least one parent and child, or an implementation that cannot take these votes.
    """
    if votes.ndim != 4 or not votes.is_floating_point():
        raise ValueError(f"votes must be a float tensor [B, J, N, D], got {votes.dtype} {tuple(votes.shape)}")
    if 0 in votes.shape[1:]:
        raise ValueError(f"votes need at least one parent, child and dimension, got {tuple(votes.shape)}")
    _check(iterations, squash_constant, update)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, got {implementation!r}")
    if implementation == "auto":
        implementation = "triton" if votes.is_cuda and why_not_triton(votes) is None else "eager"
    elif implementation == "triton" and (reason := why_not_triton(votes)):
        raise ValueError(f"implementation triton cannot route these votes: {reason}")
    # Autocast would round the sums over the children to bfloat16.
    with torch.autocast(votes.device.type, enabled=False):
        if implementation == "triton":
            from dualcaps.routing.dynamic.triton import route_triton

            return Routing(*route_triton(votes, iterations, squash_constant, update, couplings))
        run = route_reference if implementation == "reference" else route_eager
        parents, found = run(votes, iterations, squash_constant, update)
        return Routing(parents, found if couplings else None)


def route_children(
    children: Float[Tensor, "batch children channels"],
    transform: Float[Tensor, "parents dim channels"],
    iterations: int = 3,
    *,
    squash_constant: float = 0.5,
    update: Update = "accumulate",
    couplings: bool = False,
) -> Routing:
    """Route the votes `û_j|i = transform[j] @ children[i]` without making them (Eqs. 1-7).

    The same as `route` of these votes but for rounding, in memory that does not grow with the
    parents' dimension. Every step is linear in the votes but the softmax and the squash, so
    children are coupled first and the sums transformed.

    Args:
        children: the vector of each child; sums over them are float32 at least.
        transform: the matrix of each parent, shared by all children.
        iterations, squash_constant, update, couplings: as in `route`.

    Raises:
        ValueError: an argument outside its range.
    """
    _check(iterations, squash_constant, update)
    with torch.autocast(children.device.type, enabled=False):
        parents, found = route_implicit(children, transform, iterations, squash_constant, update)
        return Routing(parents, found if couplings else None)


def why_not_triton(votes: Tensor) -> str | None:
    """Why the fused kernel cannot route these votes; None where it can."""
    if votes.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the votes are on {votes.device.type}, the kernel runs on CUDA"
    if votes.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the votes are {votes.dtype}, the kernel takes float32, bfloat16 and float16"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if votes.device.type == "cuda" and torch.cuda.get_device_capability(votes.device) < (8, 0):
        return f"{torch.cuda.get_device_name(votes.device)} is older than the kernel's compute capability 8.0"
    from dualcaps.routing.dynamic.triton import LARGEST_DIM

    if votes.shape[3] > LARGEST_DIM:
        return f"the poses have {votes.shape[3]} numbers, a tile of the kernel holds {LARGEST_DIM}"
    return None


def _check(iterations: int, squash_constant: float, update: str) -> None:
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not squash_constant > 0:
        raise ValueError(f"squash_constant must be above 0, got {squash_constant}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(get_args(Update))}, got {update!r}")
