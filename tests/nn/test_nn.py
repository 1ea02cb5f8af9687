"""Layers against the paper's equations, written out."""

from typing import TypeVar

import pytest
import torch

from dualcaps.nn import (
    CapsAttention,
    ConvAttention,
    Decoder,
    GridVotes,
    LayerStack,
    PositionVotes,
    crop_images,
    glorot_conv,
    standardise_images,
)
from dualcaps.routing import squash

IMAGES = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).reshape(2, 3, 5, 7)
Module = TypeVar("Module", bound=torch.nn.Module)


def randomised(module: Module) -> Module:
    """Biases too, which start at zero and would hide a mistake."""
    for number, parameter in enumerate(module.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
    return module


def test_the_centre_is_cropped_or_every_part_is_drawn_for_each_image():
    assert torch.equal(crop_images(IMAGES, (3, 3), random=False), IMAGES[:, :, 1:4, 2:5])
    parts = {IMAGES[1, :, top : top + 4, left : left + 6].numpy().tobytes() for top in (0, 1) for left in (0, 1)}
    torch.manual_seed(0)
    drawn = [crop_images(IMAGES, (4, 6), random=True) for _ in range(60)]
    assert {images[1].contiguous().numpy().tobytes() for images in drawn} == parts
    assert any(not torch.equal(images[0] + 105, images[1]) for images in drawn)  # not at one position for all


def test_standardised_images_have_mean_0_and_deviation_1_and_flat_ones_are_zero():
    images = torch.cat([IMAGES / 255, torch.full((1, 3, 5, 7), 0.4)])
    found = standardise_images(images)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(found[0], found[1])  # brightness and contrast are gone
    assert standardise_images(images.bfloat16()).dtype == torch.bfloat16


def test_conv_attention_is_equations_8_to_12():
    module = randomised(ConvAttention(4))
    features = torch.randn(2, 4, 3, 5)
    mean = features.sum(dim=(2, 3)) / 15
    hidden = (mean @ module.reduce.weight.T + module.reduce.bias).clamp_min(0)
    gate = torch.tanh(hidden @ module.expand.weight.T + module.expand.bias)
    torch.testing.assert_close(module(features), features + features * gate[:, :, None, None])


@pytest.mark.parametrize(
    ("kind", "inputs", "hidden", "outputs"), [("element", 24, 8, 24), ("capsule", 24, 6, 6), ("shared", 4, 4, 4)]
)
def test_caps_attention_is_equations_13_to_16_in_its_three_readings(kind, inputs, hidden, outputs):
    module = randomised(CapsAttention(kind, parents=2, children=3, dim=4))
    assert module.reduce.weight.shape == (hidden, inputs)
    assert module.expand.weight.shape == (outputs, hidden)
    votes = torch.randn(5, 2, 3, 4)
    vectors = votes if kind == "shared" else votes.reshape(5, 24)
    gate = torch.tanh(module.expand(module.reduce(vectors).clamp_min(0)))
    gate = gate.reshape(5, 2, 3, -1)
    torch.testing.assert_close(module(votes), votes + votes * gate)
    assert module.gate(votes).abs().max() <= 1


def test_a_sigmoid_gate_multiplies_without_a_residual_as_squeeze_and_excitation_does():
    conv = randomised(ConvAttention(4, "sigmoid"))
    features = torch.randn(2, 4, 3, 5)
    hidden = conv.reduce(features.mean(dim=(2, 3))).clamp_min(0)
    expected = features * torch.sigmoid(conv.expand(hidden))[:, :, None, None]
    torch.testing.assert_close(conv(features), expected)
    caps = randomised(CapsAttention("element", parents=2, children=3, dim=4, gate="sigmoid"))
    votes = torch.randn(5, 2, 3, 4)
    gate = torch.sigmoid(caps.expand(caps.reduce(votes.reshape(5, 24)).clamp_min(0)))
    torch.testing.assert_close(caps(votes), votes * gate.reshape(5, 2, 3, 4))


def test_an_additive_gate_adds_what_the_same_layers_answer():
    conv = randomised(ConvAttention(4, "additive"))
    features = torch.randn(2, 4, 3, 5)
    added = torch.tanh(conv.expand(conv.reduce(features.mean(dim=(2, 3))).clamp_min(0)))
    torch.testing.assert_close(conv(features), features + added[:, :, None, None])
    votes = torch.randn(5, 2, 3, 4)
    for kind in ("element", "capsule", "shared"):
        caps = randomised(CapsAttention(kind, parents=2, children=3, dim=4, gate="additive"))
        vectors = votes if kind == "shared" else votes.reshape(5, 24)
        added = torch.tanh(caps.expand(caps.reduce(vectors).clamp_min(0)))
        torch.testing.assert_close(caps(votes), votes + added.reshape(5, 2, 3, -1))
        tanh = CapsAttention(kind, parents=2, children=3, dim=4)
        assert [p.shape for p in caps.parameters()] == [p.shape for p in tanh.parameters()]


def test_a_child_is_the_channel_vector_at_its_grid_position():
    height, width, channels = 3, 4, 5
    votes_of = GridVotes(channels, parents=2, dim=6)
    features = torch.randn(1, channels, height, width)
    votes = votes_of(features)
    assert votes.shape == (1, 2, height * width, 6)
    for child in range(height * width):
        vector = features[0, :, child // width, child % width]
        expected = (votes_of.transform.weight @ vector).reshape(2, 6)
        torch.testing.assert_close(votes[0, :, child], expected)


def test_a_primary_capsule_is_a_group_of_channels_with_its_own_matrices():
    votes_of = PositionVotes(channels=6, positions=4, child_dim=3, parents=2, dim=5, squash_constant=1.0)
    features = torch.randn(1, 6, 2, 2)
    votes = votes_of(features)
    assert votes.shape == (1, 2, 8, 5)
    for row in range(2):
        for column in range(2):
            for kind in range(2):
                child = (row * 2 + column) * 2 + kind
                capsule = squash(features[0, 3 * kind : 3 * kind + 3, row, column], 1.0)
                expected = (capsule @ votes_of.transform[child]).reshape(2, 5)
                torch.testing.assert_close(votes[0, :, child], expected)


def test_the_decoder_sees_the_labelled_pose_alone():
    decoder = Decoder(parents=3, dim=4, image_shape=(2, 5, 6))
    poses = torch.randn(2, 3, 4)
    labels = torch.tensor([1, 2])
    drawn = decoder(poses, labels)
    assert drawn.shape == (2, 2, 5, 6)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    changed = poses.clone()
    changed[0, [0, 2]] = 7.0
    changed[1, [0, 1]] = 7.0
    torch.testing.assert_close(decoder(changed, labels), drawn)
    changed[0, 1] += 1
    assert not torch.allclose(decoder(changed, labels)[0], drawn[0])


def test_weights_start_glorot_uniform_and_biases_at_zero():
    module = CapsAttention("element", parents=5, children=20, dim=8)
    limit = (6 / (800 + 40)) ** 0.5
    for layer in (module.reduce, module.expand):
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.99 * limit
        assert layer.bias.eq(0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number_type", [torch.float32, torch.bfloat16])
def test_a_trunk_answers_the_same_with_and_without_gradients(channels: int, number_type: torch.dtype):
    layers = (
        glorot_conv(channels, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(2),
        glorot_conv(8, 4, 2),
        torch.nn.ReLU(),
    )
    trunk = LayerStack(*layers, glorot_conv(4, 4, 1, stride=2)).to(number_type)
    images = torch.rand(3, channels, 13, 15).to(number_type)
    with_gradients = trunk(images)
    assert with_gradients.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(trunk(images), with_gradients.detach(), atol=0.02, rtol=0.02)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(trunk(images).float(), with_gradients.detach().float(), atol=0.05, rtol=0.05)
