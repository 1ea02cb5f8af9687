"""Dynamic routing by agreement: choice of the implementation."""

import importlib.util
import os
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps import kernels
from dualcaps.config import Update
from dualcaps.registry import register_routing
from dualcaps.routing.dynamic.eager import route_eager
from dualcaps.routing.dynamic.implicit import route_implicit
from dualcaps.routing.dynamic.reference import route_reference
from dualcaps.routing.types import Routing, RoutingIteration, without_autocast

Implementation = Literal["auto", "eager", "triton", "reference"]


@register_routing("dynamic")
def route_dynamic(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int = 3,
    *,
    squash_constant: float = 0.5,
    update: Update = "accumulate",
    implementation: Implementation = "auto",
    couplings: bool = True,
    trace: list[RoutingIteration] | None = None,
) -> Routing:
    """Route votes to parent capsules by agreement (Eqs. 1-7; Sabour, Frosst & Hinton 2017, arXiv:1710.09829).

    Starting from logits b = 0, each iteration couples every child to the parents with
    `c = softmax over the parents of b`, sums `s_j = sum_i c_ij u_j|i`, squashes s to the pose v,
    and, but for the last, raises the logits where vote and pose agree: `b_ij += u_j|i . v_j`.
    Gradients flow through all iterations.

    Args:
        votes: see `dualcaps.route`.
        iterations: number of times the couplings are computed, at least 1. With 1 they are uniform.
        squash_constant: k > 0 of the squash.
        update: "accumulate" adds the agreement to the logits (Eq. 7); "replace" overwrites them, as the
            Keras example does.
        implementation: "triton" (one fused kernel, CUDA), "eager" (any device) or "reference" (loops,
            very slow); "auto" is "triton" on CUDA if `why_not_triton` returns None, the kernel of `dualcaps.kernels`
            where they are used and no couplings are asked for, otherwise "eager".
        couplings: whether to return the couplings, which costs memory with "triton".
        trace: a list to which logits, couplings and poses of each iteration are appended, computed by "eager".

    Raises:
        ValueError: an argument outside its range, or an implementation that cannot route these votes.
    """
    check_arguments(iterations, squash_constant, update)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, got {implementation!r}")
    if trace is not None:
        if implementation not in ("auto", "eager"):
            raise ValueError(f"iterations are traced by implementation eager only, got {implementation!r}")
        return Routing(*route_eager(votes, iterations, squash_constant, update, trace))
    if implementation == "auto" and votes.is_cuda and why_not_triton(votes) is None:
        implementation = "triton"
    elif implementation == "triton" and (reason := why_not_triton(votes)):
        raise ValueError(f"implementation triton cannot route these votes: {reason}")
    if implementation == "triton":
        from dualcaps.routing.dynamic.triton import route_triton

        return Routing(*route_triton(votes, iterations, squash_constant, update, couplings))
    if implementation == "auto" and not couplings and kernels.are_used(votes) and kernels.takes_votes(votes):
        return Routing(kernels.route(votes, iterations, squash_constant, update), None)
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
    """Dynamic routing of the votes `u_j|i = transform[j] @ children[i]` without computing them.

    Equal to `route` of these votes up to rounding, in memory that does not grow with the parents'
    dimension. All steps except the softmax and the squash are linear in the votes, so the children are
    coupled first and the sums transformed.

    Args:
        children: the vector of each child; sums over them are float32 at least.
        transform: the matrix of each parent, shared by all children.
        iterations, squash_constant, update: as in `route_dynamic`.
        couplings: whether to return the couplings.

    Raises:
        ValueError: an argument outside its range.
    """
    check_arguments(iterations, squash_constant, update)
    with without_autocast(children):
        parents, found = route_implicit(children, transform, iterations, squash_constant, update)
        return Routing(parents, found if couplings else None)


def why_not_triton(votes: Tensor) -> str | None:
    """The reason why the fused kernel cannot route these votes, or None if it can."""
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
        return f"the poses have {votes.shape[3]} dimensions, a tile of the kernel holds {LARGEST_DIM}"
    return None


def check_arguments(iterations: int, squash_constant: float, update: str) -> None:
    """Raise ValueError for an argument outside its range."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not squash_constant > 0:
        raise ValueError(f"squash_constant must be above 0, got {squash_constant}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(get_args(Update))}, got {update!r}")
