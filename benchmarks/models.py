"""Keep finished runs in `results/models`, with weights in half precision, to be used by name.

    python benchmarks/models.py RUN...

The name is the run folder's, such as da-capsnet.fashion-mnist. The half-precision weights are tested on the test
images again, and refused if they lose more than 0.1 %; temperature and thresholds are computed from them.
"""

import argparse
import json
import shutil
from pathlib import Path

from common import ROOT, in_half_precision
from safetensors.torch import save_file

from dualcaps import evaluate, load_model
from dualcaps.calibration import calibration_of
from dualcaps.explain.rejection import rejection_of
from dualcaps.export.card import facts_of, model_card
from dualcaps.inference import run_data
from dualcaps.runs.files import new_folder, write_json, write_text
from dualcaps.runs.run import CONFIG, METRICS, PROVENANCE, RESULT, WEIGHTS, Run

MOST_LOST = 0.001
LICENCE = "apache-2.0"


def main() -> None:
    """Copy, test, describe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "models")
    options = parser.parse_args()
    for path in options.runs:
        run = Run.open(path)
        assert run.result is not None
        with new_folder(options.out / path.name) as draft:
            for file in (CONFIG, METRICS, RESULT):
                shutil.copy(path / file, draft / file)
            provenance = json.loads((path / PROVENANCE).read_text())
            provenance["data"]["from"] = run.data.source  # the path was of another machine
            write_json(draft / PROVENANCE, provenance)
            save_file(in_half_precision(run.weights()), draft / WEIGHTS)
            kept = Run.open(draft)
            model = load_model(kept, "cpu")
            precision = run.result["precision"]
            accuracy = evaluate(model, run_data(run).test, precision=precision, tta=run.training.tta).accuracy
            if accuracy < run.result["test_accuracy"] - MOST_LOST:
                raise SystemExit(f"{path}: {accuracy:.2%} in half precision, {run.result['test_accuracy']:.2%} before")
            calibration = calibration_of(kept, model)
            rejection = rejection_of(kept, model)
            facts = {**facts_of(run, model, licence=LICENCE), "accuracy": accuracy}
            write_text(draft / "README.md", model_card(facts, load=f'load_model("{path.name}")'))
        size = sum(file.stat().st_size for file in (options.out / path.name).iterdir()) / 1e6
        print(
            f"{path.name}: {size:.1f} MB, {accuracy:.2%} in half precision ({run.result['test_accuracy']:.2%} before), "
            f"temperature {calibration.temperature:.3f}, calibration error {calibration.error_before:.3f} before and "
            f"{calibration.error_after:.3f} after, thresholds from {rejection.images:,} images"
        )


if __name__ == "__main__":
    main()
