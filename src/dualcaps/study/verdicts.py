"""Verdicts on the paper's numbers, by a rule that is stated on the page."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from dualcaps.study import paper
from dualcaps.study.paper import Printed
from dualcaps.study.records import Copy, CopyKey, Record, copy_of
from dualcaps.study.statistics import (
    CONFIDENCE,
    ENOUGH_SEEDS,
    Cell,
    Cells,
    Interval,
    accuracy,
    epochs_to,
    first_five,
    gain,
    mean_interval,
    pooled_variance,
    shares_splits,
    spread,
)

Verdict = Literal["equal", "exceeds", "below", "direction only", "inconclusive", "not run"]
VERDICTS: tuple[Verdict, ...] = ("equal", "exceeds", "below", "direction only", "inconclusive", "not run")

LEVEL = 0.05
MARGIN = 0.5
"""Percentage points within which an accuracy or a gain counts as equal to the printed one."""
_EPOCHS_APART = 2
_ROUNDING = 1e-9

RULE = f"""\
Ours is the mean over the seeds. The printed number is of a single run, whose chance is counted as well: what is tested
is whether a further run of ours could be that run, by a prediction interval of {CONFIDENCE:.0%} (Student's t). Where a
network has fewer than {ENOUGH_SEEDS} seeds, the variance is pooled over the networks of its data set. Gains are
differences seed by seed where the seeds share their splits (protocol `clean`, and data sets without test images of
their own), otherwise differences of means. Protocol `paper` is compared, which selects the epoch on the test set as the
paper did; where it was not run, protocol `clean`.

- **Equal**: two one-sided tests place ours within a margin of the printed number. The margin is {MARGIN} points, or
  half of what a printed accuracy lacks to 100 %, or half of a printed gain, where that is less. 100 % means every
  image.
- **Exceeds**, **below**: ours is higher, or lower, than the printed number.
- **Direction only**: there is a gain, but how it compares with the printed one is open.
- **Inconclusive**: everything else; where there are fewer than two seeds; where the images are not the official ones
  pixel for pixel, or the recipe is not the paper's; and, where fewer epochs were trained than the paper's
  {paper.EPOCHS}, accuracies that do not exceed the printed ones and all gains but that of the first five epochs.
- **Not run** is what no finished run tells about.

Each is tested at {LEVEL:.0%}, by Holm's method over all comparisons of a table; p-values are given as they are and
adjusted. Where every image is right there is no variance, and the exact binomial limit of one run's test images
takes its place. A number of epochs to 100 % is equal if each run's first epoch with every test image right is within
{_EPOCHS_APART} of it; for this and the gain of the first five epochs only protocol `paper` tells.

Where one data set was trained under several conditions (epochs, rate, …), those with two seeds or more come first, then
those with more epochs, then those with more runs; all networks of a table row are compared under one condition. Where
each seed has a split of its own (`digits`, `coil-20`, own images without a test folder), the test images of the seeds
overlap: an interval is of these images, and too narrow for new ones."""


class PValues(NamedTuple):
    """P-values of one comparison with a printed number.

    equal: that ours lies outside the margin.
    different: that ours and the printed number are alike.
    direction: of a gain, that there is none; 1 for accuracies.
    """

    equal: float
    different: float
    direction: float


@dataclass(frozen=True)
class Finding:
    """A printed number, ours beside it, and what follows.

    Attributes:
        printed: what the paper prints.
        ours: our number with its interval; None where there is none.
        std: over the seeds; None for fewer than two.
        difference: ours less the printed number, with a prediction interval that counts the printed run's chance; None
            where there is none.
        protocol: "paper" or "clean", whichever is compared; "" where nothing was run.
        epochs: how many ours was trained.
        verdict: by `RULE`.
        reason: what decided, in a few words.
        raw: p-values; None where nothing was tested.
        adjusted: the same by Holm's method over the table's comparisons.
    """

    printed: Printed
    ours: Interval | None
    std: float | None
    difference: Interval | None
    protocol: str
    epochs: int
    verdict: Verdict
    reason: str
    raw: PValues | None = None
    adjusted: PValues | None = None


def judge(printed: Sequence[Printed], table: Cells, copies: Mapping[CopyKey, Copy]) -> list[Finding]:
    """Hold printed numbers against the runs.

    Args:
        printed: the numbers.
        table: the runs.
        copies: what the data sets' files are where they are not the official ones.
    """
    findings = [_compare(one, table, copies) for one in printed]
    for where in dict.fromkeys(one.where for one in printed):
        places = [place for place, one in enumerate(findings) if one.printed.where == where and one.raw is not None]
        columns = zip(*(found.raw for place in places if (found := findings[place]).raw), strict=True)
        adjusted = [PValues(*values) for values in zip(*(holm(list(column)) for column in columns), strict=True)]
        for place, tests in zip(places, adjusted, strict=True):
            findings[place] = _decided(replace(findings[place], adjusted=tests))
    return findings


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method, in their order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _compare(printed: Printed, table: Cells, copies: Mapping[CopyKey, Copy]) -> Finding:
    """Ours beside a printed number, with the tests where it can be judged."""
    nothing = Finding(printed, None, None, None, "", 0, "not run", "")
    of_the_test_set = printed.quantity in ("epochs to 100 %", "first-five gain")  # each epoch
    for protocol in ("paper",) if of_the_test_set else ("paper", "clean"):
        cell = table.get((printed.data, printed.network, protocol))
        baseline = table.get((printed.data, printed.baseline, protocol)) if printed.baseline else None
        if cell and (baseline or not printed.baseline):
            break
    else:
        return nothing
    doubt = _doubt([*cell.records, *(baseline.records if baseline else ())], copies)
    if printed.quantity == "epochs to 100 %":
        return _judge_epochs(printed, cell, doubt)
    if printed.quantity == "first-five gain" and cell.epochs < 5:
        return nothing
    of = first_five if printed.quantity == "first-five gain" else accuracy
    alike = [other for key, other in table.items() if (key[0], key[2]) == (printed.data, protocol)]
    if baseline:
        estimate = _gain_estimate(cell, baseline, of, alike)
        ours = gain(cell, baseline, of)
        std = spread(
            [value - baseline.values(of)[s] for s, value in cell.values(of).items() if s in baseline.values(of)]
        )
    else:
        estimate = _accuracy_estimate(cell, of, alike)
        ours, std = mean_interval(list(cell.values(of).values())), spread(list(cell.values(of).values()))
    less = estimate.predicted(printed.value)
    found = Finding(printed, ours, std, less, protocol, cell.epochs, "inconclusive", "")
    if ours.n < 2:
        return replace(found, reason="one seed")
    if doubt:
        return replace(found, reason=doubt)
    if baseline and estimate.bounds:
        return replace(found, reason="every image right in all runs, too few images")
    few = cell.epochs < (5 if printed.quantity == "first-five gain" else paper.EPOCHS)
    tests = estimate.tests(printed)
    if few and (baseline or less.mean <= 0):
        return replace(found, reason=f"{cell.epochs} of {paper.EPOCHS} epochs")
    return replace(found, raw=tests)


def _doubt(records: Sequence[Record], copies: Mapping[CopyKey, Copy]) -> str:
    """Why the runs cannot be held against the paper, if so."""
    for record in records:
        copy = copy_of(record, copies)
        if not (record.official or (record.official is False and copy is not None and copy.same_pixels)):
            return "not the official images"
    return "" if all(map(_as_the_paper_trained, records)) else "another recipe"


def _as_the_paper_trained(record: Record) -> bool:
    asked = {**record.asked["training"], **record.asked["data"]}
    return all(asked.get(name, value) == value for name, value in paper.recipe(record.data).items())


@dataclass(frozen=True)
class _Estimate:
    """What our runs tell of a number, and how a single further run would scatter.

    mean: of ours.
    error: the standard error of the mean.
    further: the standard deviation of a single run's number, or of the difference of two single runs.
    freedom: degrees of freedom of both.
    bounds: exact limits of ours, where every image is right and there is no variance.
    n: seeds.
    images: test images of a run.
    """

    mean: float
    error: float
    further: float
    freedom: float
    n: int
    images: int
    bounds: tuple[float, float] | None = None

    def predicted(self, printed: float) -> Interval:
        """Ours less the printed number, with the prediction interval."""
        from scipy.stats import t  # takes a moment to import

        mean = self.mean - printed
        if self.n < 2:
            return Interval(mean, -math.inf, math.inf, self.n)
        if self.bounds:
            return Interval(mean, self.bounds[0] - printed, self.bounds[1] - printed, self.n)
        half = float(t.ppf(0.5 + CONFIDENCE / 2, self.freedom)) * self._scatter
        return Interval(mean, mean - half, mean + half, self.n)

    def tests(self, printed: Printed) -> PValues:
        """The p-values of the comparison with a printed number."""
        from scipy.stats import t

        margin = _margin(printed)
        if self.bounds:
            return self._exact_tests(printed, margin)
        less = self.mean - printed.value
        outside = max(float(t.sf((margin + sign * less) / self._scatter, self.freedom)) for sign in (1, -1))
        different = 2 * float(t.sf(abs(less) / self._scatter, self.freedom))
        direction = float(t.sf(self.mean / self.error, self.freedom)) if printed.baseline else 1.0
        return PValues(outside, different, direction)

    @property
    def _scatter(self) -> float:
        return math.hypot(self.error, self.further)

    def _exact_tests(self, printed: Printed, margin: float) -> PValues:
        """Where each run has every image right: by the chance of that in a run that is right as often as printed."""
        if printed.value == 100:
            return PValues(0.0, 1.0, 1.0)
        chance = (printed.value / 100) ** self.images
        within = 1.0 if self.bounds is None or 100 - printed.value > margin else chance
        return PValues(within, min(1.0, 2 * chance), 1.0)


def _margin(printed: Printed) -> float:
    return min(MARGIN, printed.value / 2 if printed.baseline else (100 - printed.value) / 2)


def _accuracy_estimate(cell: Cell, of: Callable[[Record], float], alike: Sequence[Cell]) -> _Estimate:
    values, images = list(cell.values(of).values()), cell.records[0].test_images
    if all(value == 100 for value in values):
        low = 100 * ((1 - CONFIDENCE) / 2) ** (1 / images)
        return _Estimate(100.0, 0.0, 0.0, 1.0, len(values), images, (low, 100.0))
    variance, freedom = _variance(values, [list(other.values(of).values()) for other in alike], images)
    n = len(values)
    return _Estimate(statistics.fmean(values), math.sqrt(variance / n), math.sqrt(variance), freedom, n, images)


def _gain_estimate(ours: Cell, baseline: Cell, of: Callable[[Record], float], alike: Sequence[Cell]) -> _Estimate:
    first, second, images = ours.values(of), baseline.values(of), ours.records[0].test_images
    n = min(len(first), len(second))
    mean = gain(ours, baseline, of).mean
    if all(value == 100 for value in (*first.values(), *second.values())):
        lacking = 100 * (1 - ((1 - CONFIDENCE) / 2) ** (1 / images))
        return _Estimate(mean, 0.0, 0.0, 1.0, n, images, (-lacking, lacking))
    if shares_splits(ours) and (common := sorted(first.keys() & second.keys())):
        pairs = [
            [value - second[seed] for seed, value in other.values(of).items() if seed in second]
            for other in alike
            if other is not baseline
        ]
        variance, freedom = _variance([first[seed] - second[seed] for seed in common], pairs, images)
        n = len(common)
        return _Estimate(mean, math.sqrt(variance / n), math.sqrt(variance), freedom, n, images)
    cells = [list(other.values(of).values()) for other in alike]
    (one, freedom_one), (two, freedom_two) = (
        _variance(list(values.values()), cells, images) for values in (first, second)
    )
    error = math.sqrt(one / len(first) + two / len(second))
    return _Estimate(mean, error, math.sqrt(one + two), min(freedom_one, freedom_two), n, images)


def _variance(values: Sequence[float], alike: Sequence[Sequence[float]], images: int) -> tuple[float, float]:
    """Variance and degrees of freedom: of the values if they are enough, else pooled over groups that hold them.

    At least that of an accuracy's rounding to whole images.
    """
    variance, freedom = (0.0, 0) if len(values) >= ENOUGH_SEEDS else pooled_variance(alike)
    if not freedom:
        variance, freedom = pooled_variance([values])
    smallest = (100 / images) ** 2 / 12
    return max(smallest, variance), max(1, freedom)


def _decided(finding: Finding) -> Finding:
    """The finding with the verdict of its adjusted p-values."""
    tests, ours, less = finding.adjusted, finding.ours, finding.difference
    assert tests is not None
    assert ours is not None
    assert less is not None
    if tests.equal <= LEVEL:
        few = finding.epochs < paper.EPOCHS and finding.printed.quantity == "accuracy"
        if few:
            return replace(finding, verdict="inconclusive", reason=f"{finding.epochs} of {paper.EPOCHS} epochs")
        return replace(finding, verdict="equal", reason="every image right" if ours.mean == 100 else "")
    if tests.different <= LEVEL and less.mean > 0:
        return replace(finding, verdict="exceeds", reason="")
    if tests.different <= LEVEL and finding.printed.baseline:
        reason = "a smaller gain" if tests.direction <= LEVEL else "a loss" if ours.high < 0 else "no gain to be seen"
        return replace(finding, verdict="below", reason=reason)
    if tests.different <= LEVEL:
        return replace(finding, verdict="below", reason="")
    if finding.printed.baseline and tests.direction <= LEVEL:
        return replace(finding, verdict="direction only", reason="")
    reason = "every image right, too few images" if ours.mean == 100 else "n too small"
    return replace(finding, verdict="inconclusive", reason=reason)


def _judge_epochs(printed: Printed, cell: Cell, doubt: str) -> Finding:
    epochs = [float(epoch) for record in cell.records if (epoch := epochs_to(record, 100.0)) is not None]
    reached = f"{len(epochs)} of {len(cell.records)} runs reach it"
    ours, less = None, None
    verdict: Verdict = "inconclusive"
    if len(epochs) == len(cell.records):
        ours = mean_interval(epochs)
        less = ours.less(printed.value)
        if ours.n > 1 and all(abs(epoch - printed.value) <= _EPOCHS_APART for epoch in epochs):
            verdict = "equal"
        elif ours.n > 1 and less.low > _EPOCHS_APART:
            verdict = "exceeds"
        elif ours.n > 1 and less.high < -_EPOCHS_APART:
            verdict = "below"
    else:
        reached += f", best {max(100 * epoch.accuracy for record in cell.records for epoch in record.history):.2f} %"
        if len(cell.records) > 1 and cell.epochs >= printed.value + _EPOCHS_APART:
            verdict = "exceeds"
    if doubt:
        verdict, reached = "inconclusive", f"{doubt}, {reached}"
    return Finding(printed, ours, spread(epochs) if ours else None, less, "paper", cell.epochs, verdict, reached)
