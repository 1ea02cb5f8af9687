"""The residual trunk, its primary capsules and the networks that are built of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import draw_shape

from dualcaps import ImageDataset, ModelConfig, ModelError, TrainConfig, count_parameters, create_model, fit, load_model
from dualcaps.bench import count_operations, estimate_operations
from dualcaps.losses import cross_entropy
from dualcaps.models import build_on_meta, describe
from dualcaps.nn import ConvAttention, PrimaryVotes
from dualcaps.nn.trunks.residual import ResidualGroup, ResidualTrunk, Whitening, residual_trunk

FAMILY = ("resnet-r", "capsnet-r", "capsnet-r-conv-att", "capsnet-r-caps-att", "da-capsnet-r")
SMALL: dict[str, Any] = {"width": 8, "num_classes": 3}


def correlated_images(count: int, channels: int, side: int) -> torch.Tensor:
    noise = torch.rand(count, channels, side + 2, side + 2)
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1).contiguous()


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_do_not_grow_with_the_images(name: str):
    counts = [
        count_parameters(build_on_meta(create_model(name, (3, side, side), 12).config)) for side in (32, 64, 128, 224)
    ]
    assert max(counts) <= 1.2 * min(counts)


@settings(max_examples=12, deadline=None)
@given(st.integers(3, 200), st.integers(3, 200), st.sampled_from([1, 3]), st.integers(1, 4))
def test_any_image_ends_in_the_same_grid(height: int, width: int, channels: int, grid: int):
    config = ModelConfig("x", (channels, height, width), 3, width=4)
    trunk = residual_trunk(config, grid).eval()
    with torch.inference_mode():
        assert trunk(torch.rand(1, channels, height, width)).shape == (1, 16, grid, grid)


def test_groups_halve_the_sides_and_round_up():
    group = ResidualGroup(3, 5).eval()
    assert group(torch.rand(2, 3, 7, 8)).shape == (2, 5, 4, 4)


def test_a_group_is_a_pooled_convolution_and_a_residual_block():
    group = ResidualGroup(3, 5).eval()
    for parameter in group.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images, gelu = torch.rand(2, 3, 6, 6), torch.nn.functional.gelu

    def norm(features: torch.Tensor, layer: Any) -> torch.Tensor:
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return features * scale[:, None, None] + layer.bias[:, None, None]

    def convolve(features: torch.Tensor, layer: Any) -> torch.Tensor:
        return torch.nn.functional.conv2d(features, layer.weight, padding=1)

    pooled = torch.nn.functional.max_pool2d(convolve(images, group.entry[0]), 2)
    entry = gelu(norm(pooled, group.entry[2][0]))  # pyright: ignore[reportIndexIssue]
    inner = gelu(norm(convolve(entry, group.inner[0]), group.inner[1][0]))  # pyright: ignore[reportIndexIssue]
    inner = norm(convolve(inner, group.inner[2]), group.norm)
    torch.testing.assert_close(group(images), gelu(entry + inner))


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (3, 2)])
def test_whitened_patches_are_centred_and_uncorrelated(channels: int, kernel: int):
    torch.manual_seed(0)
    layer, images = Whitening(channels, kernel), correlated_images(500, channels, 12)
    assert not layer.fitted
    layer.fit(images)
    assert layer.fitted
    size = channels * kernel**2
    values = layer(images).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values[size:], -values[:size])
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(2 * size), atol=1e-3, rtol=0)
    covariance = values[:size].cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 0.02
    assert (covariance.diag() <= 1.001).all()
    assert covariance.diag()[0] > 0.9  # smaller variances are damped
    assert (covariance.diag().diff() <= 1e-3).all()  # the largest component first


@pytest.mark.parametrize(("channels", "kernel"), [(3, 2), (2, 2)])
def test_components_without_variance_are_left_out(channels: int, kernel: int):
    torch.manual_seed(0)
    layer = Whitening(channels, kernel)
    layer.fit(correlated_images(500, 1, 12).expand(-1, channels, -1, -1))
    size, rank = channels * kernel**2, kernel**2
    values = layer(correlated_images(500, 1, 12).expand(-1, channels, -1, -1)).detach().transpose(0, 1).flatten(1)
    assert values.std(dim=1).min() > 0.5
    torch.testing.assert_close(values[rank : 2 * rank], values[:rank])
    assert values[:rank].T.unique(dim=1).shape[1] == rank
    layer.fit(torch.full((4, channels, 8, 8), 0.5))
    assert layer.weight.isfinite().all()
    assert layer.weight.any()
    assert len(layer.weight) == 2 * size


def test_grey_images_in_colour_have_the_gradients_of_grey_images():
    norms = []
    images = correlated_images(64, 1, 20)
    for channels in (1, 3):
        torch.manual_seed(0)
        model: Any = create_model("da-capsnet-r", (channels, 20, 20), **SMALL)
        shown = images.expand(-1, channels, -1, -1)
        model.trunk.initialise_from_data(shown)
        model.loss(model(shown), torch.arange(64) % 3).backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
    assert norms[1] < 10 * norms[0]


def test_whitening_is_fitted_once_by_training_and_kept(tmp_path: Path, no_pictures: None):
    random = np.random.default_rng(0)
    labels = np.arange(36) % 3
    images = np.stack([draw_shape(label, (12, 12), random) for label in labels])
    data = ImageDataset.from_arrays(images, labels, ["a", "b", "c"], name="shapes")
    config = TrainConfig(epochs=1, batch_size=9, device="cpu", augment="none")
    model: Any = create_model("da-capsnet-r", (1, 12, 12), 3, width=8)
    start = model.trunk.whitening.weight.clone()
    fit(model, data, config, out=tmp_path / "run", quiet=True)
    fitted = model.trunk.whitening.weight.clone()
    assert not torch.equal(start, fitted)
    expected = Whitening(1, 3)
    expected.fit(data.train.images / 255)
    torch.testing.assert_close(fitted, expected.weight)
    assert not torch.equal(model.trunk.whitening.bias, expected.bias)  # it is trained
    loaded: Any = load_model(tmp_path / "run")
    assert loaded.trunk.whitening.fitted
    assert torch.equal(loaded.trunk.whitening.weight, fitted)
    inverted = ImageDataset.from_arrays(255 - images, labels, ["a", "b", "c"], name="inverted")
    fit(loaded, inverted, config, out=tmp_path / "tuned", quiet=True)
    assert torch.equal(loaded.trunk.whitening.weight, fitted)


@pytest.mark.parametrize("name", FAMILY)
def test_conv_attention_follows_each_group(name: str):
    model: Any = create_model(name, (1, 16, 16), **SMALL)
    attentions = [layer for layer in model.modules() if isinstance(layer, ConvAttention)]
    assert isinstance(model.trunk, ResidualTrunk)
    assert len(attentions) == (3 if model.config.conv_attention else 0)
    assert describe(model.config) == f"{name}, width 8"
    assert describe(create_model(name, (1, 16, 16), 3).config) == name


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_reach_all_weights_but_the_whitening(name: str):
    model: Any = create_model(name, (3, 16, 16), **SMALL)
    output = model(torch.rand(4, 3, 16, 16))
    model.loss(output, torch.tensor([0, 1, 2, 0])).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["trunk.whitening.weight"]


def test_primary_votes_are_normalised_capsules_times_their_own_matrix():
    torch.manual_seed(0)
    votes = PrimaryVotes(channels=6, positions=4, parents=3, dim=5, types=2, child_dim=4)
    torch.nn.init.normal_(votes.norm.weight)
    torch.nn.init.normal_(votes.norm.bias)
    features = torch.randn(2, 6, 2, 2)
    found = votes(features)
    assert found.shape == (2, 3, 8, 5)
    for row in range(2):
        for column in range(2):
            capsules = votes.primary.weight @ features[1, :, row, column] + votes.primary.bias
            for kind in range(2):
                capsule = capsules[4 * kind : 4 * kind + 4]
                capsule = (capsule - capsule.mean()) / (capsule.var(unbiased=False) + votes.norm.eps).sqrt()
                capsule = capsule * votes.norm.weight + votes.norm.bias
                child = (row * 2 + column) * 2 + kind
                expected = (capsule @ votes.transform[child]).view(3, 5)
                torch.testing.assert_close(found[1, :, child], expected)


def test_caps_attention_has_a_narrow_middle():
    model: Any = create_model("da-capsnet-r", (1, 16, 16), **SMALL)
    children = 2 * 2 * 32
    assert model.caps_attention.reduce.weight.shape == (32, 3 * children * 16)
    assert model.caps_attention.expand.weight.shape == (3 * children, 32)
    wider: Any = create_model("da-capsnet-r", (1, 16, 16), **SMALL, attention_width=40)
    assert wider.caps_attention.reduce.weight.shape[0] == 40
    assert describe(wider.config) == "da-capsnet-r, width 8, attention_width 40"


def test_a_linear_read_out_is_shared_by_the_classes_and_trained_with_cross_entropy():
    torch.manual_seed(0)
    model: Any = create_model("da-capsnet-r", (1, 16, 16), **SMALL, readout="linear", decoder=True).eval()
    output = model(torch.rand(4, 1, 16, 16))
    expected = (output.poses @ model.readout.weight[0] + model.readout.bias).softmax(dim=1)
    torch.testing.assert_close(output.lengths, expected)
    labels = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(model.loss(output, labels), cross_entropy(expected, labels))
    predicted = output.lengths.argmax(dim=1)
    torch.testing.assert_close(model.reconstruct(output.poses), model.reconstruct(output.poses, predicted))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"readout": "softmax"}, "readout must be one of length, linear, got 'softmax'"),
        ({"attention_width": 0}, "attention_width must be a whole number of at least 1, got 0"),
        ({"grid": 0}, "grid must be a whole number of at least 1, got 0"),
        ({"gird": 3}, "did you mean 'grid'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str):
    with pytest.raises(ModelError, match=said):
        create_model("da-capsnet-r", **options)


@pytest.mark.parametrize("name", ["resnet-r", "da-capsnet-r"])
def test_the_estimate_of_operations_is_near_their_count(name: str):
    config = create_model(name, (3, 64, 64), 10, width=16).config
    assert estimate_operations(build_on_meta(config)) == pytest.approx(count_operations(config), rel=0.1)
