"""Corruptions: each image by its own draw, worse with each severity, the same for the same seed."""

import numpy as np
import pytest
import torch

from dualcaps import ConfigError
from dualcaps.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt

each = pytest.mark.parametrize("name", CORRUPTIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(channels: int, side: int = 28) -> torch.Tensor:
    """A bright cross on a dark ground, with some texture."""
    images = torch.full((6, channels, side, side), 30, dtype=torch.uint8)
    images[:, :, side // 3 : side // 2] = 220
    images[:, :, :, side // 3 : side // 2] = 190
    return images + torch.randint(0, 30, images.shape, generator=generator(9), dtype=torch.uint8)


@each
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shape_and_type_are_kept_and_the_input_is_not_changed(name: str, channels: int):
    images = pictures(channels)
    before = images.clone()
    for severity in SEVERITIES:
        changed = corrupt(images, name, severity, generator())
        assert changed.dtype == torch.uint8
        assert changed.shape == images.shape
        assert not torch.equal(changed, images)
    assert torch.equal(images, before)


@each
def test_the_last_severity_changes_more_than_the_first(name: str):
    images = pictures(1)
    changes = [
        (corrupt(images, name, severity, generator()).float() - images.float()).square().mean() for severity in (1, 5)
    ]
    assert changes[0] < changes[1]


@each
def test_the_seed_decides_and_images_do_not_depend_on_the_batch(name: str):
    images = pictures(3)
    first = corrupt(images, name, 3, generator())
    assert torch.equal(first, corrupt(images, name, 3, generator()))
    random = not torch.equal(first, corrupt(images, name, 3, generator(1)))
    assert random == (name in ("gaussian noise", "shot noise", "impulse noise", "motion blur", "spatter", "zigzag"))
    if random:  # the same picture twice is changed in two ways
        twice = corrupt(images[:1].repeat(2, 1, 1, 1), name, 5, generator(2))
        assert not torch.equal(twice[0], twice[1])
    else:
        assert torch.equal(corrupt(images[2:3], name, 3, generator()), first[2:3])


def test_noise_has_the_published_strength():
    grey = torch.full((4, 1, 200, 200), 128, dtype=torch.uint8)
    noisy = corrupt(grey, "gaussian noise", 1, generator()).float() / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)
    photons = corrupt(grey, "shot noise", 3, generator()).float() / 255
    assert photons.var() == pytest.approx(128 / 255 / 12, rel=0.05)
    impulses = corrupt(grey, "impulse noise", 5, generator())
    assert (impulses == 0).float().mean() == pytest.approx(0.135, rel=0.05)
    assert (impulses == 255).float().mean() == pytest.approx(0.135, rel=0.05)


def test_brightness_contrast_and_stripes_are_exact():
    images = pictures(1)
    assert torch.equal(corrupt(images, "brightness", 2, generator()), (images.int() + 51).clamp(max=255).byte())
    flat = corrupt(images, "contrast", 5, generator()).float()
    assert flat.std() == pytest.approx(0.05 * float(images.float().std()), rel=0.1)
    assert flat.mean() == pytest.approx(float(images.float().mean()), abs=1)
    striped = corrupt(images, "stripe", 3, generator())
    assert torch.equal(striped[..., 6:22], images[..., 6:22])
    assert torch.equal(striped[..., :6], 255 - images[..., :6])
    assert torch.equal(striped[..., 22:], 255 - images[..., 22:])


def test_a_blur_spreads_a_point_as_far_as_it_says_at_any_size():
    for side in (56, 140):
        point = torch.zeros(1, 1, side, side, dtype=torch.uint8)
        point[..., side // 2 - side // 56 : side // 2 + side // 56, side // 2 - side // 56 : side // 2 + side // 56] = (
            255
        )
        blurred = corrupt(point, "gaussian blur", 2, generator())[0, 0].double()
        across = blurred.sum(dim=0) / blurred.sum()
        place = torch.arange(side).double()
        variance = (across * (place - (across * place).sum()).square()).sum()
        assert float(variance.sqrt()) / side == pytest.approx(2 / 28, rel=0.15)


def test_pixelated_images_have_few_values():
    changed = corrupt(
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 28, 28), np.uint8)),
        "pixelate",
        5,
        generator(),
    )
    assert len(changed.unique()) <= 7 * 7


def test_unknown_names_and_severities_are_refused():
    with pytest.raises(ConfigError, match="unknown corruption 'fog'"):
        corrupt(pictures(1), "fog", 1, generator())
    with pytest.raises(ConfigError, match="severity must be from 1 to 5, got 6"):
        corrupt(pictures(1), "jpeg", 6, generator())
