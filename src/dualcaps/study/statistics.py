"""Numbers of runs: means and differences with their intervals."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dualcaps.data.sources import data_set
from dualcaps.registry import DATASETS
from dualcaps.study.experiments.card import DataKey, Variant
from dualcaps.study.records import Record, Records

CONFIDENCE = 0.95
ENOUGH_SEEDS = 5
"""Below so many, the variance is pooled over networks that are compared."""


class Interval(NamedTuple):
    """A mean with its confidence interval; without bounds where there is one value only.

    n: how many values, or pairs of values, it is of.
    """

    mean: float
    low: float
    high: float
    n: int

    def less(self, value: float) -> "Interval":
        """The interval moved down."""
        return Interval(self.mean - value, self.low - value, self.high - value, self.n)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and its interval by Student's t; the bounds are infinite for a single value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    return _interval(mean, statistics.stdev(values) / math.sqrt(n), n - 1, n)


def paired_difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Interval:
    """How much higher ours is than the baseline, by the differences of the seeds that both have.

    Args:
        ours: values by seed.
        baseline: values by seed.

    Raises:
        ValueError: no seed in common.
    """
    return mean_interval([ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())])


def difference(ours: Sequence[float], baseline: Sequence[float]) -> Interval:
    """How much higher the mean of ours is than that of the baseline, by Welch's interval.

    Raises:
        ValueError: no values on one side.
    """
    if not ours or not baseline:
        raise ValueError("no values")
    mean, n = statistics.fmean(ours) - statistics.fmean(baseline), min(len(ours), len(baseline))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    parts = [statistics.variance(values) / len(values) for values in (ours, baseline)]
    variance = sum(parts)
    if variance == 0:
        return Interval(mean, mean, mean, n)
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (ours, baseline), strict=True))
    return _interval(mean, math.sqrt(variance), freedom, n)


def pooled_variance(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Variance of values about the means of their groups, and its degrees of freedom; (0, 0) if none has several."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    total = sum(statistics.variance(group) * (len(group) - 1) for group in several)
    return (total / freedom, freedom) if freedom else (0.0, 0)


def _interval(mean: float, standard_error: float, freedom: float, n: int) -> Interval:
    from scipy.stats import t  # takes a moment to import

    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * standard_error
    return Interval(mean, mean - half, mean + half, n)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1); None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Cell:
    """Runs of one network on one data set with one protocol, alike in all but the seed.

    Attributes:
        records: one for each seed, at least one.
    """

    records: tuple[Record, ...]

    @property
    def epochs(self) -> int:
        """How many each run trained."""
        return self.records[0].epochs

    def values(self, of: Callable[[Record], float]) -> dict[int, float]:
        """A number of each run, by seed."""
        return {record.seed: of(record) for record in self.records}


def gain(ours: Cell, baseline: Cell, of: Callable[[Record], float]) -> Interval:
    """How much higher a number of ours is than that of the baseline.

    By the differences seed by seed where the seeds share their splits, otherwise by Welch, as seeds have nothing in
    common then but their number.
    """
    first, second = ours.values(of), baseline.values(of)
    if shares_splits(ours) and first.keys() & second.keys():
        return paired_difference(first, second)
    return difference(list(first.values()), list(second.values()))


def shares_splits(cell: Cell) -> bool:
    """Whether runs of one seed share a split that those of another seed do not have.

    So it is with protocol `clean`, which holds out images by the seed, and for data sets without test images of their
    own; images of one's own are taken to be such.
    """
    record = cell.records[0]
    if record.protocol == "clean" or record.data.place or record.data.source not in DATASETS:
        return True
    card = data_set(record.data.source)
    return card is None or card.splits[0] == "random"


Cells = Mapping[tuple[DataKey, Variant, str], Cell]
"""Runs by data, network and protocol."""


def cells(records: Records) -> dict[tuple[DataKey, Variant, str], Cell]:
    """The runs by data, network and protocol.

    Where there are runs under several conditions of one data set and protocol, `RULE` says which
    of them count.
    """
    chosen: dict[tuple[DataKey, Variant, str], Cell] = {}
    ordered = sorted(records.runs, key=lambda r: (r.data, r.protocol))
    for (data, protocol), group in itertools.groupby(ordered, key=lambda r: (r.data, r.protocol)):
        conditions: dict[str, list[Record]] = {}
        for record in group:
            conditions.setdefault(record.condition, []).append(record)
        alike = max(conditions.values(), key=_weight)
        networks: dict[Variant, dict[int, Record]] = {}
        for record in alike:
            networks.setdefault(record.network, {})[record.seed] = record
        for network, by_seed in networks.items():
            chosen[data, network, protocol] = Cell(tuple(by_seed[seed] for seed in sorted(by_seed)))
    return chosen


def _weight(alike: Sequence[Record]) -> tuple[bool, int, int, str]:
    several_seeds = any(count > 1 for count in Counter(record.network for record in alike).values())
    return several_seeds, alike[0].epochs, len(alike), alike[0].condition


def accuracy(record: Record) -> float:
    """Test accuracy, in %."""
    return 100 * record.test_accuracy


def first_five(record: Record) -> float:
    """Mean accuracy of the first five epochs on the part the epoch is selected on, in %."""
    return 100 * statistics.fmean(epoch.accuracy for epoch in record.history[:5])


def epochs_to(record: Record, threshold: float) -> int | None:
    """The first epoch whose accuracy, in %, is at least the threshold; None if there is none."""
    return next((epoch.epoch for epoch in record.history if 100 * epoch.accuracy >= threshold - 1e-9), None)
