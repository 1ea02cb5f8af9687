"""Cost against batch, children, parents up to 1,000 classes, and image size up to 224 pixels."""

import time
from collections.abc import Callable

import torch
from common import Results, in_fresh_process, parse, place

from dualcaps import create_model
from dualcaps.bench import our_training, random_split
from dualcaps.inference import choose_precision
from dualcaps.routing import route, route_children

BASE = {"batch": 64, "parents": 10, "children": 100}
AXES = {
    "batch": (16, 32, 64, 128, 256, 512),
    "children": (25, 50, 100, 200, 400, 800),
    "parents": (10, 20, 50, 100, 200, 500, 1000),
}
SIDES = (32, 64, 96, 128, 160, 224)


def main() -> None:
    """Measure; `report.py` draws."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("scaling", options.out, device)
    for axis, sizes in AXES.items():
        for size in sizes:
            for how in ("votes made", "children, no votes"):
                run = _routing(**(BASE | {axis: size}), votes=how == "votes made", device=device)
                milliseconds = 1e3 * _median(run, options.rounds)
                results.add(f"routing, {axis} {size}", how, "time", milliseconds, "ms", n=options.rounds)
    precision = choose_precision("auto", device)
    for side in SIDES:
        model = create_model("capsnet", (3, side, side), decoder=False)
        run = our_training(model, random_split((3, side, side), 16, device), 16, precision, "never")
        milliseconds = 1e3 * _median(run, options.rounds) / 16
        results.add(f"training, {side}x{side}x3", f"capsnet {precision}", "time", milliseconds, "ms/image")
    for how in ("votes", "children"):
        megabytes = in_fresh_process("memory.py", ["routing", 64, 1000, 100, how, device])
        results.add("routing [64, 1000, 100, 16]", how, "peak memory", megabytes, "MB")


def _routing(batch: int, parents: int, children: int, votes: bool, device: torch.device) -> Callable[[], None]:
    vectors = torch.randn(batch, children, 128, device=device, requires_grad=True)
    transform = torch.randn(parents, 16, 128, device=device).mul_(0.1).requires_grad_()

    def run() -> None:
        if votes:
            poses = route(torch.einsum("jdq,bnq->bjnd", transform, vectors)).parents
        else:
            poses = route_children(vectors, transform).parents
        torch.autograd.grad(poses.square().sum(), (vectors, transform))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _median(run: Callable[[], None], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[rounds // 2]


if __name__ == "__main__":
    main()
