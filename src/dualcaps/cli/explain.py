"""`dualcaps explain`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import Progress

from dualcaps.cli.display import print_json, print_notes, stderr, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder
from dualcaps.cli.predict import image_files
from dualcaps.errors import ConfigError, DataError, DualcapsError, display_path

if TYPE_CHECKING:
    from dualcaps.data.dataset import ImageSplit
    from dualcaps.explain.page import Subject
    from dualcaps.explain.scores import MapScores, Mean
    from dualcaps.runs.run import Run

_MOST_IMAGES = 30
_RANGE_IMAGES = 2_000  # test images that the range of the poses is taken from
_METRICS = {
    "deletion": "lower is better",
    "insertion": "higher is better",
    "road": "lower is better",
    "randomised_weights": "near 0 is better",
}


@dataclass(frozen=True)
class Explain:
    """Show what speaks for each class in an image, or score how well maps show it."""

    trained: RunFolder
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[IMAGE…]", help_behavior_hint="")
    ] = ()
    """Image files, and folders, of which all images are taken; by default a test image of each class. With --score a
    data set's name or your own images in class folders, by default the run's own test images."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The page to write, one HTML file that needs no other; by default explanation.html in the run folder."""
    compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN…", help_behavior_hint="")] = ()
    """Other runs to show beside it; their classes may differ."""
    score: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Score the kinds of maps beside a random one, instead of writing a page."""
    count: int = 200
    """How many images to score maps on, drawn from the test images."""
    seed: int = 0
    """Seed of the draw."""
    data_dir: DataDir = None
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the scores as JSON."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Write the page, or print the scores."""
        if self.score:
            self._print_scores()
        else:
            self._write_page()

    def _print_scores(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--count must be at least 1, got {self.count}")
        if len(self.images) > 1:
            raise DataError(f"--score takes one data set or folder of classes, got {len(self.images)}")
        if self.out is not None or self.compare:
            raise ConfigError("--score writes no page: leave --out and --compare out")

        import torch

        from dualcaps.explain.maps import MAPS, usable_maps
        from dualcaps.explain.scores import score_maps
        from dualcaps.inference import evaluation_split, load_model
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        model = load_model(opened, self.device)
        split, _, notes = evaluation_split(opened, model, *self.images[:1], data_dir=self.data_dir)
        print_notes(notes)
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        images = split.images[order[: self.count]]
        kinds = usable_maps(model)
        if missing := [kind for kind in MAPS if kind not in kinds]:
            print_notes([f"{model.config.name} lacks the parts for the maps {', '.join(missing)}"])
        with Progress(console=stderr(), disable=not sys.stderr.isatty(), transient=True) as progress:
            task = progress.add_task("scoring maps", total=len(images) * len(kinds))
            found = score_maps(model, images, kinds, each=lambda done: progress.advance(task, done))
        if self.json:
            print_json({kind: _as_json(scores) for kind, scores in found.items()})
            return
        columns = table("map", *_METRICS, right=_METRICS)
        columns.add_row("", *_METRICS.values())
        for kind, scores in found.items():
            columns.add_row(kind, *map(_with_margin, scores))
        stdout().print(columns)
        print(f"means over {len(images):,} images with 95 % intervals; each image is explained for its predicted class")

    def _write_page(self) -> None:
        from dualcaps.explain.page import explanation_page
        from dualcaps.runs.files import write_text
        from dualcaps.runs.run import Run

        runs = [Run.open(path) for path in (self.trained, *self.compare)]
        files = [file for path in self.images for file in image_files(Path(path))]
        if len(files) > _MOST_IMAGES:
            raise DataError(f"{len(files):,} images are too many for a page: name at most {_MOST_IMAGES}")
        subjects, names = [], [display_path(file) for file in files]
        for opened in runs:
            subject, shown = self._subject(opened, files)
            subjects.append(subject)
            names = names or shown
        out = self.out or self.trained / "explanation.html"
        write_text(out, explanation_page(subjects, names))
        print(display_path(out))

    def _subject(self, opened: "Run", files: Sequence[Path]) -> tuple["Subject", list[str]]:
        """A run's network with the images to explain, and names of the images."""
        import torch

        from dualcaps.data.dataset import ImageSplit
        from dualcaps.data.images import read_images
        from dualcaps.explain.page import Subject
        from dualcaps.explain.sweep import seen_ranges
        from dualcaps.inference import evaluation_split, load_model

        model = load_model(opened, self.device)
        ranges, split = None, None
        try:
            split, _, _ = evaluation_split(opened, model, data_dir=self.data_dir)
        except DualcapsError as error:
            if not files:
                raise
            print_notes([f"sliders reach 0.25 to both sides of a pose, as its range cannot be computed: {error}"])
        if split is not None and model.decoder is not None:
            step = math.ceil(len(split) / _RANGE_IMAGES)
            ranges = seen_ranges(model, ImageSplit(split.images[::step], split.labels[::step]))
        if files:
            images: Any = torch.from_numpy(read_images(files, model.config.image_shape, value_range=model.value_range))
            names: list[str] = []
        else:
            assert split is not None
            chosen = _first_of_each_class(split)
            images = split.images[chosen]
            names = [f"test image {number + 1}: {model.classes[int(split.labels[number])]}" for number in chosen]
        accuracy = f", test accuracy {100 * opened.result['test_accuracy']:.2f} %" if opened.result else ""
        about = f"{model.config.name} on {opened.data.source or 'arrays'}{accuracy}"
        return Subject(display_path(opened.path), about, model, images, ranges), names


def _first_of_each_class(split: "ImageSplit") -> list[int]:
    """The first image of each class, of at most 30 classes."""
    present = split.labels.unique().tolist()[:_MOST_IMAGES]
    return [int((split.labels == label).nonzero()[0]) for label in present]


def _as_json(scores: "MapScores") -> dict[str, Any]:
    return {name: score._asdict() for name, score in scores._asdict().items()}


def _with_margin(score: "Mean") -> str:
    return f"{score.mean:.3f} ± {score.margin:.3f}"
