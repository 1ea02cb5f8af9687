"""Exported networks on real images: answers, accuracy and speed in onnxruntime beside PyTorch, and one image in Node.

    python benchmarks/export.py RUN... [--images 1000]

The ONNX file of each run is made by the command line. Latency is that of one image, throughput that of batches of 64,
both in float32, with as many threads as this machine has cores. Node takes onnxruntime-node from npm, on the first run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import platformdirs
import torch
from common import ROOT, Results

from dualcaps import evaluate, load_model
from dualcaps.bench import interleave
from dualcaps.export.graphs import Classifier
from dualcaps.export.onnx import accuracy_of, load_graph
from dualcaps.inference import run_data
from dualcaps.runs.run import Run

BATCH, BATCHES, SINGLES = 64, 5, 50


def main() -> None:
    """Export, compare, time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    results = Results("export", options.out, torch.device("cpu"), versions)
    for path in options.runs:
        run = Run.open(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            subprocess.run([sys.executable, "-m", "dualcaps", "export", path, "--to", file], check=True)
            measure(run, file, options.images, options.rounds, results)
            small = Path(folder, "int8.onnx")
            subprocess.run([sys.executable, "-m", "dualcaps", "export", path, "--to", small, "--int8"], check=True)
            test = run_data(run).test
            case = f"{run.model.name} on {run.data.source}"
            results.add(case, "onnxruntime, int8", "accuracy", 100 * accuracy_of(small, test.images, test.labels), "%")
            for name, exported in (("onnxruntime", file), ("onnxruntime, int8", small)):
                results.add(case, name, "file", exported.stat().st_size / 1e6, "MB")


def measure(run: Run, file: Path, count: int, rounds: int, results: Results) -> None:
    """Compare and time one run and its file."""
    model = load_model(run, "cpu")
    split, case = run_data(run).test, f"{run.model.name} on {run.data.source}"
    graph, classifier = load_graph(file), Classifier(model)
    chosen = split.images[:count]
    with torch.no_grad():
        wanted = torch.cat([classifier(part)[0] for part in chosen.split(BATCH)]).numpy()
    found = np.concatenate([graph([part.numpy()])[0] for part in chosen.split(BATCH)])
    results.add(case, "onnxruntime", "difference", float(np.abs(found - wanted).max()), f"of {len(chosen):,} images")
    results.add(case, "PyTorch", "accuracy", 100 * evaluate(model, split).accuracy, "%")
    results.add(case, "onnxruntime", "accuracy", 100 * accuracy_of(file, split.images, split.labels), "%")
    in_node = _node(file, chosen[0])
    results.add(case, "onnxruntime-node", "difference", float(np.abs(in_node - wanted[0]).max()), "of an image")
    ways = {"PyTorch": lambda pixels: classifier(pixels), "onnxruntime": lambda pixels: graph([pixels.numpy()])}
    for measure, size, times in (("latency", 1, SINGLES), ("throughput", BATCH, BATCHES)):
        pixels = chosen[:size]

        def repeat(way, pixels=pixels, times=times):
            with torch.inference_mode():
                for _ in range(times):
                    way(pixels)

        timings = interleave(
            {name: lambda way=way: repeat(way) for name, way in ways.items()}, rounds=rounds, items=size * times
        )
        for name, timing in timings.items():
            if measure == "throughput":
                results.add_timing(case, name, measure, timing, "images/s")
            else:
                each = sorted(1e3 * seconds / times for seconds in timing.seconds)
                spread = {"slowest": each[-1], "fastest": each[0], "n": len(each)}
                results.add(case, name, measure, each[len(each) // 2], "ms", **spread)


def _node(file: Path, image: torch.Tensor) -> np.ndarray:
    """The lengths of one image in Node."""
    folder = platformdirs.user_cache_path("dualcaps") / "peers" / "node"
    if not (folder / "node_modules" / "onnxruntime-node").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        # Its scripts would fetch a CUDA build.
        subprocess.run(["npm", "install", "--ignore-scripts", "onnxruntime-node"], cwd=folder, check=True)
    with tempfile.NamedTemporaryFile() as pixels:
        pixels.write(image.numpy().tobytes())
        pixels.flush()
        script = Path(__file__).with_name("onnx_in_node.mjs")
        command = ["node", script, folder, file, pixels.name, *map(str, image.shape)]
        said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    return np.array(json.loads(said))


if __name__ == "__main__":
    main()
