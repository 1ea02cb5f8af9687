"""timm's backbones as trunks, with timm itself."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from cli.messages import assert_one_line
from support import import_timm

from dualcaps import ModelError, create_model, load_model
from dualcaps.runs.run import Run


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    return import_timm()


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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["capsnet", "da-capsnet"])
def test_a_network_on_a_backbone_learns(timm: ModuleType, model: str, run_cli: Callable):
    options = ("--trunk", "timm:resnet18", "--model", model, "--no-decoder", "--lr", 0.002)
    said = run_cli("train", "digits", *options, "--epochs", 6, "--out", "run")
    assert said.code == 0, said.err
    assert Run.open(Path("run")).result["test_accuracy"] > 0.8  # 0.1 where all lengths start close to 1


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


def test_images_are_standardised_as_for_the_pretrained_weights(timm: ModuleType):
    trunk: Any = create_model("capsnet", (3, 64, 64), 3, trunk="timm:resnet18").trunk.eval()
    images = torch.rand(2, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    expected = trunk.backbone((images - mean) / deviation)[0]
    torch.testing.assert_close(trunk(images), expected)
    grey: Any = create_model("capsnet", (1, 64, 64), 3, trunk="timm:resnet18").trunk
    assert grey.mean.flatten().tolist() == pytest.approx([0.449], abs=1e-3)


def test_a_feature_map_can_be_averaged_to_a_grid(timm: ModuleType):
    plain: Any = create_model("capsnet", (3, 96, 96), 3, trunk="timm:resnet18").trunk.eval()
    pooled: Any = create_model("capsnet", (3, 96, 96), 3, trunk="timm:resnet18", grid=2).trunk.eval()
    pooled.backbone.load_state_dict(plain.backbone.state_dict())
    images = torch.rand(2, 3, 96, 96)
    expected = torch.nn.functional.adaptive_avg_pool2d(plain(images), 2)
    torch.testing.assert_close(pooled(images), expected)
    with pytest.raises(ModelError, match="grid must be a whole number"):
        create_model("capsnet", (3, 96, 96), 3, trunk="timm:resnet18", grid=0)


def test_photos_takes_a_pretrained_trunk_that_is_in_the_cache(
    timm: ModuleType, run_cli: Callable, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc", encoding="utf-8")
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    train = ("train", shapes, "--epochs", 1, "--batch-size", 8, "--image-size", 64, 64)
    said = run_cli(*train, "--out", "run")
    assert said.code == 0, said.err
    assert "trunk timm:resnet18.a1_in1k, pretrained" in said.err
    assert "tensors loaded from" in said.err
    config = Run.open(Path("run"))
    assert (config.model.trunk, config.training.lr) == ("timm:resnet18.a1_in1k", 0.02)
    assert "pretrained" not in run_cli(*train, "--trunk", "residual", "--width", 4, "--out", "scratch").err
