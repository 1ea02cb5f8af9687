"""The examples work through the Python interface and the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dualcaps

EXAMPLES = Path(__file__).parents[1] / "examples"


pytestmark = pytest.mark.usefixtures("own_registry")


def test_the_routing_method_has_at_most_40_lines():
    assert len((EXAMPLES / "my_routing.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_a_routing_method_works_in_route_and_in_networks():
    dualcaps.load_plugin(EXAMPLES / "my_routing.py")
    votes = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    routing = dualcaps.route(votes, method="mine", couplings=True)
    torch.testing.assert_close(routing.couplings.sum(dim=1), torch.ones(2, 8))
    uniform = dualcaps.route(votes, method="mine", sharpness=0.0)
    torch.testing.assert_close(uniform.parents, dualcaps.route(votes, method="uniform").parents)
    model = dualcaps.create_model("da-capsnet", (1, 20, 20), 3, routing="mine", sharpness=2.0)
    found = model(torch.zeros(2, 1, 20, 20), intermediates=True)
    assert len(found.iterations) == 3


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("my_routing.py", ("--model", "capsnet", "--routing", "mine", "--options", "sharpness=2")),
        ("my_trunk.py", ("--trunk", "residual-small", "--options", "channels=8")),
        ("my_network.py", ("--model", "patch-capsnet", "--options", "patch=4")),
        ("my_network.py", ("--model", "tiny-mlp")),
    ],
)
def test_parts_are_trained_evaluated_and_loaded(
    file: str, options: tuple[str, ...], run_cli: Callable, shapes_folder: Path
):
    plugin = ("--plugin", EXAMPLES / file)
    trained = run_cli("train", shapes_folder, *plugin, *options, "--image-size", 20, 20, "--epochs", 1, "--out", "run")
    assert trained.code == 0, trained.err
    assert "accuracy" in run_cli("evaluate", "run", *plugin).out
    model = dualcaps.load_model("run")
    assert model(torch.zeros(1, 1, 20, 20)).lengths.shape == (1, 3)


def test_a_data_set_is_trained_on_by_its_name(run_cli: Callable):
    plugin = ("--plugin", EXAMPLES / "my_dataset.py")
    trained = run_cli("train", "rings-and-crosses", *plugin, "--image-size", 20, 20, "--epochs", 1, "--out", "run")
    assert trained.code == 0, trained.err
    assert dualcaps.Run.open("run").classes == ("cross", "ring")
