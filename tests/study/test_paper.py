"""The paper's numbers as we hold them, against each other and against the page that lists the decisions."""

from pathlib import Path

import pytest

from dualcaps import MODELS
from dualcaps.registry import DATASETS
from dualcaps.study import paper
from dualcaps.study.experiments import Variant, variant

DOCS = Path(__file__).parents[2] / "docs"


def test_printed_gains_are_the_differences_of_printed_accuracies_but_for_the_contradiction_on_coil_20():
    accuracies = {
        (number.data, number.network): number.value for number in paper.PRINTED if number.quantity == "accuracy"
    }
    gains = [number for number in paper.PRINTED if number.quantity == "gain"]
    assert len(gains) == 14
    for gain in gains:
        apart = accuracies[gain.data, gain.network] - accuracies[gain.data, gain.baseline]
        assert (gain.value == pytest.approx(apart)) == (gain.data.source != "coil-20"), gain


def test_every_printed_number_is_of_a_network_and_a_data_set_that_exist():
    known = {*map(Variant, MODELS), variant("capsnet", squash_constant=1.0)}
    for number in paper.PRINTED:
        assert number.network in known
        assert number.baseline in known | {None}
        assert number.data.source in DATASETS
    assert len(set(paper.PRINTED)) == len(paper.PRINTED)


def test_the_replication_page_lists_the_same_decisions_and_contradictions():
    page = (DOCS / "replication.md").read_text(encoding="utf-8")
    for decision in paper.DECISIONS:
        assert f"| {' | '.join(decision)} |".replace("|  |", "| |") in page, decision.number
    for number, text in paper.DIFFERENCES:
        assert f"- {number}. {text}" in " ".join(page.split()), number
    for contradiction in paper.CONTRADICTIONS:
        assert contradiction in " ".join(page.split()), contradiction
