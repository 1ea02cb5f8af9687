"""timm's backbones as trunks, with timm itself."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from dualcaps import ModelError, create_model, load_model

from ..cli.messages import assert_one_line


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    """The library; beside a CPU build of torch, PyPI's torchvision is imported only once its operators are declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(20):
        try:
            return pytest.importorskip("timm")
        except RuntimeError as error:
            if (missing := re.search(r"operator torchvision::(\w+) does not exist", str(error))) is None:
                raise
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
                del sys.modules[name]
    raise AssertionError("torchvision cannot be imported")


@pytest.mark.parametrize(("backbone", "shape"), [("resnet18", (3, 64, 64)), ("convnext_atto", (1, 40, 56))])
def test_a_backbone_is_a_trunk(timm: ModuleType, backbone: str, shape: tuple[int, int, int]):
    model = create_model("da-capsnet", shape, 3, trunk=f"timm:{backbone}", caps_attention="shared", decoder=False)
    found = model(torch.zeros(2, *shape), intermediates=True)
    assert found.lengths.shape == (2, 3)
    assert min(found.features.shape[2:]) >= 4  # the deepest stage that leaves some positions
    found.lengths.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # no layers after that stage


def test_pretrained_weights_come_from_a_local_file(timm: ModuleType, tmp_path: Path):
    torch.manual_seed(0)
    pretrained = timm.create_model("resnet18", pretrained=False)
    safetensors.torch.save_file(pretrained.state_dict(), tmp_path / "resnet18.safetensors")
    torch.manual_seed(1)
    options: dict[str, Any] = {"trunk": "timm:resnet18", "trunk_weights": str(tmp_path / "resnet18.safetensors")}
    with pytest.warns(UserWarning, match=r"(\d+) of the trunk's \1 tensors loaded from .*resnet18\.safetensors$"):
        model: Any = create_model("capsnet", (3, 64, 64), 3, **options)
    torch.testing.assert_close(model.trunk.backbone.layer2[0].conv1.weight, pretrained.layer2[0].conv1.weight)
    torch.testing.assert_close(model.trunk.backbone.bn1.running_mean, pretrained.bn1.running_mean)
    with pytest.warns(UserWarning, match=r"initialised: conv1\.weight$"):
        grey: Any = create_model("capsnet", (1, 64, 64), 3, **options)
    torch.testing.assert_close(grey.trunk.backbone.layer1[0].conv1.weight, pretrained.layer1[0].conv1.weight)


def test_a_network_on_a_backbone_is_trained_and_loaded(timm: ModuleType, run_cli: Callable, shapes: Path):
    options = ("--trunk", "timm:resnet18", "--options", "stage=1", "--image-size", 32, 32, "--no-decoder")
    said = run_cli("train", shapes, "--model", "capsnet", *options, "--epochs", 1, "--out", "run")
    assert said.code == 0, said.err
    assert load_model("run").trunk.stage == 1
    assert run_cli("evaluate", "run").out.startswith("accuracy ")


def test_unknown_backbones_stages_and_weights_are_one_line(timm: ModuleType, run_cli: Callable, tmp_path: Path):
    train = ("train", "digits", "--model", "capsnet", "--trunk")
    assert_one_line(run_cli(*train, "timm:resnet19"), "--trunk timm:resnet19")
    assert_one_line(run_cli(*train, "timm:resnet18", "--options", "stage=9"), "has stages 0 to 4, got 9")
    missing = tmp_path / "none.safetensors"
    assert_one_line(run_cli(*train, "timm:resnet18", "--trunk-weights", missing), str(missing))
    (tmp_path / "other.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    said = run_cli(*train, "timm:resnet18", "--trunk-weights", tmp_path / "other.safetensors")
    assert_one_line(said, "none of its 1 tensors fits")


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("operator torchvision::nms does not exist")])
def test_without_a_timm_that_can_be_imported_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception):
    class Refused:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "timm":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refused(), *sys.meta_path])
    with pytest.raises(ModelError, match=r"timm:resnet18 needs timm.*pip install 'dualcaps\[timm\]'"):
        create_model("capsnet", (3, 64, 64), 3, trunk="timm:resnet18")
