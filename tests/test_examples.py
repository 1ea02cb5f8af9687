"""The examples work through the Python interface and the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dualcaps
import dualcaps.study.experiments  # before a test has a registry of its own
from dualcaps.runs.run import Run

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.usefixtures("own_registry", "no_pictures")


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


@pytest.mark.slow
def test_an_experiment_is_run_in_processes_of_its_own_and_reported(run_cli: Callable, shapes: Path):
    plugin = ("--plugin", EXAMPLES / "my_experiment.py")
    options = ("--datasets", shapes, "--seeds", 1, "--epochs", 1, "--protocols", "clean", "--device", "cpu")
    assert "\nrouting-methods\n" in run_cli("reproduce", "--list", *plugin).out
    said = run_cli("reproduce", "routing-methods", *plugin, *options, "--out", "runs")
    assert said.code == 0, said.err
    assert "3 of 3 runs done, 0 failed" in said.out
    runs = [dualcaps.Run.open(config.parent) for config in Path("runs").rglob("config.json")]
    assert {run.model.routing for run in runs} == {"dynamic", "uniform", "mine"}
    for run in runs:
        assert dualcaps.load_model(run)(torch.zeros(1, 1, 12, 12)).lengths.shape == (1, 3)
    said = run_cli("report", "runs", *plugin)
    assert said.code == 0, said.err
    assert "capsnet, routing mine" in Path("report/RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_plugin_needs_no_option(shapes: Path, tmp_path: Path):
    install = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site")
    subprocess.run([sys.executable, "-m", *install, EXAMPLES / "plugin"], check=True, capture_output=True)
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])

    def dualcaps_command(*arguments: object) -> str:
        command = [sys.executable, "-m", "dualcaps", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": paths}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    assert "median (dualcaps-example)" in dualcaps_command("models")
    dualcaps_command("train", shapes, "--model", "capsnet", "--routing", "median", "--epochs", 1, "--out", "run")
    assert dualcaps_command("evaluate", "run").startswith("accuracy ")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["capsnet", "da-capsnet"])
def test_the_trunk_learns(model: str, run_cli: Callable):
    plugin = ("--plugin", EXAMPLES / "my_trunk.py", "--trunk", "residual-small")
    said = run_cli("train", "digits", *plugin, "--model", model, "--no-decoder", "--epochs", 5, "--out", "run")
    assert said.code == 0, said.err
    assert Run.open(Path("run")).result["test_accuracy"] > 0.7


def test_the_sceptics_controls_have_the_sizes_and_start_that_they_say(own_registry):
    dualcaps.load_plugin(EXAMPLES / "controls.py")
    torch.manual_seed(0)
    count = {
        name: sum(parameter.numel() for parameter in dualcaps.create_model(name).parameters())
        for name in ("capsnet", "da-capsnet", "capsnet-mlp", "capsnet-scaled-branch", "capsnet-constant-gates")
    }
    assert count["capsnet-mlp"] == pytest.approx(count["da-capsnet"], rel=0.002)
    assert count["capsnet-scaled-branch"] == count["da-capsnet"] + 2
    assert count["capsnet-constant-gates"] == count["capsnet"] + 128 + 10 * 100 * 16
    images = torch.rand(2, 1, 28, 28)
    constant = dualcaps.create_model("capsnet-constant-gates")
    plain = dualcaps.create_model("capsnet")
    plain.load_state_dict({name: constant.state_dict()[name] for name in plain.state_dict()})
    torch.testing.assert_close(constant(images).lengths, plain(images).lengths)  # all gates are 1 at first
    branch = dualcaps.create_model("capsnet-scaled-branch")
    additive = dualcaps.create_model("da-capsnet", gate="additive")
    weights = {name.replace(".attention.", "."): tensor for name, tensor in branch.state_dict().items()}
    additive.load_state_dict({name: weights[name] for name in additive.state_dict()})
    torch.testing.assert_close(branch(images).lengths, additive(images).lengths)  # with the scale 1


def test_the_sceptics_controls_train_all_their_weights(own_registry):
    dualcaps.load_plugin(EXAMPLES / "controls.py")
    card = dualcaps.study.experiments.experiments()["control-sceptic"]
    assert [str(network) for network in card.networks[:2]] == ["capsnet", "da-capsnet"]
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 0])
    for network in card.networks:
        torch.manual_seed(0)
        model = dualcaps.models.build_model(network.configure((1, 12, 12), 3))
        output = model(images)
        model.loss(output, labels, images, model.reconstruct(output.poses, labels)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (str(network), name)
            assert parameter.grad.abs().sum() > 0, (str(network), name)
