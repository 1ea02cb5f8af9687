"""Dynamic routing on CUDA: all iterations in one forward and one backward kernel.

Each program routes one sample. Logits are never stored: with `update="accumulate"` those of iteration t
are `û_j|i . w_j`, where w is the sum of the poses so far, and with "replace" w is the last pose; so an
iteration reads the votes once, and only the sums s_t, [J, D] elements each, are kept between iterations.
The backward kernel recomputes the couplings from the s_t and writes the votes' gradient in a last pass.
Sums are float32 for every type of votes.

If the parents of one child do not fit into a tile, an iteration reads the votes twice: once for the
softmax's denominator, once for the sums.
"""

# Triton's annotations do not describe what its compiler accepts.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from dualcaps.config import Update

LARGEST_DIM = 4096
"""Largest dimension of the poses that fits into a tile."""
_TILE = 2048  # elements of a tile of votes; larger tiles spill registers on compute capability 9.0
_ELEMENTS_PER_WARP = 256


@triton.jit
def _squash(sums, constant):
    square = tl.sum(sums * sums, axis=1, keep_dims=True)
    return sums * (tl.sqrt(square) / (constant + square))


@triton.jit
def _squash_backward(sums, gradient, constant):
    square = tl.sum(sums * sums, axis=1, keep_dims=True)
    length = tl.sqrt(square)
    along = tl.sum(sums * gradient, axis=1, keep_dims=True)
    slope = (constant - square) / (tl.where(square > 0, length, 1.0) * (constant + square) * (constant + square))
    return gradient * (length / (constant + square)) + sums * tl.where(square > 0, along * slope, 0.0)


@triton.jit
def _targets(sums, iteration: tl.constexpr, size, numbers, mask, constant, ACCUMULATE: tl.constexpr):
    """The vectors that the votes are compared with in iterations after the first."""
    if ACCUMULATE:
        targets = _squash(tl.load(sums + numbers, mask, 0.0), constant)
        for earlier in tl.static_range(1, iteration):
            targets += _squash(tl.load(sums + earlier * size + numbers, mask, 0.0), constant)
        return targets
    else:
        return _squash(tl.load(sums + (iteration - 1) * size + numbers, mask, 0.0), constant)


@triton.jit
def _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D):
    """A tile of votes, its addresses and its mask."""
    mask = (parents < J)[:, None, None] & (children < N)[None, :, None] & (dims < D)[None, None, :]
    places = parents[:, None, None] * stride_j + children[None, :, None] * stride_n + dims[None, None, :] * stride_d
    return tl.load(votes + places, mask, 0.0).to(tl.float32), places, mask


@triton.jit
def _logits(tile, targets, parents, J):
    logits = tl.sum(tile * targets[:, None, :], axis=2)
    return tl.where((parents < J)[:, None], logits, float("-inf"))


@triton.jit
def _couple(logits, norms, children, N, WHOLE: tl.constexpr):
    """The softmax over the parents; `norms` holds the log denominators if a tile has only some of the parents."""
    if WHOLE:
        weights = tl.exp(logits - tl.max(logits, axis=0)[None, :])
        return weights / tl.sum(weights, axis=0)[None, :]
    else:
        return tl.exp(logits - tl.load(norms + children, children < N, 0.0)[None, :])


