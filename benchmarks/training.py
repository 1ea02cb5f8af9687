"""Training speed and memory: ours against plain PyTorch, and how near the matrix rate it comes."""

import torch
from common import Results, add_share, in_fresh_process, parse, place, time_training, usual_precision

from dualcaps import create_model
from dualcaps.bench import (
    SHAPES,
    check_parity,
    count_operations,
    plain_training,
    random_split,
)

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
    precision = usual_precision(device)
    torch.manual_seed(0)
    model = create_model(network, SHAPES[text], decoder=decoder)
    for number_type in ("float32", precision):
        check_parity(model, device, number_type)
    part = random_split(SHAPES[text], (200 if device.type == "cuda" else 10) * batch, device)
    case = f"{network}{' + decoder' if decoder else ''} {text}, batch {batch}"
    others = {"plain PyTorch float32": plain_training(model, part, batch)}
    timings, rates = time_training(model, part, batch, precision, rounds, others)
    operations = count_operations(model.config)
    results.add(case, "dualcaps", "operations", operations / 1e9, "GFLOP/image")
    for name, timing in timings.items():
        results.add_timing(case, name, "speed", timing, "images/s")
    plain = timings["plain PyTorch float32"].rate
    for number_type, found in rates.items():
        ours = timings[f"dualcaps {number_type}, compiled"].rate
        add_share(results, case, number_type, found, ours * operations)
        results.add(case, f"dualcaps {number_type} / plain PyTorch", "ratio", ours / plain, "times")
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
