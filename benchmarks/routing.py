"""Routing alone, forward and backward: eager, children without votes, and on CUDA the fused kernel.

On CUDA the kernel is also set against the bandwidth of a copy, by the bytes that it cannot do without:
forward the votes once; backward the votes and their gradient once.
"""

import itertools
from collections.abc import Callable

import torch
from common import Results, parse, place
from torch import Tensor

from dualcaps.bench import check_routing_parity, copy_bandwidth, interleave
from dualcaps.routing import route, route_children
from dualcaps.routing.dynamic import why_not_triton

SHAPES = ((128, 10, 100, 16), (16, 10, 100, 16), (512, 10, 100, 16), (64, 100, 100, 16))
CHANNELS = 128


def main() -> None:
    """Measure all shapes."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("routing", options.out, device)
    for (batch, parents, children, dim), number_type in itertools.product(SHAPES, (torch.float32, torch.bfloat16)):
        name = str(number_type).removeprefix("torch.")
        case = f"[{batch}, {parents}, {children}, {dim}] {name}"
        votes = torch.randn(batch, parents, children, dim, device=device).to(number_type).requires_grad_()
        vectors = torch.randn(batch, children, CHANNELS, device=device).to(number_type).requires_grad_()
        transform = torch.randn(parents, dim, CHANNELS, device=device).mul_(0.1).requires_grad_()
        candidates = {
            "eager": _both_ways(lambda v=votes: route(v, implementation="eager").parents, votes),
            "votes made, then eager": _both_ways(lambda x=vectors, w=transform: _made(x, w), vectors),
            "children, no votes": _both_ways(lambda x=vectors, w=transform: route_children(x, w).parents, vectors),
        }
        if device.type == "cuda" and why_not_triton(votes) is None:
            check_routing_parity(
                lambda v: route(v, implementation="triton").parents,
                lambda v: route(v, implementation="eager").parents,
                votes.detach(),
                1e-4 if number_type == torch.float32 else 2e-2,
            )
            candidates["triton"] = _both_ways(lambda v=votes: route(v, implementation="triton").parents, votes)
        timings = interleave(candidates, rounds=options.rounds, items=batch * _REPEATS)
        for candidate, timing in timings.items():
            results.add_timing(case, candidate, "speed", timing, "samples/s")
        if "triton" in timings:
            fused = timings["triton"]
            results.add(case, "triton / eager", "ratio", fused.rate / timings["eager"].rate, "times")
            moved = 3 * votes.numel() * votes.element_size() / batch * fused.rate
            results.add(case, "triton of copying", "share", 100 * moved / copy_bandwidth(device), "%")


def _made(vectors: Tensor, transform: Tensor) -> Tensor:
    votes = torch.einsum("jdq,bnq->bjnd", transform.to(vectors.dtype), vectors)
    return route(votes, implementation="eager").parents


_REPEATS = 10


def _both_ways(forward: Callable[[], Tensor], leaf: Tensor) -> Callable[[], None]:
    def run() -> None:
        for _ in range(_REPEATS):
            poses = forward()
            torch.autograd.grad(poses, leaf, torch.ones_like(poses))
        if leaf.is_cuda:
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
