"""Registries: parts are registered by decorators, found by name, and told apart by where they come from."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import dualcaps
from dualcaps import (
    ConfigError,
    DataError,
    DualcapsError,
    ImageDataset,
    ModelConfig,
    ModelError,
    Routing,
    create_model,
    list_models,
    load_data,
    load_plugin,
    register_dataset,
    register_experiment,
    register_model,
    register_routing,
    register_trunk,
    registry,
    route,
    wrap_module,
)
from dualcaps.data.sources import data_set
from dualcaps.models import describe
from dualcaps.study.experiments import Experiment, experiments, variant
from dualcaps.study.plan import plan_runs

KINDS = {
    "model": (registry.MODELS, register_model, ModelError),
    "trunk": (registry.TRUNKS, register_trunk, ModelError),
    "routing method": (registry.ROUTING_METHODS, register_routing, ModelError),
    "data set": (registry.DATASETS, register_dataset, DataError),
    "experiment": (registry.EXPERIMENTS, register_experiment, ConfigError),
}

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def clean(own_registry: None) -> Iterator[None]:
    """Remember neither plug-ins nor their modules nor what was asked for."""
    modules = set(sys.modules)
    yield
    data_set.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith("dualcaps_plugin_"):
            del sys.modules[name]


def one_line(error: Any) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def part(*arguments: Any, **options: Any) -> None:
    """Stands for anything that can be registered."""


@kinds
def test_a_decorator_registers_under_a_name_and_returns_what_it_was_given(kind: str):
    entries, register, _ = KINDS[kind]
    assert register("my-part")(part) is part
    assert registry.lookup(entries, kind, "my-part").value is part
    assert entries["my-part"].origin == __name__


@kinds
def test_a_name_is_registered_once_and_the_first_owner_named(kind: str):
    entries, register, _ = KINDS[kind]
    register("my-part")(part)
    with pytest.raises(ConfigError, match=f"{kind} 'my-part' is already registered by {__name__}") as caught:
        register("my-part")(one_line)
    assert one_line(caught).endswith(": choose another name")
    assert entries["my-part"].value is part
    ours = next(name for name, entry in entries.items() if entry.origin == "dualcaps")
    with pytest.raises(ConfigError, match=f"'{ours}' is already registered by dualcaps"):
        register(ours)(part)


def test_a_notebook_cell_can_be_run_again():
    for value in (1.0, 2.0):
        names = {"__name__": "__main__", "value": value}
        exec("from dualcaps import *\n@register_trunk('cell')\ndef trunk(config): return value", names)
        assert registry.TRUNKS["cell"].value(None) == value
    without_module: dict[str, Any] = {}
    exec("from dualcaps import *\n@register_trunk('nameless')\ndef trunk(config): return 1", without_module)
    assert "nameless" in registry.TRUNKS


@kinds
def test_an_unknown_name_suggests_the_nearest_and_lists_all(kind: str):
    entries, register, error = KINDS[kind]
    register("my-part")(part)
    with pytest.raises(error, match=f"unknown {kind} 'my-prt': did you mean 'my-part'") as caught:
        registry.lookup(entries, kind, "my-prt")
    assert all(name in one_line(caught) for name in entries)
    with pytest.raises(error, match=f"unknown {kind} '漢': choose one of ") as caught:
        registry.lookup(entries, kind, "漢")
    assert all(name in one_line(caught) for name in entries)
    assert isinstance(caught.value, DualcapsError)


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda: create_model("da_capsnet"), ModelError, "did you mean 'da-capsnet'"),
        (lambda: create_model("capsnet", trunk="papers"), ModelError, "unknown trunk 'papers': did you mean 'paper'"),
        (lambda: create_model("capsnet", routing="dynamc"), ModelError, "did you mean 'dynamic'"),
        (lambda: route(torch.zeros(1, 2, 3, 4), method="unifrom"), ModelError, "did you mean 'uniform'"),
        (lambda: create_model(widht=8), ModelError, "switch of da-capsnet 'widht': did you mean 'width'"),
        (lambda: load_data("minst"), DataError, "did you mean 'mnist'"),
        (lambda: load_data("digits", validaton=0.2), DataError, "did you mean 'validation'"),
        (lambda: plan_runs(["table-3"]), ConfigError, "unknown experiment 'table-3': did you mean 'table-"),
    ],
)
def test_a_misspelt_name_is_one_line_wherever_it_is_given(ask: Callable[[], Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said) as caught:
        ask()
    one_line(caught)


def test_a_registered_network_has_the_defaults_of_its_name():
    register_model("narrow", width=8, routing="uniform", decoder=False)(dualcaps.CapsNet)
    model = create_model("narrow", (1, 12, 12), 3)
    assert (model.config.width, model.config.routing, model.decoder) == (8, "uniform", None)
    assert registry.MODELS["narrow"].origin == __name__
    assert create_model("narrow", (1, 12, 12), 3, width=16).config.width == 16
    assert list_models()[-1] == "narrow"


def test_an_option_that_a_network_lacks_is_refused():
    @register_model("plain", lacks=("iterations",), decoder=False)
    def plain(config: ModelConfig, hidden: int = 4) -> dualcaps.Network:
        size = 144
        layers = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.Linear(hidden, config.num_classes))
        return wrap_module(layers, config.image_shape, config.num_classes)

    model = create_model("plain", (1, 12, 12), 3, hidden=5)
    assert model.config.options == (("hidden", 5),)
    assert model(torch.zeros(2, 1, 12, 12)).lengths.shape == (2, 3)
    with pytest.raises(ModelError, match="plain has no iterations: leave that option out"):
        create_model("plain", (1, 12, 12), 3, iterations=2)
    with pytest.raises(ModelError, match="unknown switch of plain 'hiden': did you mean 'hidden'"):
        create_model("plain", (1, 12, 12), 3, hiden=5)


def test_options_of_any_type_are_described():
    @register_model("plain", decoder=False, hidden=[4, 5])
    def plain(config: ModelConfig, hidden: tuple[int, ...] = ()) -> dualcaps.Network:
        return wrap_module(nn.Flatten(), config.image_shape, config.num_classes)

    assert describe(create_model("plain", (1, 2, 5), 10, hidden=[6]).config) == "plain, hidden (6,)"


def test_a_registered_trunk_takes_options_and_must_return_feature_maps():
    @register_trunk("strided")
    def strided(config: ModelConfig, channels: int = 6) -> nn.Module:
        return nn.Conv2d(config.image_shape[0], channels, 3, stride=3)

    model = create_model("capsnet", (1, 12, 12), 3, trunk="strided", channels=7, decoder=False)
    features = model(torch.zeros(2, 1, 12, 12), intermediates=True).features
    assert features.shape == (2, 7, 4, 4)
    with pytest.raises(ModelError, match="unknown switch of capsnet 'chanels': did you mean 'channels'"):
        create_model("capsnet", (1, 12, 12), 3, trunk="strided", chanels=7)
    register_trunk("flat")(lambda config: nn.Flatten())
    with pytest.raises(ModelError, match=r"trunk flat must return a feature map .*, got \(1, 144\)"):
        create_model("capsnet", (1, 12, 12), 3, trunk="flat")
    register_trunk("no-module")(lambda config: 3)
    with pytest.raises(ModelError, match=r"trunk no-module must be a torch\.nn\.Module, got int"):
        create_model("capsnet", (1, 12, 12), 3, trunk="no-module")


def test_a_registered_routing_method_is_used_by_route_and_networks():
    @register_routing("first-child")
    def first_child(votes: torch.Tensor, child: int = 0) -> Routing:
        return Routing(votes[:, :, child], None)

    votes = torch.randn(2, 3, 4, 5)
    assert torch.equal(route(votes, method="first-child", child=2).parents, votes[:, :, 2])
    model = create_model("capsnet", (1, 12, 12), 3, width=8, decoder=False, routing="first-child", child=1)
    found = model(torch.rand(2, 1, 12, 12), intermediates=True)
    assert torch.equal(found.poses, found.votes[:, :, 1])
    with pytest.raises(ModelError, match="routing first-child has no iterations"):
        create_model("capsnet", (1, 12, 12), 3, routing="first-child", iterations=2)
    register_routing("no-routing")(lambda votes: votes.mean(dim=2))
    with pytest.raises(ModelError, match=r"routing no-routing must return dualcaps\.Routing, got Tensor"):
        route(votes, method="no-routing")


def test_a_function_that_returns_no_network_is_told_what_to_return():
    register_model("bare", decoder=False)(lambda config: nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"model bare must be a dualcaps\.Network, got Linear: return wrap_module"):
        create_model("bare", (1, 12, 12), 3)
    with pytest.raises(ModelError, match=r"fit takes a dualcaps\.Network, got Linear: wrap it with wrap_module"):
        dualcaps.fit(nn.Linear(1, 1), load_data("digits"))


def test_a_registered_data_set_is_loaded_with_its_options():
    @register_dataset("halves")
    def halves(config: dualcaps.DataConfig) -> ImageDataset:
        images = torch.arange(40, dtype=torch.uint8)[:, None, None].expand(40, 12, 12)
        return ImageDataset.from_arrays(images, [0, 1] * 20, ["even", "odd"], test=config.test, name="other")

    data = load_data("halves", test=0.5)
    assert (data.name, data.classes, len(data.test)) == ("halves", ("even", "odd"), 20)
    assert data.config.source == "halves"
    register_dataset("nothing")(lambda config: [])
    with pytest.raises(DataError, match="data set nothing must return an ImageDataset, got list"):
        load_data("nothing")


def test_a_registered_experiment_is_planned():
    @register_experiment("tiny")
    def tiny() -> Experiment:
        return Experiment("?", "nothing", (variant("capsnet", width=8),), (("digits", ""),), hours=0.1)

    assert experiments()["tiny"].asks == "?"
    planned, missing = plan_runs(["tiny"], seeds=2, protocols=("clean",))
    assert [(run.network.width, run.training.seed) for run in planned] == [(8, 0), (8, 1)]
    assert missing == []


PLUGIN = """
from torch import nn
from dualcaps import register_experiment, register_trunk
from dualcaps.study.experiments import Experiment, variant

