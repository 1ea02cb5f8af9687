"""Intervals against scipy, verdicts against the rule that the report states."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from made_records import record

from dualcaps.study.experiments import DataKey, Variant, variant
from dualcaps.study.paper import Printed
from dualcaps.study.records import Copy, Records
from dualcaps.study.statistics import cells, difference, epochs_to, first_five, judge, mean_interval

CAPSNET, DA_CAPSNET = Variant("capsnet"), Variant("da-capsnet")
FASHION, MNIST = DataKey("fashion-mnist"), DataKey("mnist")
numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


def records(*members, copies=None) -> Records:
    return Records(tuple(members), (), copies or {}, {})


def judged(printed: Printed, found: Records):
    return judge(printed, cells(found), found.copies)


@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_interval_of_a_mean_is_scipys(values):
    ours = mean_interval(values)
    low = high = np.mean(values)
    if len(set(values)) > 1:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, low, scipy.stats.sem(values))
    assert ours == (pytest.approx(np.mean(values)), pytest.approx(low), pytest.approx(high), len(values))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=10, unique_by=lambda pair: pair[0] - pair[1]))
def test_runs_of_the_same_seeds_are_compared_in_pairs(pairs):
    ours, baseline = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    found = difference(ours, baseline)
    expected = scipy.stats.ttest_rel(list(ours.values()), list(baseline.values())).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # A seed that only one of them has does not change what the pairs say.
    assert difference(ours | {99: 1e6}, baseline) == found


@given(
    st.lists(numbers, min_size=2, max_size=8, unique=True),
    st.lists(numbers, min_size=2, max_size=8, unique=True),
)
def test_runs_of_other_seeds_are_compared_by_welch(first, second):
    found = difference(dict(enumerate(first)), {100 + seed: value for seed, value in enumerate(second)})
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    draws, held, held_by_pairs = 2000, 0, 0
    for _ in range(draws):
        luck = random.normal(0, 2, 5)  # what a seed does to both networks
        ours, baseline = 90.5 + luck + random.normal(0, 0.4, 5), 90 + luck + random.normal(0, 0.4, 5)
        interval = mean_interval(list(ours))
        held += interval.low <= 90.5 <= interval.high
        by_seed = difference(dict(enumerate(ours)), dict(enumerate(baseline)))
        held_by_pairs += by_seed.low <= 0.5 <= by_seed.high
    assert 0.94 <= held / draws <= 0.96
    assert 0.94 <= held_by_pairs / draws <= 0.96


def test_one_value_has_no_interval_and_none_is_an_error():
    assert mean_interval([91.0]) == (91.0, -math.inf, math.inf, 1)
    assert difference({0: 92.0}, {0: 91.0, 1: 80.0}) == (1.0, -math.inf, math.inf, 1)
    for nothing in (lambda: mean_interval([]), lambda: difference({}, {0: 1.0})):
        with pytest.raises(ValueError, match="no values"):
            nothing()


ACCURACY = Printed("Table 2", FASHION, CAPSNET, "accuracy", 92.0)


@pytest.mark.parametrize(
    ("accuracies", "epochs", "official", "verdict", "reason"),
    [
        ((92.0, 92.1, 91.9), 100, True, "reproduced", "reached"),
        ((95.0, 95.1, 94.9), 100, True, "reproduced", "higher"),
        ((95.0, 95.1, 94.9), 3, True, "reproduced", "higher"),
        ((90.0, 90.1, 89.9), 100, True, "not reproduced", "lower"),
        ((90.0, 90.1, 89.9), 15, True, "inconclusive", "15 of 100 epochs"),
        ((90.0, 94.0), 100, True, "inconclusive", "wide interval"),
        ((92.0,), 100, True, "inconclusive", "one seed"),
        ((92.0, 92.1, 91.9), 100, False, "inconclusive", "not the official images"),
        ((92.0, 92.1, 91.9), 100, None, "inconclusive", "not the official images"),  # someone's own folder
    ],
)
def test_an_accuracy_is_judged_by_the_rule(accuracies, epochs, official, verdict, reason):
    runs = [record(seed=s, accuracies=[a], epochs=epochs, official=official) for s, a in enumerate(accuracies)]
    finding = judged(ACCURACY, records(*runs))
    assert (finding.verdict, finding.reason) == (verdict, reason)
    assert finding.ours.mean == pytest.approx(np.mean(accuracies))
    assert finding.difference.mean == pytest.approx(np.mean(accuracies) - 92)


GAIN = Printed("Table 2", FASHION, DA_CAPSNET, "gain", 1.0, CAPSNET)


@pytest.mark.parametrize(
    ("gains", "epochs", "verdict", "reason"),
    [
        ((0.9, 1.0, 1.1), 100, "reproduced", "as printed"),
        ((2.9, 3.0, 3.1), 100, "reproduced", "larger"),
        ((0.39, 0.4, 0.41), 100, "not reproduced", "a smaller gain"),
        ((0.79, 0.8, 0.81), 100, "reproduced", "as printed"),
        ((0.5, 0.5, 0.5), 100, "reproduced", "as printed"),
        ((-0.1, 0.0, 0.1), 100, "not reproduced", "no gain to be seen"),
        ((-0.3, 0.1, 0.5), 100, "inconclusive", "wide interval"),
        ((-1.1, -1.0, -0.9), 100, "not reproduced", "a loss"),
        ((-2.0, 1.0, 4.0), 100, "inconclusive", "wide interval"),
        ((0.9, 1.0, 1.1), 15, "inconclusive", "15 of 100 epochs"),
        ((1.0,), 100, "inconclusive", "one seed"),
    ],
)
def test_a_gain_is_judged_by_the_rule(gains, epochs, verdict, reason):
    runs = []
    for seed, gain in enumerate(gains):
        luck = 80 + 5 * seed  # the same for both: pairs cancel it
        runs += [record("capsnet", seed=seed, accuracies=[luck], epochs=epochs)]
        runs += [record("da-capsnet", seed=seed, accuracies=[luck + gain], epochs=epochs)]
    finding = judged(GAIN, records(*runs))
    assert (finding.verdict, finding.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((100.0, 100.0, 100.0), "reproduced"),
        ((99.6, 99.5, 99.55), "not reproduced"),
        ((100.0, 99.9, 100.0), "inconclusive"),
    ],
)
def test_a_printed_100_percent_means_every_image(accuracies, verdict):
    printed = Printed("Table 4", FASHION, CAPSNET, "accuracy", 100.0)
    runs = [record(seed=seed, accuracies=[a], epochs=100) for seed, a in enumerate(accuracies)]
    assert judged(printed, records(*runs)).verdict == verdict


def test_another_recipe_allows_no_verdict():
    runs = [record(seed=seed, accuracies=[92.0 + seed / 10], epochs=100, lr=0.1) for seed in range(3)]
    finding = judged(ACCURACY, records(*runs))
    assert (finding.verdict, finding.reason) == ("inconclusive", "another recipe")


def test_one_run_or_a_baseline_on_other_files_is_enough_for_doubt():
    mixed = [record(seed=seed, accuracies=[92.0 + seed / 10], epochs=100, official=seed == 0) for seed in range(3)]
    finding = judged(ACCURACY, records(*mixed))
    assert finding.reason == "not the official images"  # and the one official run is not averaged with the others
    assert finding.ours.n == 2
    runs = [record("da-capsnet", seed=seed, accuracies=[93.0 + seed / 10], epochs=100) for seed in range(3)]
    copies = [record(seed=seed, accuracies=[92.0], epochs=100, official=False) for seed in range(3)]
    assert judged(GAIN, records(*runs, *copies)).verdict == "not run"  # they are never compared


def test_other_pixels_allow_no_verdict_and_the_same_pixels_in_other_files_do():
    runs = [record(seed=seed, accuracies=[92.0 + seed / 10], epochs=100, official=False) for seed in range(3)]
    same = records(*runs, copies={"fashion-mnist": Copy("packed anew", True)})
    assert judged(ACCURACY, same).verdict == "reproduced"
    other = records(*runs, copies={"fashion-mnist": Copy("JPEG copy", False)})
    assert judged(ACCURACY, other).verdict == "inconclusive"


def test_not_run_has_no_verdict_and_protocol_clean_is_the_fallback():
    assert judged(ACCURACY, records()).verdict == "not run"
    assert judged(GAIN, records(record("da-capsnet"))).verdict == "not run"
    clean = [record(protocol="clean", seed=seed, accuracies=[93.0 + seed / 10], epochs=100) for seed in range(3)]
    finding = judged(ACCURACY, records(*clean))
    assert (finding.protocol, finding.verdict) == ("clean", "reproduced")
    paper = [record(seed=seed, accuracies=[80.0 + seed / 10], epochs=100) for seed in range(3)]
    finding = judged(ACCURACY, records(*clean, *paper))
    assert (finding.protocol, finding.verdict) == ("paper", "not reproduced")


@pytest.mark.parametrize(
    ("histories", "verdict"),
    [
        ([[98, 100, 99, 99], [99, 98, 98, 100]], "reproduced"),
        ([[98] * 9 + [100], [98] * 9 + [100]], "not reproduced"),
        ([[98] * 9 + [100], [100] * 10], "inconclusive"),
        ([[98, 99.9, 99, 99], [98, 99, 99, 99]], "not reproduced"),
        ([[98, 100, 99, 99], [98, 99, 99, 99]], "not reproduced"),  # one of two
        ([[98, 99.9, 99, 99]], "inconclusive"),  # one seed
        ([[99.9] * 3, [99.8] * 3], "inconclusive"),  # the fourth might have been
    ],
)
def test_epochs_to_100_percent(histories, verdict):
    printed = Printed("Fig. 10", MNIST, CAPSNET, "epochs to 100 %", 2)
    runs = [record(data="mnist", seed=seed, accuracies=history) for seed, history in enumerate(histories)]
    finding = judged(printed, records(*runs))
    assert finding.verdict == verdict
    assert "runs reach it" in finding.reason
    held_out = [record(data="mnist", protocol="clean", seed=seed, accuracies=[98, 100]) for seed in range(2)]
    assert judged(printed, records(*held_out)).verdict == "not run"


def test_thresholds_and_the_mean_of_the_first_five_epochs():
    run = record(accuracies=[50, 60, 70, 80, 90, 99])
    assert first_five(run) == pytest.approx(70)
    assert (epochs_to(run, 70), epochs_to(run, 99.5)) == (3, None)
    printed = Printed("Table 4", MNIST, DA_CAPSNET, "first-five gain", 0.15, CAPSNET)
    runs = [
        record(network, "mnist", seed=seed, accuracies=[90 + seed + gain] * 5 + [99])
        for network, gain in (("capsnet", 0), ("da-capsnet", 0.2))
        for seed in range(3)
    ]
    finding = judged(printed, records(*runs))
    assert finding.ours.mean == pytest.approx(0.2)
    assert finding.verdict == "reproduced"  # five epochs are all that it takes
    clean = [dataclasses.replace(run, protocol="clean") for run in runs]  # whose epochs tell of training images
    assert judged(printed, records(*clean)).verdict == "not run"


def test_runs_under_other_conditions_are_never_averaged_or_compared():
    many = [record(seed=seed, accuracies=[90.0] * 3) for seed in range(3)]
    longer = [record(seed=seed, accuracies=[99.0] * 9) for seed in range(2)]
    other_rate = [record("da-capsnet", seed=seed, accuracies=[99.0] * 3, lr=0.1) for seed in range(2)]
    table = cells(records(*many, *longer, *other_rate))
    assert set(table) == {(FASHION, CAPSNET, "paper")}
    assert table[FASHION, CAPSNET, "paper"].records == tuple(longer)
    assert judged(GAIN, records(*many, *longer, *other_rate)).verdict == "not run"


def test_a_wider_network_with_its_own_rate_is_compared_and_one_on_more_images_is_not():
    runs = [record(seed=seed, accuracies=[90.0] * 3) for seed in range(2)]
    wider = [record("capsnet, width 256", seed=seed, accuracies=[91.0] * 3, lr=0.00025, width=256) for seed in range(2)]
    more = [dataclasses.replace(record("da-capsnet", seed=seed), training_images=101) for seed in range(2)]
    table = cells(records(*runs, *wider, *more))
    assert {network for _, network, _ in table} == {CAPSNET, variant("capsnet", width=256)}


def test_several_seeds_are_those_of_one_network():
    runs = [record(seed=seed, accuracies=[90.0] * 3) for seed in range(2)]
    scattered = [record(name, seed=s, accuracies=[95.0] * 9) for s, name in enumerate(("capsnet", "da-capsnet"))]
    assert cells(records(*runs, *scattered))[FASHION, CAPSNET, "paper"].records == tuple(runs)


def test_several_seeds_count_before_epochs_and_epochs_before_runs():
    many = [record(seed=seed, accuracies=[90.0] * 3) for seed in range(5)]
    longer = [record(seed=seed, accuracies=[99.0] * 9) for seed in range(2)]
    single = [record(seed=0, accuracies=[99.0] * 50)]
    for members, counted in (((*many, *single), many), ((*many, *longer, *single), longer), (single, single)):
        assert cells(records(*members))[FASHION, CAPSNET, "paper"].records == tuple(counted)
