"""Which tile of the fused kernel is fastest on this GPU; `dualcaps.routing.dynamic.triton` holds the one in use."""

import torch
from common import Results, parse, place

from dualcaps.bench import interleave
from dualcaps.routing import route

SHAPES = ((512, 10, 100, 16), (128, 10, 100, 16))


def main() -> None:
    """Time forward and backward with each size of tile and number of warps."""
    options = parse(__doc__ or "")
    device = place(options.device)
    from dualcaps.routing.dynamic import triton as kernels

    results = Results("tune", options.out, device)
    for shape in SHAPES:
        for number_type in (torch.float32, torch.bfloat16):
            votes = torch.randn(shape, device=device).to(number_type).requires_grad_()

            def run(votes: torch.Tensor, tile: int, share: int) -> None:
                kernels._TILE, kernels._ELEMENTS_PER_WARP = tile, share
                for _ in range(20):
                    poses = route(votes, implementation="triton").parents
                    torch.autograd.grad(poses, votes, torch.ones_like(poses))
                torch.cuda.synchronize()

            timings = interleave(
                {
                    f"tile {tile}, {tile // share} warps": lambda v=votes, t=tile, s=share, r=run: r(v, t, s)
                    for tile in (1024, 2048, 4096, 8192)
                    for share in (128, 256, 512, 1024)
                    if 2 <= tile // share <= 16
                },
                rounds=options.rounds,
                items=20 * shape[0],
            )
            for name, timing in timings.items():
                results.add_timing(f"{list(shape)} {number_type}", name, "speed", timing, "samples/s")


if __name__ == "__main__":
    main()
