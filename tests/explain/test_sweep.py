"""Dimension sweeps are what the decoder draws."""

import pytest
import torch

from dualcaps import ImageSplit, ModelError, create_model
from dualcaps.explain.sweep import across, around, seen_ranges, sweep, sweep_figure


def test_a_sweep_decodes_poses_with_one_dimension_replaced():
    torch.manual_seed(0)
    model = create_model("da-capsnet", (1, 12, 12), 3).eval()
    poses = model(torch.rand(1, 1, 12, 12)).poses[0].detach()
    values = around(poses, 1, steps=5)
    assert values.shape == (16, 5)
    torch.testing.assert_close(values[:, 2], poses[1])
    torch.testing.assert_close(values[:, 4] - values[:, 0], torch.full((16,), 0.5))
    images = sweep(model, poses, 1, values)
    assert images.shape == (16, 5, 1, 12, 12)
    for dim, step in ((0, 0), (7, 3), (15, 4)):
        changed = poses.clone()
        changed[1, dim] = values[dim, step]
        torch.testing.assert_close(images[dim, step], model.reconstruct(changed[None], torch.tensor([1]))[0])
    figure = sweep_figure(images, values, "a title")
    assert len(figure.axes) == 16 * 5
    assert figure.axes[0].get_ylabel().startswith("1: ")


def test_the_range_seen_is_that_of_the_class():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 12, 12), 3).eval()
    images, labels = torch.rand(60, 1, 12, 12), torch.arange(60) % 2
    found = seen_ranges(model, ImageSplit((images * 255).byte(), labels))
    assert found.shape == (3, 2, 16)
    poses, tails = model((images * 255).byte()).poses.detach(), torch.tensor([0.01, 0.99])
    torch.testing.assert_close(found[1], poses[labels == 1, 1].quantile(tails, dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[2], poses[:, 2].quantile(tails, dim=0), atol=1e-5, rtol=1e-4)
    values = across(found[1], steps=3)
    torch.testing.assert_close(values[:, [0, 2]].T, found[1])


def test_a_network_without_poses_or_decoder_is_named():
    split = ImageSplit(torch.zeros(2, 1, 12, 12, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ModelError, match="cnn has no poses"):
        seen_ranges(create_model("cnn", (1, 12, 12), 3), split)
    with pytest.raises(ModelError, match="no images"):
        seen_ranges(create_model("capsnet", (1, 12, 12), 3), ImageSplit(split.images[:0], split.labels[:0]))
    with pytest.raises(ModelError, match="no decoder"):
        sweep(create_model("capsnet", (1, 12, 12), 3, decoder=False), torch.rand(3, 16), 0, torch.rand(16, 2))
