"""Planning: experiments multiplied by seeds and protocols, the most informative runs first; no pixels are read."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dualcaps.bench import estimate_operations
from dualcaps.config import INCIDENTAL, ModelConfig, Protocol, Split, TrainConfig
from dualcaps.data.load import SourceInfo, complete_config, inspect_source, unknown_source
from dualcaps.errors import ConfigError, DataError, ModelError, unknown_name
from dualcaps.models import build_on_meta, check_memory, describe
from dualcaps.registry import DATASETS, load_entry_points
from dualcaps.study.experiments import Experiment, Matched, Variant, experiments
from dualcaps.study.experiments.card import DataKey, Place, data_key
from dualcaps.study.records import run_name


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        data: the data set's name, or the absolute path of own images.
        split: the data set's split, "" for its own; the run's seed is the split's too.
        network: what is trained.
        training: how, seed and protocol included.
        images: changes when own images are replaced; "" for named data sets.
        operations: its cost in multiplications and additions.
    """

    data: str
    split: Split | Literal[""]
    network: ModelConfig
    training: TrainConfig
    images: str
    operations: float = field(compare=False)

    @property
    def name(self) -> str:
        """A readable name."""
        how = self.training
        return run_name(describe(self.network), self.where, how.protocol, how.epochs, how.seed)

    @property
    def where(self) -> DataKey:
        """The data set and its split."""
        place = "" if self.data in DATASETS else hashlib.sha256(_bytes(self.data + self.images)).hexdigest()[:8]
        return data_key(self.data, self.split, place)

    @property
    def folder(self) -> Path:
        """Its folder, relative to the folder of all runs; unique for each combination of settings and images."""
        how = [self.training.protocol, f"{self.training.epochs}-epochs"]
        for setting in dataclasses.fields(TrainConfig):
            value = getattr(self.training, setting.name)
            if value != setting.default and setting.name not in ("protocol", "epochs", "seed", *INCIDENTAL):
                how += [setting.name, str(value)]
        # Distinguishes folders of the same name in several places, and images that changed.
        place = f"{self.where} {self.where.place}".strip()
        parts = (place, describe(self.network), " ".join(how), f"seed {self.training.seed}")
        return Path(*(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Failure(NamedTuple):
    """A run that failed, and why."""

    run: str
    reason: str


def plan_runs(
    chosen: Sequence[str] = (),
    *,
    seeds: int = 5,
    data_sets: Sequence[str] = (),
    protocols: Sequence[Protocol] = ("clean", "paper"),
    training: TrainConfig | None = None,
    data_dir: str | Path | None = None,
    download: bool = True,
) -> tuple[list[PlannedRun], list[Failure]]:
    """Plan the runs of some experiments, without duplicates, the most informative first.

    All networks are run with one seed before the next seed, the paper's own questions before the controls,
    and small data sets before large ones.

    Args:
        chosen: names of experiments; by default all of them.
        seeds: number of seeds, counted from 0.
        data_sets: names or paths; by default those of each experiment.
        protocols: see `TrainConfig.protocol`.
        training: the other training options; its seed and protocol are ignored.
        data_dir: folder to search first for the data sets.
        download: whether to download files that are not found.

    Returns:
        The runs, and what was left out: data sets that were not found, networks that cannot be built
        for the images.

    Raises:
        ConfigError: an unknown experiment, a data set that no chosen experiment is about, no protocol,
            or a number outside its range.
    """
    load_entry_points()
    cards = experiments()
    for name in chosen:
        if name not in cards:
            raise ConfigError(unknown_name("experiment", name, cards))
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    if not protocols:
        raise ConfigError("protocols: choose clean, paper or both")
    data_sets = [name if name in DATASETS else _own(name) for name in data_sets]
    wanted: dict[Place, dict[Variant | Matched, int]] = {}
    for name in sorted(chosen or cards, key=lambda name: cards[name].control):
        for place in _places(cards[name], data_sets):
            for network in cards[name].networks:
                wanted.setdefault(place, {}).setdefault(network, int(cards[name].control))
    for name in data_sets:
        if name not in [source for source, _ in wanted]:
            others = ", ".join(other for other, card in cards.items() if _places(card, [name]))
            raise ConfigError(f"nothing to run: no chosen experiment is about {name}: choose from {others}")
    training = training or TrainConfig()
    planned: dict[PlannedRun, tuple[Any, ...]] = {}
    missing = []
    for (source, split), networks in wanted.items():
        try:
            data = _inspect(source, split, data_dir, download)
        except DataError as error:
            missing.append(Failure(str(data_key(source, split)), str(error)))
            continue
        images = data.train + data.validation + (data.validation + data.test) / 3
        for number, (network, tier) in enumerate(networks.items()):
            try:
                config = network.configure(data.image_shape, len(data.classes))
                operations = training.epochs * images * _operations_per_image(config)
            except ModelError as error:
                missing.append(Failure(f"{network} on {data_key(source, split)}", str(error)))
                continue
            for seed in range(seeds):
                for protocol in protocols:
                    how = dataclasses.replace(training, seed=seed, protocol=protocol)
                    run = PlannedRun(source, split, config, how, data.key, operations)
                    # Experiments may share a network.
                    place = (seed, tier, images, source, split, protocols.index(protocol), number)
                    planned[run] = min(place, planned.get(run, place))
    return sorted(planned, key=planned.__getitem__), missing


@functools.cache
def _operations_per_image(config: ModelConfig) -> float:
    """The cost of training on one image; raises ModelError if the network cannot be built or trained."""
    model = build_on_meta(config)
    check_memory(model)
    return estimate_operations(model)


def _inspect(source: str, split: str, data_dir: str | Path | None, download: bool) -> SourceInfo:
    # Own images are passed as a Path, so that a folder named like a data set is not mistaken for it.
    named: str | Path = source if source in DATASETS else Path(source)
    return inspect_source(complete_config(named, data_dir=data_dir, split=split or None), download=download)


def _places(experiment: Experiment, data_sets: Sequence[str]) -> Iterable[Place]:
    """Data sets to run an experiment on: those of its own that are selected, then others."""
    own = [place for place in experiment.data if not data_sets or place[0] in data_sets]
    others = [name for name in data_sets if name not in [place[0] for place in experiment.data]]
    return [*own, *((name, "") for name in others if experiment.any_data)]


def _own(source: str) -> str:
    """The absolute path of own images."""
    if not Path(source).exists():
        raise unknown_source(source)
    return str(Path(source).resolve())
