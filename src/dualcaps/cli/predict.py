"""`dualcaps predict`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dualcaps.cli.display import print_json, print_notes, stdout, table
from dualcaps.cli.options import Device, PluginFiles, RunFolder
from dualcaps.config import PrecisionChoice
from dualcaps.errors import ConfigError, DataError, display_path

if TYPE_CHECKING:
    import numpy as np

_MOST_PRINTED_FILES = 20


@dataclass(frozen=True)
class Predict:
    """Classify image files of any size and mode."""

    trained: RunFolder
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="")]
    """Image files, and folders, of which all images are taken."""
    top: int = 3
    """How many classes to print for each image."""
    precision: PrecisionChoice = "auto"
    """Number type of the layers; auto is bfloat16 if the machine is fast at it."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print JSON: for each image its class and the lengths of all classes (0 to 1), or why it cannot be read."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Predict, print, and report the files that cannot be read."""
        if not self.images:
            raise DataError("IMAGE…: name at least one image file or folder")
        if self.top < 1:
            raise ConfigError(f"--top must be at least 1, got {self.top}")

        from dualcaps.inference import choose_precision, load_model, predict_files
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        model = load_model(opened, self.device)
        files = [file for path in self.images for file in image_files(path)]
        precision = choose_precision(self.precision, next(model.parameters()).device)
        unread: dict[int, str] = {}
        tta = opened.training.tta
        lengths = predict_files(model, files, precision=precision, tta=tta, unread=unread).numpy()
        if len(unread) == len(files):
            others = f"; the other {len(files) - 1:,} cannot be read either" if len(files) > 1 else ""
            raise DataError(unread[0] + others)
        if self.json:
            _print_json(model.classes, files, lengths, unread)
        else:
            _print_table(model.classes, files, lengths, unread, self.top)
        for reason in list(unread.values())[:_MOST_PRINTED_FILES]:
            print(f"dualcaps: {reason}", file=sys.stderr)
        if len(unread) > _MOST_PRINTED_FILES:
            print(f"dualcaps: {len(unread) - _MOST_PRINTED_FILES:,} more files cannot be read", file=sys.stderr)
        if unread:
            sys.exit(1)


def image_files(path: Path) -> list[Path]:
    """The file, or the images of a folder, with a note of what was skipped."""
    from dualcaps.data.sources.folder import list_images

    if not path.is_dir():
        return [path]
    listing = list_images(path)
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(listing.skipped.items()))
    if not listing.files:
        raise DataError(f"{display_path(path)}: no images in this folder{skipped and f' ({skipped})'}")
    if skipped:
        print_notes([f"{display_path(path)}: skipped: {skipped}"])
    return listing.files


def _print_json(
    classes: Sequence[str], files: Sequence[Path], lengths: "np.ndarray", unread: Mapping[int, str]
) -> None:
    answers = []
    for place, file in enumerate(files):
        if place in unread:
            answers.append({"file": str(file), "error": unread[place]})
            continue
        by_class = dict(zip(classes, lengths[place].tolist(), strict=True))
        answers.append({"file": str(file), "class": classes[lengths[place].argmax()], "lengths": by_class})
    print_json(answers)


def _print_table(
    classes: Sequence[str], files: Sequence[Path], lengths: "np.ndarray", unread: Mapping[int, str], top: int
) -> None:
    shown = min(top, len(classes))
    columns = table("image", "class, length", *["then"] * (shown - 1), fold=True)
    for place, (file, row) in enumerate(zip(files, lengths, strict=True)):
        if place not in unread:
            ranking = (-row).argsort(kind="stable")[:shown]
            columns.add_row(display_path(file), *(f"{classes[label]} {row[label]:.3f}" for label in ranking))
    stdout().print(columns)