@triton.jit
def _forward_kernel(
    votes,
    poses,
    sums,
    norms,
    couplings,
    stride_b,
    stride_j,
    stride_n,
    stride_d,
    J,
    N,
    D,
    constant,
    ITERATIONS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    KEEP_COUPLINGS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    votes += sample * stride_b
    poses += sample * J * D
    sums += sample * ITERATIONS * J * D
    norms += sample * ITERATIONS * N
    couplings += sample * J * N
    dims = tl.arange(0, BLOCK_D)

    for iteration in tl.static_range(ITERATIONS):
        if iteration > 0 and not WHOLE:
            for child in range(0, N, BLOCK_N):
                children = child + tl.arange(0, BLOCK_N)
                largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_N], tl.float32)
                for parent in range(0, J, BLOCK_J):
                    parents = parent + tl.arange(0, BLOCK_J)
                    numbers = parents[:, None] * D + dims[None, :]
                    known = (parents < J)[:, None] & (dims < D)[None, :]
                    targets = _targets(sums, iteration, J * D, numbers, known, constant, ACCUMULATE)
                    tile, _, _ = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
                    logits = _logits(tile, targets, parents, J)
                    larger = tl.maximum(largest, tl.max(logits, axis=0))
                    total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger[None, :]), axis=0)
                    largest = larger
                tl.store(norms + iteration * N + children, largest + tl.log(total), children < N)
            tl.debug_barrier()
        for parent in range(0, J, BLOCK_J):
            parents = parent + tl.arange(0, BLOCK_J)
            numbers = parents[:, None] * D + dims[None, :]
            known = (parents < J)[:, None] & (dims < D)[None, :]
            summed = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
            if iteration == 0:
                for child in range(0, N, BLOCK_N):
                    children = child + tl.arange(0, BLOCK_N)
                    tile, _, _ = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
                    summed += tl.sum(tile, axis=1)
                summed /= J
            else:
                targets = _targets(sums, iteration, J * D, numbers, known, constant, ACCUMULATE)
                for child in range(0, N, BLOCK_N):
                    children = child + tl.arange(0, BLOCK_N)
                    tile, _, _ = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
                    coupled = _couple(_logits(tile, targets, parents, J), norms + iteration * N, children, N, WHOLE)
                    summed += tl.sum(coupled[:, :, None] * tile, axis=1)
                    if KEEP_COUPLINGS and iteration == ITERATIONS - 1:
                        tl.store(
                            couplings + parents[:, None] * N + children[None, :],
                            coupled,
                            (parents < J)[:, None] & (children < N)[None, :],
                        )
            tl.store(sums + iteration * J * D + numbers, summed, known)
            if iteration == ITERATIONS - 1:
                tl.store(poses + numbers, _squash(summed, constant), known)
        tl.debug_barrier()


