"""Maps of images: they mark what the class depends on, and lie where it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from dualcaps import ConfigError, ModelError, Network, create_model, wrap_module
from dualcaps.explain.credit import credit
from dualcaps.explain.maps import MAPS, explain
from dualcaps.registry import TRUNKS, register_trunk


@pytest.fixture
def linear_trunk() -> Iterator[str]:
    """A trunk without biases and activations."""
    name = "linear-for-maps"
    register_trunk(name)(lambda config: nn.Conv2d(config.image_shape[0], 16, 4, stride=4, bias=False))
    yield name
    del TRUNKS[name]


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", ["capsnet", "da-capsnet", "da-capsnet-r", "sabour-capsnet"])
def test_every_kind_maps_every_network_and_changes_nothing(kind: str, name: str):
    torch.manual_seed(0)
    model: Any = create_model(name, (1, 28, 28), 3)
    images, classes = torch.rand(2, 1, 28, 28), torch.tensor([0, 2])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = explain(model, images, classes, kind)
    assert found.shape == (2, 28, 28)
    assert found.isfinite().all()
    assert found.std() > 0
    assert not found.requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_network_without_the_part_is_refused_and_so_is_an_unknown_kind():
    model = create_model("cnn", (1, 16, 16), 3)
    images, classes = torch.rand(1, 1, 16, 16), torch.tensor([0])
    for kind in ("gradient", "smoothgrad", "grad-cam", "random"):
        assert explain(model, images, classes, kind).shape == (1, 16, 16)
    with pytest.raises(ModelError, match="cnn has no capsules"):
        explain(model, images, classes, "credit")
    linear = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), (1, 16, 16), 3)
    with pytest.raises(ModelError, match="no feature map"):
        explain(linear, images, classes, "grad-cam")
    with pytest.raises(ConfigError, match="unknown map 'gradcam': did you mean 'grad-cam'"):
        explain(model, images, classes, "gradcam")


def test_gradients_mark_the_pixels_that_the_class_depends_on():
    weights = torch.zeros(2, 64)
    weights[1, 20], weights[1, 43] = 5.0, -3.0
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data = weights
    model = wrap_module(nn.Sequential(nn.Flatten(), layer), (1, 8, 8), 2)
    images = torch.rand(3, 1, 8, 8)
    for kind in ("gradient", "smoothgrad"):
        found = explain(model, images, torch.ones(3, dtype=torch.long), kind).flatten(1)
        assert found[:, [20, 43]].min() > 0
        assert found.count_nonzero() == 6
        assert (found[:, 20] > found[:, 43]).all()


@pytest.mark.parametrize("name", ["capsnet", "da-capsnet"])
def test_pixel_credit_is_complete_on_a_linear_trunk(linear_trunk: str, name: str):
    torch.manual_seed(0)
    model: Network = create_model(name, (1, 16, 16), 3, trunk=linear_trunk, decoder=False).double().eval()
    images, classes = torch.rand(2, 1, 16, 16, dtype=torch.float64), torch.tensor([1, 2])
    found = explain(model, images, classes, "pixel-credit").sum(dim=(1, 2))
    torch.testing.assert_close(found, credit(model, images).lengths[[0, 1], classes], atol=1e-10, rtol=0)


def test_a_map_of_a_crop_lies_in_the_crop():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 28, 30), 3, crop=(16, 16))
    found = explain(model, torch.rand(1, 1, 28, 30), torch.tensor([0]), "couplings")
    assert found.shape == (1, 28, 30)
    assert (found[0, 6:22, 7:23] > 0).all()
    assert found.count_nonzero() == 16 * 16
