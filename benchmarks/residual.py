"""Training speed of `da-capsnet-r` and its controls, whose users have larger images and widths than the paper's."""

import torch
from common import Results, add_share, parse, place, time_training

from dualcaps import Network, create_model, predict
from dualcaps.bench import ParityError, count_operations, random_split
from dualcaps.inference import choose_precision

# Network, width, image shape, batch.
CASES = (
    ("da-capsnet-r", 64, (3, 32, 32), 128),
    ("resnet-r", 64, (3, 32, 32), 128),
    ("da-capsnet-r", 32, (3, 32, 32), 128),
    ("da-capsnet-r", 32, (3, 64, 64), 32),
    ("da-capsnet-r", 32, (3, 224, 224), 32),
)


def main() -> None:
    """Measure all cases, eager and compiled, in float32 and in the number type that is chosen on this machine."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("residual", options.out, device)
    for network, width, shape, batch in CASES:
        _measure(results, device, network, width, shape, batch, options.rounds)


def _measure(
    results: Results,
    device: torch.device,
    network: str,
    width: int,
    shape: tuple[int, int, int],
    batch: int,
    rounds: int,
) -> None:
    precision = choose_precision("auto", device)
    torch.manual_seed(0)
    model = create_model(network, shape, width=width)
    for number_type in ("float32", precision):
        _check_device(model, device, number_type)
    part = random_split(shape, (100 if device.type == "cuda" else 4) * batch, device)
    case = f"{network} w{width} {shape[1]}x{shape[2]}x{shape[0]}, batch {batch}"
    timings, rates = time_training(model, part, batch, precision, rounds, {})
    operations = count_operations(model.config)
    results.add(case, "dualcaps", "operations", operations / 1e9, "GFLOP/image")
    for name, timing in timings.items():
        results.add_timing(case, name, "speed", timing, "images/s")
    for number_type, found in rates.items():
        best = max(timings[f"dualcaps {number_type}, {how}"].rate for how in ("eager", "compiled"))
        add_share(results, case, number_type, found, best * operations)


def _check_device(model: Network, device: torch.device, number_type: str) -> None:
    """Compare lengths with those in float64 on the CPU."""
    images = torch.rand(16, *model.config.image_shape)
    expected = model.double().cpu().eval()(images.double()).lengths
    found = predict(model.float().place(device), images, precision=number_type).cpu()
    if not (apart := (found - expected).abs().max().item()) <= (0.03 if number_type == "bfloat16" else 1e-3):
        raise ParityError(f"{model.config.name}: lengths in {number_type} are {apart:.2g} off: no speed is told")


if __name__ == "__main__":
    main()
