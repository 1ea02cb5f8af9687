"""Training speed and memory: ours against plain PyTorch, and how near the matrix rate it comes."""

import statistics

import torch
from common import Results, in_fresh_process, parse, place

from dualcaps import create_model
from dualcaps.bench import (
    SHAPES,
    check_parity,
    count_operations,
    interleave,
    matrix_rate,
    our_training,
    plain_training,
    random_split,
)
from dualcaps.inference import choose_precision

NETWORKS = (("capsnet", False), ("da-capsnet", True))


def main() -> None:
    """Measure all cases, on a GPU at batch 128 and 512."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("training", options.out, device)
    for batch in (128, 512) if device.type == "cuda" else (128,):
        for network, decoder in NETWORKS:
            for text in SHAPES:
                _measure(results, device, network, decoder, text, batch, options.rounds)


def _measure(
    results: Results, device: torch.device, network: str, decoder: bool, text: str, batch: int, rounds: int
) -> None:
    precision = choose_precision("auto", device)
    torch.manual_seed(0)
    model = create_model(network, SHAPES[text], decoder=decoder)
    for number_type in ("float32", precision):
        check_parity(model, device, number_type)
    part = random_split(SHAPES[text], (200 if device.type == "cuda" else 10) * batch, device)
    case = f"{network}{' + decoder' if decoder else ''} {text}, batch {batch}"
    rates: list[float] = []
    timings = interleave(
        {
            "plain PyTorch float32": plain_training(model, part, batch),
            "dualcaps float32, eager": our_training(model, part, batch, "float32", "never"),
            f"dualcaps {precision}, eager": our_training(model, part, batch, precision, "never"),
            f"dualcaps {precision}, compiled": our_training(model, part, batch, precision, "always"),
            "matrix product": lambda: rates.append(matrix_rate(device, getattr(torch, precision))),
        },
        rounds=rounds,
        items=len(part),
    )
    del timings["matrix product"]
    for name, timing in timings.items():
        results.add_timing(case, name, "speed", timing, "images/s")
    plain, *_, best = timings.values()
    matrix = statistics.median(rates)
    spread = {"slowest": min(rates) / 1e9, "fastest": max(rates) / 1e9, "n": len(rates)}
    results.add(case, "matrix product", "speed", matrix / 1e9, "GFLOP/s", **spread)
    results.add(case, "dualcaps / plain PyTorch", "ratio", best.rate / plain.rate, "times")
    operations = count_operations(model.config)
    results.add(case, "dualcaps", "operations", operations / 1e9, "GFLOP/image")
    results.add(case, "of the matrix rate", "share", 100 * best.rate * operations / matrix, "%")
    used = {}
    for how, name in (("plain", "plain PyTorch float32"), ("eager", f"dualcaps {precision}")):
        small, large = (
            in_fresh_process("memory.py", ["training", network, decoder, text, size, how, device])
            for size in (batch, 4 * batch)
        )
        used[how] = (large - small) / (3 * batch)
        results.add(case, name, "memory", used[how], "MB/image")
    results.add(case, "plain PyTorch / dualcaps", "memory ratio", used["plain"] / used["eager"], "times")


if __name__ == "__main__":
    main()
