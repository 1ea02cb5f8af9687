"""`dualcaps evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dualcaps.cli.display import percent, print_json, print_notes, shorten_names, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder, TestData, check_out_folder
from dualcaps.errors import display_path

if TYPE_CHECKING:
    from rich.table import Table

    from dualcaps.inference import Evaluation, RunEvaluation

_LARGEST_PRINTED_MATRIX = 12
_LONGEST_HEADING = 12
_MOST_PICTURES = 24


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained network on test images or your own."""

    trained: RunFolder
    data: TestData = None
    data_dir: DataDir = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder to write into: evaluation.json, confusion.png, and the wrongly predicted images, the most confident
    first, as mistakes.csv and mistakes.png."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print JSON: accuracies, each class's precision and recall (0 to 1), the confusion matrix."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Evaluate, print, write files."""
        from dualcaps.inference import evaluate_run

        check_out_folder(self.out)
        found = evaluate_run(self.trained, self.data, data_dir=self.data_dir, device=self.device)
        print_notes(found.notes)
        written = [] if self.out is None else _write(found, self.out)  # before printing, which may end early in a pipe
        if self.json:
            print_json(_as_json(found))
            return
        _print(found)
        if self.out is not None:
            print(f"\n{display_path(self.out)}: {', '.join(written)}")


def _print(found: "RunEvaluation") -> None:
    evaluation, console = found.evaluation, stdout()
    classes, confusion = evaluation.classes, evaluation.confusion
    low, high = evaluation.interval
    console.print(
        f"accuracy {percent(evaluation.accuracy)} ({int(confusion.trace()):,} of {confusion.sum():,} images), "
        f"95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    )
    others = [f"balanced accuracy {percent(evaluation.balanced_accuracy)}"]
    others += [f"top-{k} {percent(accuracy)}" for k, accuracy in _top(evaluation).items()]
    others.append(f"calibration error {evaluation.calibration_error():.3f}")
    console.print(", ".join(others))
    console.print("not the official files\n" if found.official is False else "")
    console.print(_class_table(evaluation))
    if len(classes) <= _LARGEST_PRINTED_MATRIX:
        console.print("\nrows: true class, columns: predicted class")
        console.print(_confusion_table(evaluation, console.width))
    else:
        console.print(f"\nThe confusion matrix of {len(classes)} classes is shown by --out and --json.")


def _top(evaluation: "Evaluation") -> dict[int, float]:
    """Top-3 and top-5 accuracy, where there are more classes than five."""
    return {k: evaluation.top_k(k) for k in (3, 5)} if len(evaluation.classes) > 5 else {}


def _class_table(evaluation: "Evaluation") -> "Table":
    classes, confusion = evaluation.classes, evaluation.confusion
    columns = table(
        *("class", "images", "recall", "precision", "most often confused with"), right=("images", "recall", "precision")
    )
    for label, name in enumerate(classes):
        wrong = confusion[label].copy()
        wrong[label] = 0
        other = f"{classes[wrong.argmax()]} ({wrong.max()})" if wrong.max() else ""
        images, recall, precision = confusion[label].sum(), evaluation.recall[label], evaluation.precision[label]
        columns.add_row(name, f"{images:,}", percent(recall), percent(precision), other)
    return columns


def _confusion_table(evaluation: "Evaluation", width: int) -> "Table":
    """The confusion matrix headed by the names of the classes, shortened to fit the width."""
    classes = evaluation.classes
    room = (width - min(max(map(len, classes)), width // 3)) // len(classes) - 2
    headings = shorten_names(classes, max(4, min(_LONGEST_HEADING, room)))
    columns = table("", *headings, right=headings)
    for name, row in zip(classes, evaluation.confusion, strict=True):
        columns.add_row(name, *(str(count) if count else "·" for count in row))
    return columns


def _as_json(found: "RunEvaluation") -> dict[str, Any]:
    evaluation = found.evaluation
    confusion = evaluation.confusion
    per_class = zip(evaluation.classes, evaluation.precision, evaluation.recall, confusion.sum(axis=1), strict=True)
    return {
        "accuracy": evaluation.accuracy,
        "interval": list(evaluation.interval),
        "balanced_accuracy": evaluation.balanced_accuracy,
        **{f"top_{k}": accuracy for k, accuracy in _top(evaluation).items()},
        "calibration_error": evaluation.calibration_error(),
        "images": int(confusion.sum()),
        "official_files": found.official,
        "classes": {
            name: {"precision": _number(precision), "recall": _number(recall), "images": int(images)}
            for name, precision, recall, images in per_class
        },
        "confusion": confusion.tolist(),
    }


def _number(ratio: float) -> float | None:
    return float(ratio) if ratio == ratio else None


def _write(found: "RunEvaluation", out: Path) -> list[str]:
    """Write the files of `--out`; their names."""
    from dualcaps.plots import confusion_matrix, labelled_images, png
    from dualcaps.runs.files import write_bytes, write_csv, write_json

    evaluation, images = found.evaluation, found.split.images
    classes, predicted = evaluation.classes, evaluation.predicted
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", _as_json(found))
    write_bytes(out / "confusion.png", png(confusion_matrix(evaluation.confusion, classes)))
    mistakes = [
        (int(image), classes[evaluation.labels[image]], classes[predicted[image]], evaluation.lengths[image])
        for image in evaluation.most_confidently_wrong(len(evaluation.labels))
    ]
    files = found.split.files or [""] * len(images)
    rows = []
    for image, truth, guess, lengths in mistakes:
        own = lengths[evaluation.labels[image]]
        rows.append([image, files[image], truth, guess, f"{lengths.max():.4f}", f"{own:.4f}"])
    columns = ("image", "file", "true class", "predicted class", "predicted length", "true length")
    write_csv(out / "mistakes.csv", columns, rows)
    written = ["evaluation.json", "confusion.png", "mistakes.csv"]
    if not mistakes:
        (out / "mistakes.png").unlink(missing_ok=True)  # of an evaluation before
        return written
    shown = mistakes[:_MOST_PICTURES]
    pixels = images[[image for image, *_ in shown]].permute(0, 2, 3, 1).cpu().numpy() / 255
    captions = [f"{truth}\ntaken for {guess}, {lengths.max():.2f}" for _, truth, guess, lengths in shown]
    write_bytes(out / "mistakes.png", png(labelled_images(pixels, captions)))
    return [*written, "mistakes.png"]
