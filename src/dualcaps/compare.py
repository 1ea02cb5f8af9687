"""Our runs beside the paper's numbers: means, differences with their intervals, verdicts."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dualcaps import paper
from dualcaps.paper import Printed
from dualcaps.records import Record, Records

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]

CONFIDENCE = 0.95
MARGIN = 0.5
"""Percentage points within which an accuracy counts as the printed one, which is of a single run."""

RULE = f"""\
Ours is the mean over the seeds, its difference to the printed number has a {CONFIDENCE:.0%} interval (Student's t; for
gains of one network over another, of the differences seed by seed). Protocol `paper` is compared, which selects the
epoch on the test set as the paper did; where it was not run, protocol `clean`.

- An accuracy is **reproduced** if the interval lies above the printed value less {MARGIN} points: it is reached. It is
  **not reproduced** if the interval lies below that.
- A gain is **reproduced** if the interval lies above zero and reaches the printed gain, **not reproduced** if it ends
  below the printed gain.
- A number of epochs to 100 % is **reproduced** if the mean of the first epochs with every test image right is within
  two of it, and **not reproduced** if there is no such epoch in some run of at least as many epochs.
- Everything else is **inconclusive**: fewer than two seeds, an interval that allows both answers, images that are not
  the official ones pixel for pixel, and a failure to reach an accuracy, or any gain, where fewer epochs were
  trained than the paper's {paper.EPOCHS}.
- **Not run** is what no finished run tells about."""


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
    half = _quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


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
    half = _quantile(freedom) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, n)


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit  # takes a moment to import

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


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

    @property
    def copy(self) -> bool | None:
        """Whether the files are the official ones; None where there are none."""
        return self.records[0].official

    def values(self, of: Callable[[Record], float]) -> dict[int, float]:
        """A number of each run, by seed."""
        return {record.seed: of(record) for record in self.records}


def cells(records: Records) -> dict[tuple[str, str, str], Cell]:
    """The runs by data, network and protocol.

    Where there are runs under several conditions (epochs, batch, …) of one data set and protocol,
    those count that have the most runs, of equally many the ones with the most epochs: all networks
    of a data set are compared under one condition.
    """
    chosen: dict[tuple[str, str, str], Cell] = {}
    ordered = sorted(records.runs, key=lambda r: (r.data, r.protocol))
    for (data, protocol), group in itertools.groupby(ordered, key=lambda r: (r.data, r.protocol)):
        conditions: dict[str, list[Record]] = {}
        for record in group:
            conditions.setdefault(record.condition, []).append(record)
        alike = max(conditions.values(), key=lambda members: (len(members), members[0].epochs, members[0].condition))
        networks: dict[str, dict[int, Record]] = {}
        for record in alike:
            networks.setdefault(record.network, {})[record.seed] = record
        for network, by_seed in networks.items():
            chosen[data, network, protocol] = Cell(tuple(by_seed[seed] for seed in sorted(by_seed)))
    return chosen


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


def judge(printed: Printed, records: Records) -> Finding:
    """Hold one printed number against the runs."""
    table = cells(records)
    nothing = Finding(printed, None, None, None, "", 0, "not run", "")
    for protocol in ("paper", "clean"):
        cell = table.get((printed.data, printed.network, protocol))
        baseline = table.get((printed.data, printed.baseline, protocol))
        if cell and (baseline or not printed.baseline):
            break
    else:
        return nothing
    exact = cell.copy is not False or ((copy := records.copies.get(printed.data)) is not None and copy.same_pixels)
    if printed.quantity == "epochs to 100 %":
        return _judge_epochs(printed, cell, protocol, exact)
    if printed.quantity == "first-five gain" and cell.epochs < 5:
        return nothing
    of = first_five if printed.quantity == "first-five gain" else accuracy
    enough = cell.epochs >= (5 if printed.quantity == "first-five gain" else paper.EPOCHS)
    values = cell.values(of)
    if baseline:
        ours = difference(values, baseline.values(of))
        pairs = [values[seed] - other for seed, other in baseline.values(of).items() if seed in values]
        std = spread(pairs) if len(pairs) > 1 else None
        verdict, reason = _verdict_on_gain(ours, printed.value)
    else:
        ours, std = mean_interval(list(values.values())), spread(list(values.values()))
        verdict, reason = _verdict_on_accuracy(ours, printed.value)
    if ours.n < 2:
        verdict, reason = "inconclusive", "one seed"
    elif not exact:
        verdict, reason = "inconclusive", "not the official images"
    elif not enough and (baseline or verdict == "not reproduced"):
        verdict, reason = "inconclusive", f"{cell.epochs} of {paper.EPOCHS} epochs"
    less = ours.less(printed.value)
    return Finding(printed, ours, std, less, protocol, cell.epochs, verdict, reason)


def _verdict_on_accuracy(ours: Interval, printed: float) -> tuple[Verdict, str]:
    if ours.low > printed + MARGIN:
        return "reproduced", "higher"
    if ours.low > printed - MARGIN:
        return "reproduced", "reached"
    if ours.high < printed - MARGIN:
        return "not reproduced", "lower"
    return "inconclusive", "wide interval"


def _verdict_on_gain(ours: Interval, printed: float) -> tuple[Verdict, str]:
    if ours.high < printed:
        if ours.low > 0:
            return "not reproduced", "a smaller gain"
        return "not reproduced", "a loss" if ours.high < 0 else "no gain to be seen"
    if ours.low > 0:
        return "reproduced", "larger" if ours.low > printed else "as printed"
    return "inconclusive", "wide interval"


def _judge_epochs(printed: Printed, cell: Cell, protocol: str, exact: bool) -> Finding:
    reached = {record.seed: epochs_to(record, 100.0) for record in cell.records}
    epochs = [float(epoch) for epoch in reached.values() if epoch is not None]
    ours = mean_interval(epochs) if len(epochs) == len(reached) else None
    verdict: Verdict = "inconclusive"
    if ours is None:
        best = max(100 * epoch.accuracy for record in cell.records for epoch in record.history)
        reason = f"best {best:.2f} % in {cell.epochs} epochs"
        if exact and cell.epochs >= printed.value:
            verdict = "not reproduced"
    else:
        reason = "100 % reached"
        if exact and ours.n >= 2:
            verdict = "reproduced" if abs(ours.mean - printed.value) <= 2 else "not reproduced"
    less = None if ours is None else ours.less(printed.value)
    return Finding(printed, ours, spread(epochs), less, protocol, cell.epochs, verdict, reason)
