"""Verdicts against the rule that the report states, and how often they err."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import record

from dualcaps.study import paper
from dualcaps.study.experiments import DataKey, Variant
from dualcaps.study.paper import Printed
from dualcaps.study.records import Copy, CopyKey, Record, Records
from dualcaps.study.statistics import cells
from dualcaps.study.verdicts import Finding, holm, judge

CAPSNET, DA_CAPSNET = Variant("capsnet"), Variant("da-capsnet")
FASHION, MNIST, COIL = DataKey("fashion-mnist"), DataKey("mnist"), DataKey("coil-20")
ACCURACY = Printed("Table 2", FASHION, CAPSNET, "accuracy", 92.0)
GAIN = Printed("Table 2", FASHION, DA_CAPSNET, "gain", 1.57, CAPSNET)


def records(*members: Record, copies: dict[CopyKey, Copy] | None = None) -> Records:
    return Records(tuple(members), (), copies or {}, {})


def judged(printed: Printed, found: Records) -> Finding:
    return judge([printed], cells(found), found.copies)[0]


def runs(accuracies, network: str = "capsnet", **options) -> list[Record]:
    options = {"epochs": 100, **options}
    found = [record(network, seed=seed, accuracies=[value], **options) for seed, value in enumerate(accuracies)]
    return [dataclasses.replace(run, test_images=10_000) for run in found]


@pytest.mark.parametrize(
    ("accuracies", "verdict", "reason"),
    [
        ((92.0, 92.05, 91.95, 92.05, 91.95), "equal", ""),
        ((92.2, 92.25, 92.15, 92.2, 92.2), "equal", ""),  # within the margin of half a point
        ((95.0, 95.1, 94.9), "exceeds", ""),
        ((90.0, 90.1, 89.9), "below", ""),
        ((92.4, 92.3, 92.5), "inconclusive", "n too small"),
        ((90.0, 94.0), "inconclusive", "n too small"),
        ((92.0,), "inconclusive", "one seed"),
    ],
)
def test_an_accuracy_is_judged_by_the_rule(accuracies, verdict: str, reason: str):
    finding = judged(ACCURACY, records(*runs(accuracies)))
    assert (finding.verdict, finding.reason) == (verdict, reason)
    assert finding.ours.mean == pytest.approx(np.mean(accuracies))
    assert finding.difference.mean == pytest.approx(np.mean(accuracies) - 92)


def test_the_difference_counts_the_chance_of_the_printed_run():
    values = (92.0, 92.4, 92.8, 93.2, 93.6)
    finding = judged(ACCURACY, records(*runs(values)))
    ours = finding.ours
    half, wider = ours.high - ours.mean, finding.difference.high - finding.difference.mean
    assert wider == pytest.approx(half * np.sqrt(5 * (1 + 1 / 5)))


def test_a_wide_interval_around_the_printed_gain_reproduces_nothing():
    noisy = [*runs((80, 90, 85), "capsnet"), *runs((91, 83, 96), "da-capsnet")]
    finding = judged(GAIN, records(*noisy))
    assert finding.ours.mean == pytest.approx(5.0)
    assert (finding.verdict, finding.reason) == ("inconclusive", "n too small")


@pytest.mark.parametrize(
    ("gain", "spread", "verdict", "reason"),
    [
        (1.57, 0.02, "equal", ""),
        (3.5, 0.02, "exceeds", ""),
        (0.4, 0.02, "below", "a smaller gain"),
        (0.0, 0.02, "below", "no gain to be seen"),
        (-1.0, 0.02, "below", "a loss"),
        (2.0, 0.3, "direction only", ""),
        (0.5, 1.0, "inconclusive", "n too small"),
    ],
)
def test_a_gain_is_judged_by_the_rule(gain: float, spread: float, verdict: str, reason: str):
    steps = spread * np.array([-1, -0.5, 0, 0.5, 1])
    members = [*runs(90 + steps, "capsnet"), *runs(90 + gain - steps, "da-capsnet")]
    finding = judged(GAIN, records(*members))
    assert (finding.verdict, finding.reason) == (verdict, reason)
    assert finding.ours.mean == pytest.approx(gain)


def test_few_seeds_take_the_variance_of_all_networks():
    close = runs((92.0, 92.001), "capsnet")
    alone = judged(ACCURACY, records(*close)).difference
    among = judged(ACCURACY, records(*close, *runs((80.0, 82.0, 84.0), "da-capsnet"))).difference
    assert among.high - among.low > 20 * (alone.high - alone.low)
    many = runs((92.0, 92.001, 92.0, 92.001, 92.0), "capsnet")
    own = judged(ACCURACY, records(*many, *runs((80.0, 82.0, 84.0), "da-capsnet"))).difference
    assert own.high - own.low < 0.1 * (among.high - among.low)


@pytest.mark.parametrize(
    ("accuracies", "verdict", "reason"),
    [
        ((100.0,) * 5, "equal", "every image right"),
        ((99.6, 99.5, 99.55), "below", ""),
        ((100.0, 99.9, 100.0), "inconclusive", "n too small"),
    ],
)
def test_a_printed_100_percent_means_every_image(accuracies, verdict: str, reason: str):
    printed = Printed("Table 4", FASHION, CAPSNET, "accuracy", 100.0)
    finding = judged(printed, records(*runs(accuracies)))
    assert (finding.verdict, finding.reason) == (verdict, reason)


@pytest.mark.parametrize(("images", "verdict"), [(72, "inconclusive"), (10_000, "exceeds")])
def test_where_every_image_is_right_the_exact_limit_counts(images: int, verdict: str):
    printed = Printed("Table 4", COIL, CAPSNET, "accuracy", 98.38)
    right = [dataclasses.replace(run, test_images=images) for run in runs((100.0,) * 5, data="coil-20")]
    finding = judged(printed, records(*right))
    assert finding.verdict == verdict
    low = 100 * 0.025 ** (1 / images)  # Clopper and Pearson's limit
    assert finding.difference[:3] == pytest.approx((1.62, low - 98.38, 1.62))
    both = [
        *right,
        *(dataclasses.replace(run, test_images=images) for run in runs((100.0,) * 5, "da-capsnet", data="coil-20")),
    ]
    finding = judged(Printed("Table 4", COIL, DA_CAPSNET, "gain", 1.16, CAPSNET), records(*both))
    assert (finding.verdict, finding.reason) == ("inconclusive", "every image right in all runs, too few images")


def test_fewer_epochs_than_the_papers_can_only_exceed():
    assert judged(ACCURACY, records(*runs((95.0, 95.1, 94.9), epochs=15))).verdict == "exceeds"
    for values in ((92.0, 92.01, 91.99), (90.0, 90.1, 89.9), (92.2, 92.2, 92.2)):
        finding = judged(ACCURACY, records(*runs(values, epochs=15)))
        assert (finding.verdict, finding.reason) == ("inconclusive", "15 of 100 epochs")
    members = [*runs((90, 90.1, 90.2), epochs=15), *runs((95, 95.1, 95.2), "da-capsnet", epochs=15)]
    assert judged(GAIN, records(*members)).reason == "15 of 100 epochs"


def test_another_recipe_or_other_images_allow_no_verdict():
    finding = judged(ACCURACY, records(*runs((92.0, 92.1, 92.2), lr=0.1)))
    assert (finding.verdict, finding.reason) == ("inconclusive", "another recipe")
    for official in (False, None):
        finding = judged(ACCURACY, records(*runs((95.0, 95.1, 95.2), official=official)))
        assert (finding.verdict, finding.reason) == ("inconclusive", "not the official images")
    copied = runs((95.0, 95.1, 95.2), official=False)
    same = records(*copied, copies={("fashion-mnist", ""): Copy("packed anew", True)})
    assert judged(ACCURACY, same).verdict == "exceeds"
    other = records(*copied, copies={("fashion-mnist", ""): Copy("JPEG copy", False)})
    assert judged(ACCURACY, other).verdict == "inconclusive"


def test_not_run_has_no_verdict_and_protocol_clean_is_the_fallback():
    assert judged(ACCURACY, records()).verdict == "not run"
    assert judged(GAIN, records(record("da-capsnet"))).verdict == "not run"
    clean = runs((95.0, 95.1, 95.2), protocol="clean")
    finding = judged(ACCURACY, records(*clean))
    assert (finding.protocol, finding.verdict) == ("clean", "exceeds")
    finding = judged(ACCURACY, records(*clean, *runs((80.0, 80.1, 80.2))))
    assert (finding.protocol, finding.verdict) == ("paper", "below")


def test_runs_under_other_conditions_are_never_compared():
    longer = runs((99.0, 99.1), epochs=9)
    other_rate = runs((99.0, 99.1), "da-capsnet", epochs=9, lr=0.1)
    assert judged(GAIN, records(*longer, *other_rate)).verdict == "not run"


@pytest.mark.parametrize(
    ("histories", "verdict"),
    [
        ([[98, 100, 99, 99], [99, 98, 98, 100]], "equal"),
        ([[98] * 9 + [100], [98] * 9 + [100]], "exceeds"),
        ([[98] * 9 + [100], [100] * 10], "inconclusive"),
        ([[98, 99.9, 99, 99], [98, 99, 99, 99]], "exceeds"),  # by none
        ([[98, 100, 99, 99], [98, 99, 99, 99]], "exceeds"),  # by one of two
        ([[98, 99.9, 99, 99]], "inconclusive"),  # one seed
        ([[99.9] * 3, [99.8] * 3], "inconclusive"),  # the fourth might have been
    ],
)
def test_epochs_to_100_percent(histories, verdict: str):
    printed = Printed("Fig. 10", MNIST, CAPSNET, "epochs to 100 %", 2)
    found = [record(data="mnist", seed=seed, accuracies=history) for seed, history in enumerate(histories)]
    finding = judged(printed, records(*found))
    assert finding.verdict == verdict
    assert "runs reach it" in finding.reason
    held_out = [record(data="mnist", protocol="clean", seed=seed, accuracies=[98, 100]) for seed in range(2)]
    assert judged(printed, records(*held_out)).verdict == "not run"


def test_the_first_five_epochs_are_all_that_their_gain_takes():
    printed = Printed("Table 4", MNIST, DA_CAPSNET, "first-five gain", 0.15, CAPSNET)
    found = [
        dataclasses.replace(
            record(network, "mnist", seed=seed, accuracies=[90 + seed / 100 + gain] * 5 + [99]), test_images=10_000
        )
        for network, gain in (("capsnet", 0), ("da-capsnet", 1.36))
        for seed in range(3)
    ]
    finding = judged(printed, records(*found))
    assert finding.ours.mean == pytest.approx(1.36)
    assert finding.verdict == "exceeds"
    clean = [dataclasses.replace(run, protocol="clean") for run in found]  # whose epochs tell of training images
    assert judged(printed, records(*clean)).verdict == "not run"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_p_values_are_adjusted_by_holms_method(values):
    found = holm(values)
    ordered = sorted(values)
    for value, adjusted in zip(values, found, strict=True):
        rank = len(ordered) - ordered[::-1].index(value)  # of equal ones the last
        wanted = max(min(1.0, (len(values) - place) * p) for place, p in enumerate(ordered[:rank]))
        assert adjusted == pytest.approx(wanted)


def test_many_comparisons_of_a_table_raise_the_bar():
    table = [run for name in paper_names() for run in runs((92.9, 93.0, 93.1), name)]
    printed = [Printed("Table 2", FASHION, Variant(name), "accuracy", 92.5) for name in paper_names()]
    alone = judge(printed[:1], cells(records(*table)), {})[0]
    among = judge(printed, cells(records(*table)), {})
    assert alone.adjusted == alone.raw
    assert all(finding.adjusted.different == pytest.approx(4 * alone.raw.different) for finding in among)


def paper_names() -> tuple[str, ...]:
    return ("capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet")


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_verdicts_err_as_seldom_as_they_say(seeds: int):
    """Four networks whose true accuracies are those of the printed runs, or off by the margin."""
    random = np.random.default_rng(0)
    draws, wrongly_different, wrongly_equal = 300, 0, 0
    for _ in range(draws):
        table = {name: 90 + random.normal(0, 0.2, seeds) for name in paper_names()}
        members = [run for name, values in table.items() for run in runs(values, name)]
        found = cells(records(*members))
        for shift in (0.0, 0.5):
            numbers = [
                Printed("Table 2", FASHION, Variant(name), "accuracy", 90 + shift + random.normal(0, 0.2))
                for name in paper_names()
            ]
            verdicts = {finding.verdict for finding in judge(numbers, found, {})}
            if shift:
                wrongly_equal += "equal" in verdicts
            else:
                wrongly_different += bool({"exceeds", "below"} & verdicts)
    # Of a whole table; 5 %, and three standard errors of 300 draws.
    assert wrongly_different / draws < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert wrongly_equal / draws < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_prediction_intervals_hold_a_further_run_as_often_as_they_say():
    random = np.random.default_rng(1)
    draws, held = 600, 0
    for _ in range(draws):
        finding = judged(ACCURACY, records(*runs(90 + random.normal(0, 0.3, 5))))
        held += finding.difference.low <= 90 + random.normal(0, 0.3) - 92 <= finding.difference.high
    assert held / draws == pytest.approx(0.95, abs=3 * (0.05 * 0.95 / draws) ** 0.5)


def test_a_number_that_is_printed_twice_counts_once():
    assert len(paper.PRINTED) == 43
    keys = [(one.data, one.network, one.quantity, one.baseline) for one in paper.PRINTED]
    assert len(set(keys)) == 43