@register_trunk("small")
def small(config):
    return nn.Conv2d(config.image_shape[0], 4, 3)

@register_experiment("mine")
def mine():
    return Experiment("is it?", "nothing", (variant("capsnet"),), (("digits", ""),), hours=1)
"""


def write(name: str, text: str) -> Path:
    file = Path(name)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_plugin_is_imported_once_and_shown_with_its_file(run_cli: Callable):
    file = write("mine.py", PLUGIN)
    load_plugin(file)
    load_plugin(str(file.resolve()))
    assert registry.TRUNKS["small"].origin == "mine.py"
    assert str(file.resolve()) in registry.loaded_plugins()
    listed = run_cli("models").out
    assert "small (mine.py)" in listed
    assert "mine (mine.py)" in listed
    assert "mine\n  from      mine.py\n  question  is it?" in run_cli("reproduce", "--list").out


def test_our_own_parts_stay_ours_when_a_plugin_imports_them():
    # In a process that has not imported them yet.
    write("mine.py", PLUGIN)
    code = (
        "import dualcaps; from dualcaps import registry; dualcaps.load_plugin('mine.py'); dualcaps.create_model\n"
        "import dualcaps.data.sources\n"
        "for entries in (registry.MODELS, registry.TRUNKS, registry.ROUTING_METHODS, registry.EXPERIMENTS):\n"
        "    print(*sorted(name for name, entry in entries.items() if entry.origin != 'dualcaps'), sep=',')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(registry.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert said.stdout.splitlines() == ["", "small", "", "mine"], said.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("typo.py", "def f(:\n    pass\n", "--plugin typo.py: SyntaxError: invalid syntax"),
        ("lines.py", "raise ValueError('two\\nlines')", "--plugin lines.py: ValueError: two lines"),
        ("missing.py", "import no_such_module", "--plugin missing.py: ModuleNotFoundError: No module named"),
        ("taken.py", "import dualcaps\ndualcaps.register_routing('dynamic')(print)", "'dynamic' is already registered"),
        ("notes.txt", "", "--plugin notes.txt: no such Python file"),
        ("latin.py", None, "--plugin latin.py: SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(name: str, text: str | None, said: str):
    file = Path(name)
    file.write_bytes(b"x = '\xe9'\n") if text is None else write(name, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_plugin(file)
    one_line(caught)
    assert str(file.resolve()) not in registry.loaded_plugins()
    assert f"dualcaps_plugin_{file.stem}" not in sys.modules


@pytest.mark.parametrize("name", ["nowhere.py", "folder.py"])
def test_a_plugin_that_is_not_there_is_one_line(name: str):
    Path("folder.py").mkdir()
    with pytest.raises(ConfigError, match=f"^--plugin {name}: no such Python file$"):
        load_plugin(name)


def test_a_plugin_that_failed_can_be_repaired_and_loaded():
    file = write("mine.py", PLUGIN + "\nraise RuntimeError('not yet')")
    with pytest.raises(ConfigError, match=r"mine\.py: RuntimeError: not yet"):
        load_plugin(file)
    assert "small" not in registry.TRUNKS
    assert "paper" in registry.TRUNKS
    write("mine.py", PLUGIN)
    load_plugin(file)
    assert "small" in registry.TRUNKS


def entry_point(distribution: str | None, load: Callable[[], Any]) -> SimpleNamespace:
    named = SimpleNamespace(name=distribution) if distribution else None
    return SimpleNamespace(dist=named, value="some_module", load=load)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Entry points of distributions that are installed, as far as dualcaps knows."""
    points: list[SimpleNamespace] = []

    def entry_points(*, group: str) -> list[SimpleNamespace]:
        assert group == "dualcaps.plugins"
        return points

    monkeypatch.setattr(registry, "metadata", SimpleNamespace(entry_points=entry_points))
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    return points


