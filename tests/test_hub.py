"""Folders in the layout of the Hugging Face hub: what was saved is loaded, what is damaged is refused in one line."""

import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dualcaps import (
    ConfigError,
    ModelError,
    RunError,
    create_model,
    from_pretrained,
    predict,
    save_pretrained,
    wrap_module,
)
from dualcaps.hub import push_to_hub


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = create_model("da-capsnet-r", (3, 32, 32), 4, width=8, readout="linear")
    network.classes, network.value_range = ("cat", "dog", "größe", "4"), (0.0, 4095.0)
    return network.eval()


@pytest.fixture
def saved(model, tmp_path: Path) -> Path:
    return save_pretrained(model, tmp_path / "saved", card="# A card", facts={"origin": {"accuracy": 0.5}})


def test_a_saved_network_answers_the_same(model, saved: Path):
    loaded = from_pretrained(saved, device="cpu")
    assert loaded.config == model.config
    assert (loaded.classes, loaded.value_range) == (model.classes, model.value_range)
    assert not loaded.training
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(predict(loaded, images), predict(model, images))
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["origin"] == {"accuracy": 0.5}
    assert (saved / "README.md").read_text() == "# A card"


def test_half_precision_takes_half_the_space(model, saved: Path, tmp_path: Path):
    half = save_pretrained(model, tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (saved, half)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    loaded = from_pretrained(half, device="cpu")
    assert next(loaded.parameters()).dtype == torch.float32
    assert (predict(loaded, images) - predict(model, images)).abs().max() < 0.01


def change_config(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))


def replace_weights(folder: Path, change: Any) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: damaged"),
        (lambda folder: change_config(folder, format=99), "format 99: use the dualcaps version that wrote it"),
        (lambda folder: change_config(folder, model={"name": "da-capsnet-r"}), "4 class names for 10 classes"),
        (lambda folder: change_config(folder, classes=["cat"]), "1 class names for 4 classes"),
        (lambda folder: change_config(folder, value_range=[1]), "config.json: damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 30), "not in the format safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Evil())),
            "not in the format safetensors",
        ),
        (lambda folder: replace_weights(folder, lambda w: w.pop(next(iter(w)))), "not the weights of the network"),
        (
            lambda folder: replace_weights(folder, lambda w: w.update({next(iter(w)): torch.zeros(2)})),
            "not the weights of the network",
        ),
        (
            lambda folder: replace_weights(folder, lambda w: w["readout.weight"].fill_(torch.nan)),
            "weights that are not finite",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(saved: Path, damage: Any, said: str, capsys):
    damage(saved)
    with pytest.raises(RunError, match=said) as caught:
        from_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_nothing_is_overwritten_and_unknown_networks_are_refused(model, saved: Path, tmp_path: Path):
    with pytest.raises(RunError, match="exists already"):
        save_pretrained(model, saved)
    module = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), (1, 12, 12), 2, name="mine")
    with pytest.raises(ModelError, match="cannot be saved by its configuration"):
        save_pretrained(module, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_hub_is_asked_for_two_files_and_sent_a_folder(model, saved: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        if name != "me/caps":
            raise ValueError("Repository not found\nfor url")
        return str(saved)

    def upload(repo_id: str, folder_path: str) -> None:
        calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    hub = types.SimpleNamespace(
        snapshot_download=download,
        create_repo=lambda name, private, exist_ok: calls.append((name, private)),
        upload_folder=upload,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert from_pretrained("me/caps", device="cpu", revision="v1").classes == model.classes
    assert calls == [("me/caps", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]})]
    with pytest.raises(ConfigError, match=r"me/none: no such folder, and not found on the hub: Repository not found$"):
        from_pretrained("me/none")
    with pytest.raises(RunError, match=r"\./none: no such folder"):
        from_pretrained("./none")
    calls.clear()
    assert push_to_hub(model, "me/caps") == "https://huggingface.co/me/caps"
    assert calls == [("me/caps", True), ("me/caps", ["README.md", "config.json", "model.safetensors"])]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'dualcaps\[hub\]'"):
        from_pretrained("me/caps")


def test_a_hub_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="me/caps: no such folder, and not found on the hub") as error:
        from_pretrained("me/caps")
    assert "\n" not in str(error.value)


def test_a_folder_is_loaded_without_the_hub_and_without_pickle(saved: Path):
    program = f"""
import sys
sys.modules["huggingface_hub"] = None
import pickle, torch
def refuse(*args, **kwargs): raise AssertionError("unpickled")
torch.load = pickle.load = pickle.loads = refuse
import dualcaps
print(dualcaps.from_pretrained({str(saved)!r}, device="cpu").classes[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "cat\n"
