"""Our runs beside the paper's numbers: means, differences with their intervals, verdicts."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dualcaps.study import paper
from dualcaps.study.experiments.card import DataKey, Variant
from dualcaps.study.paper import Printed
from dualcaps.study.records import Copy, Record, Records

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]

CONFIDENCE = 0.95
MARGIN = 0.5
"""Percentage points by which an accuracy or a gain may miss the printed one, which is of a single run."""
_EPOCHS_APART = 2
_ROUNDING = 1e-9

RULE = f"""\
Ours is the mean over the seeds, its difference to the printed number has a {CONFIDENCE:.0%} interval (Student's t; for
gains of one network over another, of the differences seed by seed). Protocol `paper` is compared, which selects the
epoch on the test set as the paper did; where it was not run, protocol `clean`.

- An accuracy is **reproduced** if the interval begins no lower than the printed value less a margin: it is reached. It
  is **not reproduced** if the interval ends below that. The margin is {MARGIN} points, or half of what the printed
  value lacks to 100 % where that is less, so that 100 % means every image.
- A gain is **reproduced** if the interval lies above zero and reaches the printed gain less a margin, **not
  reproduced** if it ends below that. The margin is {MARGIN} points, or half of the printed gain where that is less.
- A number of epochs to 100 % is **reproduced** if each run's first epoch with every test image right is within
  {_EPOCHS_APART} of it, and **not reproduced** if the interval of their mean lies beyond that, or if some run of as
  many epochs and {_EPOCHS_APART} more has none. For this and the gain of the first five epochs only protocol `paper`
  tells.
- Everything else is **inconclusive**: where there are fewer than two seeds; where the interval allows both answers;
  where the images are not the official ones pixel for pixel, or the recipe is not the paper's; and, where fewer
  epochs were trained than the paper's {paper.EPOCHS}, accuracies that are not reached and all gains but that of the
  first five epochs.
- **Not run** is what no finished run tells about.

