"""Credit is complete, and what it is computed from is what the network routes."""

from typing import Any

import pytest
import torch

from dualcaps import ModelError, create_model
from dualcaps.explain.credit import capsule_parts, constant_gates, credit, on_grid

NETWORKS: dict[str, dict[str, Any]] = {
    "capsnet": {},
    "da-capsnet": {},
    "sabour-capsnet": {},
    "da-capsnet-r": {},
    "uniform": {"name": "da-capsnet", "routing": "uniform"},
}


def network(which: str) -> Any:
    torch.manual_seed(0)
    size = 28 if which == "sabour-capsnet" else 16
    return create_model(**{"name": which, "image_shape": (1, size, size), "num_classes": 4} | NETWORKS[which])


@pytest.mark.parametrize("which", ["capsnet", "da-capsnet", "sabour-capsnet", "da-capsnet-r", "uniform"])
def test_the_shares_add_up_to_the_length_before_the_squash(which: str):
    model = network(which).double().eval()
    images = torch.rand(3, *model.config.image_shape, dtype=torch.float64)
    found = credit(model, images)
    torch.testing.assert_close(found.shares.sum(dim=2), found.lengths, atol=1e-10, rtol=0)
    poses = model(images).poses
    square = found.lengths.square()
    squashed = square / (model.config.squash_constant + square)
    torch.testing.assert_close(poses.norm(dim=-1), squashed, atol=1e-5, rtol=1e-5)


def test_a_share_is_the_coupled_vote_along_the_pose():
    model = network("da-capsnet").double().eval()
    images = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    parts, found = model(images, intermediates=True), credit(model, images)
    for image in range(2):
        for parent in range(4):
            pose = parts.poses[image, parent]
            for child in range(0, model.num_children, 5):
                vote, coupling = parts.gated_votes[image, parent, child], parts.couplings[image, parent, child]
                expected = (coupling * (vote @ pose) / pose.norm()).item()
                assert found.shares[image, parent, child].item() == pytest.approx(expected, abs=1e-6)


def test_capsules_of_a_position_are_summed():
    model = network("da-capsnet-r").eval()
    images = torch.rand(2, 1, 16, 16)
    parts, found = model(images, intermediates=True), credit(model, images)
    rows, columns = parts.features.shape[2:]
    grid = on_grid(found.shares, parts.features)
    assert grid.shape == (2, 4, rows, columns)
    types = model.num_children // (rows * columns)
    assert types > 1
    torch.testing.assert_close(grid[:, :, 0, 1], found.shares[:, :, types : 2 * types].sum(dim=2))


def test_where_there_is_nothing_to_share_it_says_so():
    with pytest.raises(ModelError, match="cnn has no capsules"):
        credit(create_model("cnn", (1, 16, 16), 4), torch.rand(1, 1, 16, 16))
    model = network("capsnet")
    assert model.training
    capsule_parts(model, torch.rand(1, 1, 16, 16))
    assert model.training


def test_constant_gates_pass_no_gradient_and_are_restored():
    model = network("da-capsnet").eval()
    images = torch.rand(2, 1, 16, 16)
    before = model(images).lengths
    with constant_gates(model):
        torch.testing.assert_close(model(images).lengths, before)
        model(images).lengths.sum().backward()
    assert model.caps_attention.reduce.weight.grad is None
    assert model.conv_attention.reduce.weight.grad is None
    assert model.votes.transform.weight.grad is not None
    model(images).lengths.sum().backward()
    assert model.caps_attention.reduce.weight.grad is not None