def test_parts_of_installed_distributions_are_known_and_named(installed: list[SimpleNamespace], run_cli: Callable):
    loads: list[str] = []

    def load() -> None:
        loads.append("more-capsules")
        register_routing("most-certain")(lambda votes: Routing(votes[:, :, 0], None))

    installed.append(entry_point("more-capsules", load))
    assert "dynamic" in registry.ROUTING_METHODS
    route(torch.zeros(1, 2, 3, 4))
    assert loads == []  # what is known already is not looked for
    assert route(torch.ones(1, 2, 3, 4), method="most-certain").parents.shape == (1, 2, 4)
    with pytest.raises(ModelError, match="unknown routing method 'most-certian': did you mean 'most-certain'"):
        route(torch.zeros(1, 2, 3, 4), method="most-certian")
    assert loads == ["more-capsules"]
    assert "most-certain (more-capsules)" in run_cli("models").out


def test_a_distribution_that_cannot_be_imported_is_named_and_costs_no_other(installed: list[SimpleNamespace]):
    def broken() -> None:
        register_trunk("half")(part)
        raise ImportError("no module\nof that name")

    installed.append(entry_point("broken-capsules", broken))
    installed.append(entry_point("rude-capsules", lambda: register_routing("dynamic")(part)))
    installed.append(entry_point(None, lambda: register_trunk("whole")(part)))
    with pytest.raises(ConfigError, match=r"^plug-in broken-capsules: ImportError: no module of that name") as caught:
        list_models()
    assert isinstance(caught.value.__cause__, ImportError)
    assert registry.TRUNKS["whole"].origin == "some_module"
    assert "half" not in registry.TRUNKS
    assert "capsnet" in list_models()
    assert registry.ROUTING_METHODS["dynamic"].origin == "dualcaps"


def test_on_the_command_line_a_broken_distribution_is_one_line(installed: list[SimpleNamespace], run_cli: Callable):
    installed.append(entry_point("broken-capsules", lambda: 1 / 0))
    said = run_cli("models")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("dualcaps: plug-in broken-capsules: ZeroDivisionError: division by zero")
    assert len(said.err.splitlines()) == 1
