"""Whether the fast path learns as well: final test accuracy against float32 without compiling, seed by seed."""

import statistics
import tempfile
from pathlib import Path

import torch
from common import Results, parse, place

from dualcaps import TrainConfig, create_model, fit, load_data

PATHS = {
    "fast: bfloat16, compiled": {"precision": "bfloat16", "compile": "always"},
    "float32, eager": {"precision": "float32", "compile": "never"},
}
CASES = (("digits", 40), ("fashion-mnist", 3))
SEEDS = (0, 1, 2)


def main() -> None:
    """Train `da-capsnet` on both sets, three seeds each way."""
    options = parse(__doc__ or "")
    device = place(options.device)
    results = Results("accuracy", options.out, device)
    for name, epochs in CASES:
        data = load_data(name)
        official = {True: "official files", False: "not the official files", None: "embedded"}
        case = f"da-capsnet, {name}, {epochs} epochs ({official[data.provenance['official']]})"
        reached: dict[str, list[float]] = {path: [] for path in PATHS}
        for seed in SEEDS:
            for path, settings in PATHS.items():
                with tempfile.TemporaryDirectory() as folder:
                    torch.manual_seed(seed)
                    model = create_model("da-capsnet", data.image_shape, len(data.classes))
                    config = TrainConfig(epochs=epochs, seed=seed, device=options.device, **settings)
                    result = fit(model, data, config, out=Path(folder, "run"), quiet=True)
                reached[path].append(100 * result.test_accuracy)
                results.add(case, path, f"seed {seed}", reached[path][-1], "% of the test images")
        for path, accuracies in reached.items():
            spread = {"slowest": min(accuracies), "fastest": max(accuracies), "n": len(SEEDS)}
            results.add(case, path, "mean", statistics.mean(accuracies), "%", **spread)
            results.add(case, path, "std", statistics.stdev(accuracies), "%", n=len(SEEDS))


if __name__ == "__main__":
    main()
