"""Registries: names are unique, unknown names are answered, and plug-ins are known by their origin."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dualcaps
from dualcaps import ConfigError, DataError, DualcapsError, ModelError, registry

pytestmark = pytest.mark.usefixtures("own_registry")


def test_a_name_can_be_registered_once():
    @dualcaps.register_routing("twice")
    def first(votes: Any) -> Any:
        return votes

    with pytest.raises(ConfigError, match=r"routing method 'twice' is already registered by \S*test_registry"):
        dualcaps.register_routing("twice")(first)
    with pytest.raises(ConfigError, match="model 'capsnet' is already registered by dualcaps"):
        dualcaps.register_model("capsnet")(first)
    assert registry.ROUTING_METHODS["twice"].value is first


def test_a_notebook_cell_can_be_run_again():
    for value in (1.0, 2.0):
        names = {"__name__": "__main__", "value": value}
        exec("from dualcaps import *\n@register_trunk('cell')\ndef trunk(config): return value", names)
        assert registry.TRUNKS["cell"].value(None) == value
    without_module: dict[str, Any] = {}
    exec("from dualcaps import *\n@register_trunk('nameless')\ndef trunk(config): return 1", without_module)
    assert "nameless" in registry.TRUNKS


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: dualcaps.create_model("capsnt"), ModelError, "unknown model 'capsnt': did you mean 'capsnet'?"),
        (lambda: dualcaps.create_model(trunk="papr"), ModelError, "unknown trunk 'papr': did you mean 'paper'?"),
        (lambda: dualcaps.create_model(routing="emm"), ModelError, "did you mean 'em'?"),
        (lambda: dualcaps.create_model(widht=8), ModelError, "switch of da-capsnet 'widht': did you mean 'width'"),
        (lambda: dualcaps.route(torch.ones(1, 2, 3, 4), method="dynamc"), ModelError, "did you mean 'dynamic'?"),
        (lambda: dualcaps.load_data("mnst"), DataError, "did you mean 'mnist'?"),
        (lambda: dualcaps.load_data("digits", validaton=0.2), DataError, "did you mean 'validation'?"),
    ],
)  # fmt: skip
def test_unknown_names_are_answered_with_the_nearest(call: Any, error: type[DualcapsError], said: str):
    with pytest.raises(error) as caught:
        call()
    assert said in str(caught.value)


def test_a_network_that_is_not_registered_is_one_line():
    @dualcaps.register_model("plain")
    def plain(config: dualcaps.ModelConfig) -> Any:
        return torch.nn.Linear(1, 1)

    with pytest.raises(ModelError, match=r"must be a dualcaps\.Network, got Linear: return wrap_module"):
        dualcaps.create_model("plain")
    data = dualcaps.load_data("digits")
    with pytest.raises(ModelError, match=r"fit takes a dualcaps\.Network, got Linear: wrap it with wrap_module"):
        dualcaps.fit(torch.nn.Linear(1, 1), data)


def test_plugin_files_are_named_in_errors_and_loaded_once(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.py: no such Python file"):
        dualcaps.load_plugin(tmp_path / "none.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"broken\.py: SyntaxError"):
        dualcaps.load_plugin(broken)
    plugin = tmp_path / "mine.py"
    plugin.write_text("from dualcaps import register_trunk\n@register_trunk('own')\ndef own(config): ...\n")
    dualcaps.load_plugin(plugin)
    dualcaps.load_plugin(plugin)
    assert registry.TRUNKS["own"].origin == str(plugin)
    assert registry.loaded_plugins() == (str(plugin),)


def test_installed_plugins_are_loaded_when_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch):
    def load() -> None:
        dualcaps.register_trunk("installed")(lambda config: None)

    point = SimpleNamespace(load=load, dist=SimpleNamespace(name="caps-extras"), value="caps_extras")
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point] if group == "dualcaps.plugins" else [])
    assert registry.lookup(registry.TRUNKS, "trunk", "paper").origin == "dualcaps"
    assert "installed" not in registry.TRUNKS
    assert registry.lookup(registry.TRUNKS, "trunk", "installed").origin == "caps-extras"


def test_an_installed_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch):
    def load() -> None:
        raise ImportError("No module named 'gone'")

    point = SimpleNamespace(load=load, dist=SimpleNamespace(name="caps-extras"), value="caps_extras")
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point])
    with pytest.raises(ConfigError, match="plug-in caps-extras: ImportError: No module named 'gone'"):
        dualcaps.list_models()
