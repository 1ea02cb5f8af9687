"""`dualcaps explain`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dualcaps.cli.display import describe_run, print_json, print_notes, progress_bar, stdout, table
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder
from dualcaps.cli.predict import image_files
from dualcaps.errors import ConfigError, DataError, DualcapsError, display_path

if TYPE_CHECKING:
    from dualcaps.data.dataset import ImageSplit
    from dualcaps.explain.page import Subject
    from dualcaps.explain.scores import MapScores, Mean
    from dualcaps.models import Network
    from dualcaps.runs.run import Run

_MOST_IMAGES = 30
_SCORED, _PROBED, _DRAWN = 200, 5_000, 2_000  # test images at most
_FEW_VIEWPOINTS = 20  # images of a class
_RANGE_IMAGES = 2_000  # test images that the range of the poses is taken from
_METRICS = {
    "deletion": "lower is better",
    "insertion": "higher is better",
    "road": "lower is better",
    "randomised_weights": "near 0 is better",
}


@dataclass(frozen=True)
class Explain:
    """Show what speaks for each class in an image, or measure how well maps show it and what poses hold."""

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
    probe: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Measure how well azimuth, elevation and lighting are predicted linearly from poses, features and pixels, instead
    of writing a page; for smallnorb and coil-20."""
    poses: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Draw the poses of the test images in two dimensions, instead of writing a page; by default as poses.png in the
    run folder."""
    count: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: 200 to score, 5,000 to probe, 2,000 to draw)")
    ] = None
    """How many images to use at most, drawn from the test images."""
    seed: int = 0
    """Seed of the draw."""
    data_dir: DataDir = None
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print scores or probes as JSON."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Write the page or the picture of the poses, or print scores or probes."""
        asked = [f"--{name}" for name in ("score", "probe", "poses") if getattr(self, name)]
        if len(asked) > 1:
            raise ConfigError(f"{' and '.join(asked)}: choose one of them")
        if not asked:
            if self.count is not None or self.json:
                raise ConfigError(
                    "--count and --json belong to --score, --probe and --poses: leave them out for a page"
                )
            self._write_page()
            return
        if self.count is not None and self.count < 1:
            raise ConfigError(f"--count must be at least 1, got {self.count}")
        if len(self.images) > 1:
            raise DataError(f"{asked[0]} takes one data set or folder of classes, got {len(self.images)}")
        if self.compare or (self.out is not None and not self.poses):
            raise ConfigError(
                f"{asked[0]} writes no page: leave {'--compare' if self.poses else '--out and --compare'} out"
            )

        from dualcaps.inference import evaluation_split, load_model, run_data
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        model = load_model(opened, self.device)
        if (self.probe or self.poses) and not self.images:
            data = run_data(opened, data_dir=self.data_dir)
            split, notes = data.test, data.notes
            if _few_viewpoints(split):
                split = data.train + data.validation + data.test
                notes = (*notes, "the test images are few: all images of the data set are used")
        else:
            split, _, notes = evaluation_split(opened, model, *self.images[:1], data_dir=self.data_dir)
        print_notes(notes)
        if self.score:
            self._print_scores(model, split)
        elif self.probe:
            self._print_probes(model, split)
        else:
            self._draw_poses(model, split)

    def _print_scores(self, model: "Network", split: "ImageSplit") -> None:
        import torch

        from dualcaps.explain.maps import MAPS, usable_maps
        from dualcaps.explain.scores import score_maps

        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        images = split.images[order[: self.count or _SCORED]]
        kinds = usable_maps(model)
        if missing := [kind for kind in MAPS if kind not in kinds]:
            print_notes([f"{model.config.name} lacks the parts for the maps {', '.join(missing)}"])
        with progress_bar() as progress:
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

    def _print_probes(self, model: "Network", split: "ImageSplit") -> None:
        from dualcaps.explain.probes import ATTRIBUTES, probe_all

        found = probe_all(model, split, most=self.count or _PROBED)
        if self.json:
            print_json({name: probe._asdict() for name, probe in found.items()})
            return
        measured = list(next(iter(found.values())).values)
        columns = table("from", "numbers", *measured, right=("numbers", *measured))
        columns.add_row("", "", *(ATTRIBUTES[name] for name in measured))
        for name, probe in found.items():
            values = (f"{value:.3f}" if name == "lighting" else f"{value:.1f}°" for name, value in probe.values.items())
            columns.add_row(name, f"{probe.dimensions:,}", *values)
        stdout().print(columns)
        images = next(iter(found.values())).images
        print(f"ridge regressions of {images:,} images, one for each class, cross-validated; none: from nothing")

    def _draw_poses(self, model: "Network", split: "ImageSplit") -> None:
        from dualcaps.explain.pose_space import pose_space, pose_space_figure
        from dualcaps.plots import png
        from dualcaps.runs.files import write_bytes

        space = pose_space(model, split, most=self.count or _DRAWN)
        out = self.out or self.trained / "poses.png"
        write_bytes(out, png(pose_space_figure(space, model.classes)))
        print(display_path(out))

    def _write_page(self) -> None:
        import torch

        from dualcaps.data.images import read_images
        from dualcaps.explain.page import explanation_page
        from dualcaps.runs.files import write_text
        from dualcaps.runs.run import Run

        runs = [Run.open(path) for path in (self.trained, *self.compare)]
        files = [file for path in self.images for file in image_files(Path(path))]
        if len(files) > _MOST_IMAGES:
            raise DataError(f"{len(files):,} images are too many for a page: name at most {_MOST_IMAGES}")
        subjects, names = [], [display_path(file) for file in files]
        for opened in runs:
            subject, shown = load_subject(opened, device=self.device, data_dir=self.data_dir, images_needed=not files)
            if files:
                shape, value_range = subject.model.config.image_shape, subject.model.value_range
                subject = subject._replace(images=torch.from_numpy(read_images(files, shape, value_range=value_range)))
            subjects.append(subject)
            names = names or shown
        out = self.out or self.trained / "explanation.html"
        write_text(out, explanation_page(subjects, names))
        print(display_path(out))


