"""`dualcaps robustness`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dualcaps.cli.display import percent, print_json, print_notes, progress_bar, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder, TestData, check_out_folder
from dualcaps.errors import ConfigError, display_path

if TYPE_CHECKING:
    from dualcaps.data.dataset import ImageSplit
    from dualcaps.robustness.suite import Score, SuiteResult

_HEADINGS = {
    "rotation": "rotated by",
    "shift": "shifted by a share of the side",
    "corruption": "corrupted, by severity",
    "attack": "attacked with full knowledge of the network, by the largest change of a value in [0, 1]",
}
_UNITS = {
    "rotation": "degrees",
    "shift": "share of the side",
    "corruption": "severity",
    "attack": "largest change of a value in [0, 1]",
}


@dataclass(frozen=True)
class Robustness:
    """Evaluate a trained network on rotated, shifted, corrupted, attacked and overlapping test images."""

    trained: RunFolder
    data: TestData = None
    suites: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME…", help_behavior_hint="")] = ()
    """Which changes: rotation, shift, affine (affNIST's ranges), corruption, attack (FGSM and PGD), overlap (two images
    on top of each other, as in MultiMNIST); by default all, overlap only of a run trained with --augment overlap."""
    count: int = 1_000
    """How many images, drawn from the test images."""
    attacked: int = 200
    """How many of them to attack."""
    seed: int = 0
    """Seed of the draw and of random changes."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder to write into: robustness.json, robustness.csv, robustness.png with curves, changed.png with examples."""
    data_dir: DataDir = None
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print JSON: all accuracies (0 to 1), the check of the gradients, the score of overlapping images."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Evaluate, print, write files."""
        check_out_folder(self.out)
        for option in ("count", "attacked"):
            if getattr(self, option) < 1:
                raise ConfigError(f"--{option} must be at least 1, got {getattr(self, option)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be at least 0, got {self.seed}")

        from dualcaps.inference import evaluation_split, load_model
        from dualcaps.robustness.suite import SUITES, robustness, steps
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        overlapping = "overlap" in opened.training.augment.split(",")
        suites = self.suites or tuple(name for name in SUITES if name != "overlap" or overlapping)
        model = load_model(opened, self.device)
        split, _, notes = evaluation_split(opened, model, self.data, data_dir=self.data_dir)
        print_notes(notes)
        if "overlap" in suites and not overlapping:
            print_notes(["the run was not trained on overlapping images (--augment overlap)"])
        count, attacked = min(self.count, len(split)), min(self.attacked, self.count, len(split))
        with progress_bar() as progress:
            task = progress.add_task("classifying", total=steps(suites, count, attacked))
            found = robustness(
                model,
                split,
                suites,
                count=count,
                attacked=attacked,
                seed=self.seed,
                each=lambda done: progress.advance(task, done),
            )
        written = [] if self.out is None else _write(found, split, suites, self.seed, self.out)
        if self.json:
            print_json(_as_json(found))
            return
        _print(found)
        if self.out is not None:
            print(f"\n{display_path(self.out)}: {', '.join(written)}")


def _print(found: "SuiteResult") -> None:
    clean, *others = found.scores
    console = stdout()
    console.print(f"accuracy {percent(clean.accuracy)} on {clean.images:,} unchanged test images")
    for score in others:
        if score.suite == "affine":
            console.print(f"accuracy {percent(score.accuracy)} under affine changes in affNIST's ranges")
    for suite, heading in _HEADINGS.items():
        if rows := _by_change([score for score in others if score.suite == suite]):
            strengths = [_strength(suite, score.strength) for score in next(iter(rows.values()))]
            shown = table("", *strengths, "mean", right=(*strengths, "mean"))
            for change, scores in rows.items():
                accuracies = [score.accuracy for score in scores]
                mean = sum(accuracies) / len(accuracies)
                shown.add_row("accuracy" if change == suite else change, *map(percent, (*accuracies, mean)))
            images = next(iter(rows.values()))[0].images
            console.print(f"\n{heading}" + (f" ({images:,} images)" if suite == "attack" else ""))
            console.print(shown)
    if found.gradients is not None:
        signs = found.gradients.signs()
        verdict = "no sign of masked gradients" if not signs else f"gradients may be masked: {'; '.join(signs)}"
        console.print(
            f"{verdict} (images without gradient {percent(found.gradients.zero_gradients)}, difference from finite "
            f"differences {percent(found.gradients.finite_difference)}, random changes of {found.gradients.size:g} "
            f"{percent(found.gradients.noise_accuracy)} right, unbounded PGD "
            f"{percent(found.gradients.unbounded_accuracy)} right)"
        )
    if found.overlap is not None:
        score = found.overlap
        console.print(
            f"\ntwo overlapping images: both classes found in {percent(score.both)} of {score.images:,}, "
            f"{percent(score.each)} of the classes found"
        )
        if score.reconstruction_error is not None:
            console.print(
                f"reconstruction of each from its class's pose: mean squared error {score.reconstruction_error:.4f}, "
                f"of a black picture {score.blank_error:.4f}"
            )


def _by_change(scores: "list[Score]") -> "dict[str, list[Score]]":
    rows: dict[str, list[Score]] = {}
    for score in scores:
        rows.setdefault(score.change, []).append(score)
    return rows


def _strength(suite: str, strength: float) -> str:
    return {"rotation": f"{strength:g}°", "shift": f"{100 * strength:g} %"}.get(suite, f"{strength:.3g}")


def _as_json(found: "SuiteResult") -> dict[str, Any]:
    return {
        "scores": [score._asdict() for score in found.scores],
        "gradients": None
        if found.gradients is None
        else {**found.gradients._asdict(), "signs_of_masking": found.gradients.signs()},
        "overlap": None if found.overlap is None else found.overlap._asdict(),
    }


def _write(found: "SuiteResult", split: "ImageSplit", suites: tuple[str, ...], seed: int, out: Path) -> list[str]:
    """Write the files of `--out`; their names."""
    from dualcaps.plots import png, strength_curves
    from dualcaps.robustness.suite import Score
    from dualcaps.runs.files import write_bytes, write_csv, write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "robustness.json", _as_json(found))
    write_csv(out / "robustness.csv", Score._fields, found.scores)
    written = ["robustness.json", "robustness.csv"]
    clean, *others = found.scores
    curves = {}
    for suite in _HEADINGS:
        rows = _by_change([score for score in others if score.suite == suite])
        if rows:
            curves[suite] = {
                change: ([0.0, *(s.strength for s in scores)], [100 * s.accuracy for s in (clean, *scores)])
                for change, scores in rows.items()
            }
    if curves:
        write_bytes(out / "robustness.png", png(strength_curves(curves, _UNITS)))
        written.append("robustness.png")
    if examples := _examples(split, suites, seed):
        write_bytes(out / "changed.png", examples)
        written.append("changed.png")
    return written


def _examples(split: "ImageSplit", suites: tuple[str, ...], seed: int) -> bytes | None:
    """The first test image in all changes that are not attacks, a row each."""
    import numpy as np

    from dualcaps.plots import image_rows, png
    from dualcaps.robustness.suite import changed_images

    rows: dict[str, list[np.ndarray]] = {}
    for suite, change, _, changed in changed_images(split.images[:1].cpu(), suites, seed):
        if suite != "affine":
            rows.setdefault(change, []).append(changed[0].permute(1, 2, 0).numpy() / 255)
    if not rows:
        return None
    columns = max(map(len, rows.values()))
    return png(image_rows({name: np.stack(row) for name, row in rows.items()}, [str(n + 1) for n in range(columns)]))