Where one data set was trained under several conditions (epochs, rate, …), those with two seeds or more come first, then
those with more epochs, then those with more runs; all networks of a table row are compared under one condition. Where
each seed has a split of its own (`digits`, `coil-20`, own images without a test folder), the test images of the seeds
overlap: an interval is of these images, and too narrow for new ones."""


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


def difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Interval:
    """How much higher ours is than the baseline: by seed where both have two in common, else by Welch.

    Args:
        ours: values by seed.
        baseline: values by seed.

    Raises:
        ValueError: no values on one side.
    """
    common = sorted(ours.keys() & baseline.keys())
    if len(common) >= 2 or (common and min(len(ours), len(baseline)) < 2):
        return mean_interval([ours[seed] - baseline[seed] for seed in common])
    if not ours or not baseline:
        raise ValueError("no values")
    first, second = list(ours.values()), list(baseline.values())
    mean, n = statistics.fmean(first) - statistics.fmean(second), min(len(first), len(second))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    variance = sum(parts)
    if variance == 0:
        return Interval(mean, mean, mean, n)
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    return _interval(mean, math.sqrt(variance), freedom, n)


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


@dataclass(frozen=True)
class Finding:
    """A printed number, ours beside it, and what follows.

    Attributes:
        printed: what the paper prints.
        ours: our number with its interval; None where there is none.
        std: over the seeds; None for fewer than two.
        difference: ours less the printed number; None where there is none.
        protocol: "paper" or "clean", whichever is compared; "" where nothing was run.
        epochs: how many ours was trained.
        verdict: by `RULE`.
        reason: what decided, in a few words.
    """

    printed: Printed
    ours: Interval | None
    std: float | None
    difference: Interval | None
    protocol: str
    epochs: int
    verdict: Verdict
    reason: str


def judge(printed: Printed, table: Cells, copies: Mapping[str, Copy]) -> Finding:
    """Hold one printed number against the runs.

    Args:
        printed: the number.
        table: the runs.
        copies: what the data sets' files are where they are not the official ones.
    """
    nothing = Finding(printed, None, None, None, "", 0, "not run", "")
    of_the_test_set = printed.quantity in ("epochs to 100 %", "first-five gain")  # each epoch
    for protocol in ("paper",) if of_the_test_set else ("paper", "clean"):
        cell = table.get((printed.data, printed.network, protocol))
        baseline = table.get((printed.data, printed.baseline, protocol)) if printed.baseline else None
        if cell and (baseline or not printed.baseline):
            break
    else:
        return nothing
    trusted = [*cell.records, *(baseline.records if baseline else ())]
    copy = copies.get(printed.data.source)
    same_pixels = copy is not None and copy.same_pixels
    doubt = ""
    if not all(record.official or (record.official is False and same_pixels) for record in trusted):
        doubt = "not the official images"
    elif not all(map(_as_the_paper_trained, trusted)):
        doubt = "another recipe"
    if printed.quantity == "epochs to 100 %":
        return _judge_epochs(printed, cell, doubt)
    if printed.quantity == "first-five gain" and cell.epochs < 5:
        return nothing
    of = first_five if printed.quantity == "first-five gain" else accuracy
    enough = cell.epochs >= (5 if printed.quantity == "first-five gain" else paper.EPOCHS)
    values = cell.values(of)
    if baseline:
        ours = difference(values, baseline.values(of))
        std = spread([values[seed] - other for seed, other in baseline.values(of).items() if seed in values])
        verdict, reason = _verdict_on_gain(ours, printed.value)
    else:
        ours, std = mean_interval(list(values.values())), spread(list(values.values()))
        verdict, reason = _verdict_on_accuracy(ours, printed.value)
    if ours.n < 2:
        verdict, reason = "inconclusive", "one seed"
    elif doubt:
        verdict, reason = "inconclusive", doubt
    elif not enough and (baseline or verdict == "not reproduced"):
        verdict, reason = "inconclusive", f"{cell.epochs} of {paper.EPOCHS} epochs"
    less = ours.less(printed.value)
    return Finding(printed, ours, std, less, protocol, cell.epochs, verdict, reason)


def _as_the_paper_trained(record: Record) -> bool:
    asked = {**record.asked["training"], **record.asked["data"]}
    return all(asked.get(name, value) == value for name, value in paper.recipe(record.data).items())


def _verdict_on_accuracy(ours: Interval, printed: float) -> tuple[Verdict, str]:
    margin = min(MARGIN, (100 - printed) / 2)
    if ours.low > printed + margin + _ROUNDING:
        return "reproduced", "higher"
    if ours.low >= printed - margin - _ROUNDING:
        return "reproduced", "reached"
    if ours.high < printed - margin - _ROUNDING:
        return "not reproduced", "lower"
    return "inconclusive", "wide interval"


def _verdict_on_gain(ours: Interval, printed: float) -> tuple[Verdict, str]:
    margin = min(MARGIN, printed / 2)
    if ours.high < printed - margin - _ROUNDING:
        if ours.low > 0:
            return "not reproduced", "a smaller gain"
        return "not reproduced", "a loss" if ours.high < 0 else "no gain to be seen"
    if ours.low > 0:
        return "reproduced", "larger" if ours.low > printed + margin + _ROUNDING else "as printed"
    return "inconclusive", "wide interval"


def _judge_epochs(printed: Printed, cell: Cell, doubt: str) -> Finding:
    epochs = [float(epoch) for record in cell.records if (epoch := epochs_to(record, 100.0)) is not None]
    reached = f"{len(epochs)} of {len(cell.records)} runs reach it"
    ours, less = None, None
    verdict: Verdict = "inconclusive"
    if len(epochs) == len(cell.records):
        ours = mean_interval(epochs)
        less = ours.less(printed.value)
        if ours.n > 1 and all(abs(epoch - printed.value) <= _EPOCHS_APART for epoch in epochs):
            verdict = "reproduced"
        elif ours.n > 1 and (less.low > _EPOCHS_APART or less.high < -_EPOCHS_APART):
            verdict = "not reproduced"
    else:
        reached += f", best {max(100 * epoch.accuracy for record in cell.records for epoch in record.history):.2f} %"
        if len(cell.records) > 1 and cell.epochs >= printed.value + _EPOCHS_APART:
            verdict = "not reproduced"
    if doubt:
        verdict, reached = "inconclusive", f"{doubt}, {reached}"
    return Finding(printed, ours, spread(epochs) if ours else None, less, "paper", cell.epochs, verdict, reached)
