"""`dualcaps predict`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from dualcaps.cli.display import print_json, print_notes, progress_bar, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder
from dualcaps.config import PrecisionChoice
from dualcaps.errors import ConfigError, DataError, display_path

if TYPE_CHECKING:
    import numpy as np

    from dualcaps.explain.rejection import Rejection
    from dualcaps.models import Network
    from dualcaps.runs.run import Run

_MOST_PRINTED_FILES = 20
_REASONS = {
    "length": "all capsules are shorter",
    "reconstruction": "the reconstruction is worse",
    "entropy": "the couplings are less decided",
}


@dataclass(frozen=True)
class Predict:
    """Classify image files of any size and mode."""

    trained: RunFolder
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="")]
    """Image files, and folders, of which all images are taken."""
    top: int = 3
    """How many classes to print for each image."""
    reject: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Answer "none of these" for images unlike those of all classes; 5 % of the known images are rejected as well. The
    thresholds are computed from held-out images of the run's data the first time, and kept in the run folder."""
    data_dir: DataDir = None
    precision: PrecisionChoice = "auto"
    """Number type of the layers; auto is bfloat16 if the machine is fast at it."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print JSON: for each image its class, the lengths of all classes (0 to 1) and, where the run's temperature is
    known, their probabilities; or why it cannot be read; with --reject also whether it is rejected, and for each signal
    the share of known images as unusual."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Predict, print, and report the files that cannot be read."""
        if not self.images:
            raise DataError("IMAGE…: name at least one image file or folder")
        if self.top < 1:
            raise ConfigError(f"--top must be at least 1, got {self.top}")

        from dualcaps.explain.rejection import signals
        from dualcaps.inference import choose_precision, load_model, predict_files
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        model = load_model(opened, self.device)
        files = [file for path in self.images for file in image_files(path)]
        precision = choose_precision(self.precision, next(model.parameters()).device)
        unread: dict[int, str] = {}
        tta = opened.training.tta
        known = rejection_with_progress(opened, model, self.data_dir) if self.reject else None
        found: list[dict[str, np.ndarray]] = []
        each_batch = (lambda _: None) if known is None else lambda pixels: found.append(signals(model, pixels))
        answers = predict_files(model, files, precision=precision, tta=tta, unread=unread, each_batch=each_batch)
        lengths = answers.numpy()
        if len(unread) == len(files):
            others = f"; the other {len(files) - 1:,} cannot be read either" if len(files) > 1 else ""
            raise DataError(unread[0] + others)
        doubts = None if known is None else _doubts(known, found)
        if self.json:
            _print_json(model.classes, files, lengths, unread, _probabilities(opened, lengths), doubts)
        else:
            _print_table(model.classes, files, lengths, unread, self.top, doubts)
        for reason in list(unread.values())[:_MOST_PRINTED_FILES]:
            print(f"dualcaps: {reason}", file=sys.stderr)
        if len(unread) > _MOST_PRINTED_FILES:
            print(f"dualcaps: {len(unread) - _MOST_PRINTED_FILES:,} more files cannot be read", file=sys.stderr)
        if unread:
            sys.exit(1)


class _Doubt(NamedTuple):
    """Whether an image is rejected, and for each signal the share of known images at least as unusual."""

    rejected: bool
    tails: dict[str, float]

    def reason(self) -> str:
        """The most unusual signal."""
        name = min(self.tails, key=lambda signal: self.tails[signal])
        return f"{_REASONS[name]} than for {100 * (1 - self.tails[name]):.1f} % of known images"


def _doubts(known: "Rejection", found: Sequence[Mapping[str, "np.ndarray"]]) -> list[_Doubt]:
    import numpy as np

    joined = {name: np.concatenate([batch[name] for batch in found]) for name in known.values}
    rejected, tails = known.rejects(joined).tolist(), known.tails(joined)
    return [
        _Doubt(is_rejected, {name: float(shares[place]) for name, shares in tails.items()})
        for place, is_rejected in enumerate(rejected)
    ]


def rejection_with_progress(run: "Run", model: "Network", data_dir: Path | None) -> "Rejection":
    """The run's thresholds; where they have to be computed, with a progress bar and a note of the images used."""
    from dualcaps.explain.rejection import rejection_of

    computed = False
    with progress_bar() as progress:

        def start(count: int) -> Callable[[int], None]:
            nonlocal computed
            computed = True
            task = progress.add_task("setting thresholds on held-out images", total=count)
            return lambda done: progress.advance(task, done)

        known = rejection_of(run, model, data_dir=data_dir, start=start)
    if computed:
        print_notes([f"thresholds set on {known.images:,} images ({known.held_out}), kept in {display_path(run.path)}"])
    return known


def image_files(path: Path) -> list[Path]:
    """The file, or the images of a folder, with a note of what was skipped."""
    from dualcaps.data.sources.folder import list_images, skipped_reasons

    if not path.is_dir():
        return [path]
    listing = list_images(path)
    skipped = skipped_reasons(listing.skipped)
    if not listing.files:
        raise DataError(f"{display_path(path)}: no images in this folder{skipped}")
    if skipped:
        print_notes([f"{display_path(path)}: {len(listing.files):,} image files used{skipped}"])
    return listing.files


def _probabilities(run: "Run", lengths: "np.ndarray") -> "np.ndarray | None":
    """The probabilities of all classes; None for a run without a calibration."""
    from dualcaps.calibration import kept_calibration, probabilities

    calibration = kept_calibration(run)
    return None if calibration is None else probabilities(lengths, calibration.temperature)


def _print_json(
    classes: Sequence[str],
    files: Sequence[Path],
    lengths: "np.ndarray",
    unread: Mapping[int, str],
    chances: "np.ndarray | None",
    doubts: Sequence[_Doubt] | None,
) -> None:
    answers = []
    for place, file in enumerate(files):
        if place in unread:
            answers.append({"file": str(file), "error": unread[place]})
            continue
        by_class = dict(zip(classes, lengths[place].tolist(), strict=True))
        answer = {"file": str(file), "class": classes[lengths[place].argmax()], "lengths": by_class}
        if chances is not None:
            answer["probabilities"] = dict(zip(classes, chances[place].tolist(), strict=True))
        if doubts is not None:
            answer |= {"rejected": doubts[place].rejected, "known_images_as_unusual": doubts[place].tails}
        answers.append(answer)
    print_json(answers)


def _print_table(
    classes: Sequence[str],
    files: Sequence[Path],
    lengths: "np.ndarray",
    unread: Mapping[int, str],
    top: int,
    doubts: Sequence[_Doubt] | None,
) -> None:
    shown = min(top, len(classes))
    columns = table("image", "class, length", *["then"] * (shown - 1), fold=True)
    for place, (file, row) in enumerate(zip(files, lengths, strict=True)):
        if place not in unread:
            ranking = (-row).argsort(kind="stable")[:shown]
            answers = [f"{classes[label]} {row[label]:.3f}" for label in ranking]
            if doubts is not None and doubts[place].rejected:
                answers = [f"none of these: {doubts[place].reason()}"]
            columns.add_row(display_path(file), *answers)
    stdout().print(columns)
