"""Prediction: images in memory, one image alone, and files from a folder."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Results, parse, place
from PIL import Image

from dualcaps import create_model
from dualcaps.bench import SHAPES, Timing, check_parity, interleave, our_training, random_split
from dualcaps.config import Precision
from dualcaps.data.images import read_images
from dualcaps.inference import choose_precision, predict, predict_files
from dualcaps.models import Network

NETWORKS = (("capsnet", False), ("da-capsnet", True))
FILES = 1024


def main() -> None:
    """Measure all cases, each beside training of the same network."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("inference", options.out, device)
    for network, decoder in NETWORKS:
        for text in SHAPES:
            _measure(results, device, network, decoder, text, options.rounds)
    _files(results, device, options.rounds)


def _measure(results: Results, device: torch.device, network: str, decoder: bool, text: str, rounds: int) -> None:
    precision = choose_precision("auto", device)
    torch.manual_seed(0)
    model = create_model(network, SHAPES[text], decoder=decoder)
    check_parity(model, device, precision)
    part = random_split(SHAPES[text], 20480 if device.type == "cuda" else 1280, device)
    case = f"{network}{' + decoder' if decoder else ''} {text}"
    timings = interleave(
        {
            f"training {precision}, compiled": our_training(model, part, 128, precision, "always"),
            f"predict {precision}": lambda: _predict(model, part.images, precision),
            "predict float32": lambda: _predict(model, part.images, "float32"),
        },
        rounds=rounds,
        items=len(part),
    )
    for name, timing in timings.items():
        results.add_timing(case, name, "speed", timing, "images/s")
    training, prediction, _ = timings.values()
    results.add(case, "predict / training", "ratio", prediction.rate / training.rate, "times")
    for number_type in (precision, "float32"):
        seconds = []
        for _ in range(120):
            started = time.perf_counter()
            predict(model, part.images[:1], precision=number_type)
            seconds.append(time.perf_counter() - started)
        alone = [1e3 * time for time in sorted(seconds[20:])]
        spread = {"slowest": alone[-1], "fastest": alone[0], "n": len(alone)}
        results.add(case, f"one image, {number_type}", "time", alone[len(alone) // 2], "ms", **spread)


def _predict(model: Network, images: torch.Tensor, precision: Precision) -> None:
    predict(model, images, precision=precision)


def _files(results: Results, device: torch.device, rounds: int) -> None:
    """A folder of photographs: overlapped reading against reading everything first, in one thread."""
    random = np.random.default_rng(0)
    model = create_model("da-capsnet", (3, 32, 32)).place(device).eval()
    precision = choose_precision("auto", device)
    for kind, side in (("png", 128), ("jpg", 1024)):
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{number}.{kind}") for number in range(FILES if side < 500 else FILES // 8)]
            for path in paths:
                small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                small.resize((side, side), Image.Resampling.BICUBIC).save(path)

            def in_turn(paths: list[Path] = paths) -> None:
                images = np.concatenate([read_images([path], (3, 32, 32)) for path in paths])
                predict(model, torch.from_numpy(images), precision=precision)

            timings: dict[str, Timing] = interleave(
                {
                    "predict_files": lambda paths=paths: _predict_files(model, paths, precision),
                    "one after the other": in_turn,
                },
                rounds=rounds,
                items=len(paths),
            )
            for name, timing in timings.items():
                results.add_timing(f"da-capsnet, {side}x{side} {kind}", name, "speed", timing, "files/s")


def _predict_files(model: Network, paths: list[Path], precision: Precision) -> None:
    predict_files(model, paths, precision=precision)


if __name__ == "__main__":
    main()
