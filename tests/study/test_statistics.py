"""Means and differences: intervals against scipy, and which runs are compared how."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from made_records import record

from dualcaps.study.experiments import DataKey, Variant, variant
from dualcaps.study.records import Records
from dualcaps.study.statistics import (
    accuracy,
    cells,
    difference,
    epochs_to,
    first_five,
    gain,
    mean_interval,
    paired_difference,
)

CAPSNET, DA_CAPSNET = Variant("capsnet"), Variant("da-capsnet")
FASHION = DataKey("fashion-mnist")
numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


def records(*members) -> Records:
    return Records(tuple(members), (), {}, {})


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
    found = paired_difference(ours, baseline)
    expected = scipy.stats.ttest_rel(list(ours.values()), list(baseline.values())).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # A seed that only one of them has does not change what the pairs say.
    assert paired_difference(ours | {99: 1e6}, baseline) == found


@given(
    st.lists(numbers, min_size=2, max_size=8, unique=True),
    st.lists(numbers, min_size=2, max_size=8, unique=True),
)
def test_other_runs_are_compared_by_welch(first, second):
    found = difference(first, second)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_pairs_are_made_only_where_a_seed_means_the_same_split():
    def found(data: str, protocol: str):
        runs = [
            record(network, data, protocol, seed, [80.0 + 5 * seed + more])
            for network, more in (("capsnet", 0), ("da-capsnet", 1))
            for seed in range(3)
        ]
        table = cells(records(*runs))
        ours, baseline = (table[DataKey(data), network, protocol] for network in (DA_CAPSNET, CAPSNET))
        return gain(ours, baseline, accuracy)

    for data, protocol in (("digits", "paper"), ("coil-20", "paper"), ("fashion-mnist", "clean")):
        assert found(data, protocol)[:3] == pytest.approx((1.0, 1.0, 1.0))
    for data in ("fashion-mnist", "mnist", "smallnorb"):
        wide = found(data, "paper")
        assert wide.mean == pytest.approx(1.0)
        assert wide.low < -5


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    draws, held, held_by_pairs = 2000, 0, 0
    for _ in range(draws):
        luck = random.normal(0, 2, 5)  # what a seed does to both networks
        ours, baseline = 90.5 + luck + random.normal(0, 0.4, 5), 90 + luck + random.normal(0, 0.4, 5)
        interval = mean_interval(list(ours))
        held += interval.low <= 90.5 <= interval.high
        by_seed = paired_difference(dict(enumerate(ours)), dict(enumerate(baseline)))
        held_by_pairs += by_seed.low <= 0.5 <= by_seed.high
    assert 0.94 <= held / draws <= 0.96
    assert 0.94 <= held_by_pairs / draws <= 0.96


def test_one_value_has_no_interval_and_none_is_an_error():
    assert mean_interval([91.0]) == (91.0, -math.inf, math.inf, 1)
    assert paired_difference({0: 92.0}, {0: 91.0, 1: 80.0}) == (1.0, -math.inf, math.inf, 1)
    assert difference([92.0], [91.0, 89.0]) == (2.0, -math.inf, math.inf, 1)
    for nothing in (lambda: mean_interval([]), lambda: difference([], [1.0]), lambda: paired_difference({}, {0: 1.0})):
        with pytest.raises(ValueError, match="no values"):
            nothing()


def test_thresholds_and_the_mean_of_the_first_five_epochs():
    run = record(accuracies=[50, 60, 70, 80, 90, 99])
    assert first_five(run) == pytest.approx(70)
    assert (epochs_to(run, 70), epochs_to(run, 99.5)) == (3, None)


def test_runs_under_other_conditions_are_never_averaged():
    many = [record(seed=seed, accuracies=[90.0] * 3) for seed in range(3)]
    longer = [record(seed=seed, accuracies=[99.0] * 9) for seed in range(2)]
    other_rate = [record("da-capsnet", seed=seed, accuracies=[99.0] * 3, lr=0.1) for seed in range(2)]
    table = cells(records(*many, *longer, *other_rate))
    assert set(table) == {(FASHION, CAPSNET, "paper")}
    assert table[FASHION, CAPSNET, "paper"].records == tuple(longer)


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