def _few_viewpoints(split: "ImageSplit") -> bool:
    """Whether some viewpoints are known, but of few images of a class."""
    import torch

    azimuths = split.attributes.get("azimuth")
    if azimuths is None:
        return False
    known = torch.bincount(split.labels[torch.from_numpy(azimuths >= 0)])
    return int(known.max()) > 0 and int(known[known > 0].min()) < _FEW_VIEWPOINTS


def load_subject(
    opened: "Run", *, device: str, data_dir: Path | None, images_needed: bool
) -> tuple["Subject", list[str]]:
    """A run's network with the first test image of each class, and names of these images.

    Args:
        opened: the run.
        device, data_dir: see `dualcaps.inference.evaluate_run`.
        images_needed: if not, a run whose images cannot be found or read has none, and a note is printed.
    """
    import torch

    from dualcaps.data.dataset import ImageSplit
    from dualcaps.explain.page import Subject
    from dualcaps.explain.sweep import seen_ranges
    from dualcaps.inference import evaluation_split, load_model

    model = load_model(opened, device)
    about = describe_run(opened)
    try:
        split, _, _ = evaluation_split(opened, model, data_dir=data_dir)
    except DualcapsError as error:
        if images_needed:
            raise
        print_notes([f"sliders reach 0.25 to both sides of a pose, as its range cannot be computed: {error}"])
        none = torch.zeros(0, *model.config.image_shape, dtype=torch.uint8)
        return Subject(display_path(opened.path), about, model, none), []
    ranges = None
    if model.decoder is not None:
        step = math.ceil(len(split) / _RANGE_IMAGES)
        ranges = seen_ranges(model, ImageSplit(split.images[::step], split.labels[::step]))
    chosen = _first_of_each_class(split)
    names = [f"test image {number + 1}: {model.classes[int(split.labels[number])]}" for number in chosen]
    return Subject(display_path(opened.path), about, model, split.images[chosen], ranges), names


def _first_of_each_class(split: "ImageSplit") -> list[int]:
    """The first image of each class, of at most 30 classes."""
    present = split.labels.unique().tolist()[:_MOST_IMAGES]
    return [int((split.labels == label).nonzero()[0]) for label in present]


def _as_json(scores: "MapScores") -> dict[str, Any]:
    return {name: score._asdict() for name, score in scores._asdict().items()}


def _with_margin(score: "Mean") -> str:
    return f"{score.mean:.3f} ± {score.margin:.3f}"
