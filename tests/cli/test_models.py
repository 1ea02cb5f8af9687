"""`dualcaps models` as a user runs it."""

from collections.abc import Callable

from dualcaps import list_models
from dualcaps.registry import DATASETS, EXPERIMENTS, ROUTING_METHODS, TRUNKS


def test_models_are_listed_with_their_sizes(run_cli: Callable):
    said = run_cli("models")
    assert said.code == 0, said.err
    lines = {line.split()[0]: line for line in said.out.splitlines() if line}
    assert all(name in lines for name in list_models())
    assert "6,737,136" in lines["da-capsnet"]
    assert "9,206,368" in lines["da-capsnet"]


def test_trunks_routing_methods_data_sets_and_experiments_are_listed(run_cli: Callable):
    said = run_cli("models").out
    for heading, registry in (
        ("trunks", TRUNKS),
        ("routing methods", ROUTING_METHODS),
        ("data sets", DATASETS),
        ("experiments", EXPERIMENTS),
    ):
        (line,) = [line for line in said.splitlines() if line.startswith(heading)]
        names = line.removeprefix(heading).strip().split(", ")
        assert set(registry) <= {name.partition(" (")[0] for name in names}
        assert registry
