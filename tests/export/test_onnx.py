"""Exported networks answer as the network does, in onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import needs_exporter

from dualcaps import ConfigError, ModelError, create_model, predict
from dualcaps.export import onnx as module
from dualcaps.export.graphs import compare
from dualcaps.export.onnx import accuracy_of, export_onnx, load_graph

pytest.importorskip("onnxruntime")
pytestmark = needs_exporter
NETWORKS = [
    ("da-capsnet", (1, 28, 28), {"width": 8}),
    ("capsnet", (3, 32, 32), {"width": 8}),
    ("sabour-capsnet", (1, 28, 28), {"decoder": False}),
    ("da-capsnet-r", (3, 32, 32), {"width": 8, "readout": "linear"}),
    ("cnn", (1, 28, 28), {}),
    ("capsnet", (1, 16, 16), {"width": 8, "routing": "em"}),
    ("da-capsnet", (3, 24, 24), {"width": 8, "crop": (20, 20), "standardise": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "options"), NETWORKS)
def test_networks_answer_the_same_in_onnxruntime(
    name: str, shape: tuple[int, int, int], options: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    model = create_model(name, shape, 4, **options).eval()
    images = torch.randint(256, (10, *shape), dtype=torch.uint8)
    written = export_onnx(model, tmp_path / "x.onnx", images, metadata={"classes": ["ä", "b"], "network": name})
    assert written.difference <= 1e-4
    outputs = load_graph(written.classifier)([images.numpy()])
    np.testing.assert_allclose(outputs[0], predict(model, images), atol=1e-4)
    assert len(outputs) == (1 if name == "cnn" else 2)
    assert (written.decoder is not None) == (model.decoder is not None)
    if written.decoder is not None:
        assert written.decoder.name == "x-decoder.onnx"
        labels = np.array([1] * 10)
        (drawn,) = load_graph(written.decoder)([outputs[1], labels])
        wanted = model.reconstruct(torch.from_numpy(outputs[1]), torch.from_numpy(labels)).detach()
        np.testing.assert_allclose(drawn, wanted, atol=1e-4)
    stored = {entry.key: entry.value for entry in onnx.load(str(written.classifier)).metadata_props}
    assert json.loads(stored["classes"]) == ["ä", "b"]
    assert stored["network"] == name
    assert not list(tmp_path.glob("*.data"))


@pytest.mark.slow
def test_eight_bits_are_smaller_and_nearly_the_same(tmp_path: Path):
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 20, 20), 4, width=16, decoder=False).eval()
    images = torch.randint(256, (40, 1, 20, 20), dtype=torch.uint8)
    whole = export_onnx(model, tmp_path / "whole.onnx", images, metadata={}).classifier
    eight = export_onnx(model, tmp_path / "eight.onnx", images, metadata={}, int8=True, calibration=images).classifier
    assert eight.stat().st_size < 0.6 * whole.stat().st_size
    lengths = load_graph(eight)([images.numpy()])[0]
    assert 0 < np.abs(lengths - predict(model, images).numpy()).max() < 0.1
    labels = predict(model, images).argmax(dim=1)
    assert accuracy_of(whole, images, labels) == 1
    assert accuracy_of(whole, images, (labels + 1) % 4) == 0


def test_a_wrong_export_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = create_model("capsnet", (1, 12, 12), 3, width=8, decoder=False).eval()
    images = torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8)
    (tmp_path / "x.onnx").write_text("older")

    def wrong(file: Path) -> Any:
        right = load_graph(file)
        return lambda inputs: [output + 0.01 for output in right(inputs)]

    monkeypatch.setattr(module, "load_graph", wrong)
    with pytest.raises(ModelError, match=r"x\.onnx: differs from the network by 0\.01"):
        export_onnx(model, tmp_path / "x.onnx", images, metadata={})
    assert [path.read_text() for path in tmp_path.glob("*.*")] == ["older"]


def test_every_batch_size_is_compared():
    module = torch.nn.Identity()
    module.forward = lambda x: (x,)
    sizes = []

    def graph(inputs: Any) -> Any:
        sizes.append(len(inputs[0]))
        return inputs

    assert compare(graph, module, [torch.rand(5, 2)], "x") == 0
    assert sizes == [1, 3, 64]
    with pytest.raises(ModelError, match="instead of"):
        compare(lambda inputs: [inputs[0][:1]], module, [torch.rand(5, 2)], "x")
    with pytest.raises(ModelError, match="differs from the network by nan"):
        compare(lambda inputs: [inputs[0] * np.nan], module, [torch.rand(5, 2)], "x")


def test_without_its_libraries_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    model = create_model("capsnet", (1, 12, 12), 3, width=8)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'dualcaps\[export\]'"):
        export_onnx(model, tmp_path / "x.onnx", torch.zeros(1, 1, 12, 12, dtype=torch.uint8), metadata={})


def test_what_torch_cannot_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Constraints violated\nin many lines")

    monkeypatch.setattr("torch.onnx.export", fail)
    model = create_model("capsnet", (1, 12, 12), 3, width=8)
    with pytest.raises(
        ModelError, match=r"x\.onnx: torch .* cannot export this network \(Constraints violated\)"
    ) as caught:
        export_onnx(model, tmp_path / "x.onnx", torch.zeros(2, 1, 12, 12, dtype=torch.uint8), metadata={})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()