@triton.jit
def _coupled_again(
    tile,
    sums,
    sums_gradient,
    norms,
    couplings_gradient,
    iteration: tl.constexpr,
    parents,
    children,
    dims,
    J,
    N,
    D,
    constant,
    ITERATIONS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    COUPLINGS_GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Targets, gradient of the sums, couplings and their gradient for a tile in one iteration."""
    numbers = parents[:, None] * D + dims[None, :]
    known = (parents < J)[:, None] & (dims < D)[None, :]
    targets = _targets(sums, iteration, J * D, numbers, known, constant, ACCUMULATE)
    moved = tl.load(sums_gradient + iteration * J * D + numbers, known, 0.0)
    coupled = _couple(_logits(tile, targets, parents, J), norms + iteration * N, children, N, WHOLE)
    gradient = tl.sum(tile * moved[:, None, :], axis=2)
    if COUPLINGS_GRADIENT and iteration == ITERATIONS - 1:
        there = (parents < J)[:, None] & (children < N)[None, :]
        gradient += tl.load(couplings_gradient + parents[:, None] * N + children[None, :], there, 0.0)
    return targets, moved, coupled, gradient


@triton.jit
def _logits_gradient(coupled, gradient, shares, children, N, WHOLE: tl.constexpr):
    """The softmax backward; `shares` holds the sums over the parents if a tile has only some of them."""
    if WHOLE:
        shared = tl.sum(coupled * gradient, axis=0)
    else:
        shared = tl.load(shares + children, children < N, 0.0)
    return coupled * (gradient - shared[None, :])


@triton.jit
def _backward_kernel(
    votes,
    sums,
    norms,
    poses_gradient,
    couplings_gradient,
    sums_gradient,
    targets_gradient,
    shares,
    votes_gradient,
    stride_b,
    stride_j,
    stride_n,
    stride_d,
    gradient_stride_b,
    gradient_stride_j,
    gradient_stride_n,
    gradient_stride_d,
    J,
    N,
    D,
    constant,
    ITERATIONS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    COUPLINGS_GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    votes += sample * stride_b
    votes_gradient += sample * gradient_stride_b
    sums += sample * ITERATIONS * J * D
    sums_gradient += sample * ITERATIONS * J * D
    norms += sample * ITERATIONS * N
    shares += sample * ITERATIONS * N
    poses_gradient += sample * J * D
    targets_gradient += sample * J * D
    couplings_gradient += sample * J * N
    dims = tl.arange(0, BLOCK_D)

    for back in tl.static_range(ITERATIONS):
        for parent in range(0, J, BLOCK_J):
            parents = parent + tl.arange(0, BLOCK_J)
            numbers = parents[:, None] * D + dims[None, :]
            known = (parents < J)[:, None] & (dims < D)[None, :]
            if back == 0:
                pulled = tl.load(poses_gradient + numbers, known, 0.0)
            else:
                pulled = tl.load(targets_gradient + numbers, known, 0.0)
            summed = tl.load(sums + (ITERATIONS - 1 - back) * J * D + numbers, known, 0.0)
            tl.store(
                sums_gradient + (ITERATIONS - 1 - back) * J * D + numbers,
                _squash_backward(summed, pulled, constant),
                known,
            )
        tl.debug_barrier()
        if back < ITERATIONS - 1:
            if not WHOLE:
                for child in range(0, N, BLOCK_N):
                    children = child + tl.arange(0, BLOCK_N)
                    shared = tl.zeros([BLOCK_N], tl.float32)
                    for parent in range(0, J, BLOCK_J):
                        parents = parent + tl.arange(0, BLOCK_J)
                        tile, _, _ = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
                        _, _, coupled, gradient = _coupled_again(
                            tile,
                            sums,
                            sums_gradient,
                            norms,
                            couplings_gradient,
                            ITERATIONS - 1 - back,
                            parents,
                            children,
                            dims,
                            J,
                            N,
                            D,
                            constant,
                            ITERATIONS,
                            ACCUMULATE,
                            COUPLINGS_GRADIENT,
                            WHOLE,
                        )
                        shared += tl.sum(coupled * gradient, axis=0)
                    tl.store(shares + (ITERATIONS - 1 - back) * N + children, shared, children < N)
                tl.debug_barrier()
            for parent in range(0, J, BLOCK_J):
                parents = parent + tl.arange(0, BLOCK_J)
                pulled = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
                for child in range(0, N, BLOCK_N):
                    children = child + tl.arange(0, BLOCK_N)
                    tile, _, _ = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
                    _, _, coupled, gradient = _coupled_again(
                        tile,
                        sums,
                        sums_gradient,
                        norms,
                        couplings_gradient,
                        ITERATIONS - 1 - back,
                        parents,
                        children,
                        dims,
                        J,
                        N,
                        D,
                        constant,
                        ITERATIONS,
                        ACCUMULATE,
                        COUPLINGS_GRADIENT,
                        WHOLE,
                    )
                    raised = _logits_gradient(
                        coupled, gradient, shares + (ITERATIONS - 1 - back) * N, children, N, WHOLE
                    )
                    pulled += tl.sum(raised[:, :, None] * tile, axis=1)
                numbers = parents[:, None] * D + dims[None, :]
                known = (parents < J)[:, None] & (dims < D)[None, :]
                if ACCUMULATE and back > 0:
                    pulled += tl.load(targets_gradient + numbers, known, 0.0)
                tl.store(targets_gradient + numbers, pulled, known)
            tl.debug_barrier()

    for parent in range(0, J, BLOCK_J):
        parents = parent + tl.arange(0, BLOCK_J)
        numbers = parents[:, None] * D + dims[None, :]
        known = (parents < J)[:, None] & (dims < D)[None, :]
        uniform = tl.load(sums_gradient + numbers, known, 0.0) / J
        for child in range(0, N, BLOCK_N):
            children = child + tl.arange(0, BLOCK_N)
            tile, _, mask = _tile(votes, parents, children, dims, stride_j, stride_n, stride_d, J, N, D)
            result = tl.zeros([BLOCK_J, BLOCK_N, BLOCK_D], tl.float32) + uniform[:, None, :]
            for iteration in tl.static_range(1, ITERATIONS):
                targets, moved, coupled, gradient = _coupled_again(
                    tile,
                    sums,
                    sums_gradient,
                    norms,
                    couplings_gradient,
                    iteration,
                    parents,
                    children,
                    dims,
                    J,
                    N,
                    D,
                    constant,
                    ITERATIONS,
                    ACCUMULATE,
                    COUPLINGS_GRADIENT,
                    WHOLE,
                )
                raised = _logits_gradient(coupled, gradient, shares + iteration * N, children, N, WHOLE)
                result += coupled[:, :, None] * moved[:, None, :] + raised[:, :, None] * targets[:, None, :]
            places = (
                parents[:, None, None] * gradient_stride_j
                + children[None, :, None] * gradient_stride_n
                + dims[None, None, :] * gradient_stride_d
            )
            tl.store(votes_gradient + places, result, mask)


def _blocks(votes: Tensor) -> dict[str, Any]:
    """Sizes of the tiles: all parents of as many children as fit, or some parents of one child."""
    _, parents, children, dim = votes.shape
    block_d = triton.next_power_of_2(dim)
    block_j = min(triton.next_power_of_2(parents), max(_TILE // block_d, 1))
    block_n = min(triton.next_power_of_2(children), max(_TILE // (block_j * block_d), 1))
    return {
        "WHOLE": block_j >= parents,
        "BLOCK_J": block_j,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": max(1, min(16, block_j * block_n * block_d // _ELEMENTS_PER_WARP)),
    }


@torch.library.custom_op("dualcaps::route_forward", mutates_args=())
def _route_forward(
    votes: Tensor, iterations: int, constant: float, accumulate: bool, keep_couplings: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, parents, children, dim = votes.shape
    blocks = _blocks(votes)
    poses = votes.new_empty(batch, parents, dim, dtype=torch.float32)
    sums = votes.new_empty(batch, iterations, parents, dim, dtype=torch.float32)
    norms = votes.new_empty(0 if blocks["WHOLE"] else batch * iterations * children, dtype=torch.float32)
    couplings = votes.new_empty(batch, parents, children if keep_couplings else 0, dtype=torch.float32)
    if keep_couplings and iterations == 1:
        couplings.fill_(1 / parents)
    if batch:
        _forward_kernel[(batch,)](
            *(votes, poses, sums, norms, couplings, *votes.stride(), parents, children, dim, constant),
            ITERATIONS=iterations,
            ACCUMULATE=accumulate,
            KEEP_COUPLINGS=keep_couplings,
            **blocks,
        )
    return poses, couplings, sums, norms


@_route_forward.register_fake
def _(votes: Tensor, iterations: int, constant: float, accumulate: bool, keep_couplings: bool) -> tuple[Tensor, ...]:
    batch, parents, children, dim = votes.shape
    whole = _blocks(votes)["WHOLE"]
    return (
        votes.new_empty(batch, parents, dim, dtype=torch.float32),
        votes.new_empty(batch, parents, children if keep_couplings else 0, dtype=torch.float32),
        votes.new_empty(batch, iterations, parents, dim, dtype=torch.float32),
        votes.new_empty(0 if whole else batch * iterations * children, dtype=torch.float32),
    )


@torch.library.custom_op("dualcaps::route_backward", mutates_args=())
def _route_backward(
    votes: Tensor,
    sums: Tensor,
    norms: Tensor,
    poses_gradient: Tensor,
    couplings_gradient: Tensor | None,
    constant: float,
    accumulate: bool,
) -> Tensor:
    batch, parents, children, dim = votes.shape
    votes_gradient = torch.empty_like(votes)
    if batch:
        iterations = sums.shape[1]
        _backward_kernel[(batch,)](
            *(votes, sums, norms, poses_gradient.contiguous()),
            sums if couplings_gradient is None else couplings_gradient.contiguous(),
            *(torch.empty_like(sums), torch.empty_like(poses_gradient), torch.empty_like(norms), votes_gradient),
            *(*votes.stride(), *votes_gradient.stride(), parents, children, dim, constant),
            ITERATIONS=iterations,
            ACCUMULATE=accumulate,
            COUPLINGS_GRADIENT=couplings_gradient is not None and iterations > 1,
            **_blocks(votes),
        )
    return votes_gradient


@_route_backward.register_fake
def _(votes: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(votes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    votes, _, ctx.constant, ctx.accumulate, ctx.keep_couplings = inputs
    ctx.save_for_backward(votes, *output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, poses: Tensor | None, couplings: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    votes, sums, norms = ctx.saved_tensors
    if poses is None:
        poses = torch.zeros_like(sums[:, 0])
    wanted = couplings if ctx.keep_couplings else None
    return _route_backward(votes, sums, norms, poses, wanted, ctx.constant, ctx.accumulate), None, None, None, None


_route_forward.register_autograd(_backward, setup_context=_keep)


def route_triton(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int,
    squash_constant: float,
    update: Update,
    keep_couplings: bool,
) -> tuple[Float[Tensor, "batch parents dim"], Float[Tensor, "batch parents children"] | None]:
    """Route float32, bfloat16 or float16 votes on a CUDA device; see `dualcaps.route` for the arguments."""
    poses, couplings, _, _ = _route_forward(votes, iterations, squash_constant, update == "accumulate", keep_couplings)
    return poses, couplings if keep_couplings else None
