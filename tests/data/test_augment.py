"""Augmentations by name: each one's own property, and mixup's blends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import Augmentation
from dualcaps.config import AUGMENTATIONS
from dualcaps.data.augment import augment, mix_up, parse_augmentation

IMAGEWISE = [name for name in AUGMENTATIONS if name != "mixup"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(name: str) -> Augmentation:
    how = parse_augmentation(name, flip=False)
    assert how is not None
    return how


@pytest.mark.parametrize("name", IMAGEWISE)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    count=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_shape_and_type_are_kept_and_draws_are_seeded(name: str, height, width, channels, count, seed):
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))
    before = images.clone()
    changed = augment(images, only(name), generator(seed))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(changed, augment(images, only(name), generator(seed)))


@pytest.mark.parametrize("name", IMAGEWISE)
def test_each_image_has_its_own_draw(name: str):
    image = torch.randint(256, (1, 3, 24, 20), dtype=torch.uint8, generator=generator())
    changed = augment(image.expand(40, -1, -1, -1), only(name), generator(1))
    distinct = len({one.numpy().tobytes() for one in changed})
    assert distinct == 2 if name == "flip" else distinct > 10


@pytest.mark.parametrize("name", ["shift", "crop", "flip", "rotate"])
def test_moving_a_uniform_image_changes_nothing(name: str):
    images = torch.full((20, 3, 17, 13), 90, dtype=torch.uint8)
    assert torch.equal(augment(images, only(name), generator()), images)


def test_a_crop_is_a_window_of_the_reflected_image():
    image = torch.randint(256, (1, 1, 16, 16), dtype=torch.uint8, generator=generator())
    padded = torch.nn.functional.pad(image.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)[0, 0]
    windows = {padded[y : y + 16, x : x + 16].numpy().tobytes() for y in range(5) for x in range(5)}
    found = {one.numpy().tobytes() for one in augment(image.expand(400, -1, -1, -1), only("crop"), generator())}
    assert found == windows


def test_rotation_keeps_the_centre_and_turns_up_to_15_degrees():
    image = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    image[..., 20, 20:] = 255  # a ray to the right
    turned = augment(image.expand(200, -1, -1, -1), only("rotate"), generator())[:, 0].float()
    assert (turned[:, 20, 20] > 100).all()
    rows = torch.arange(41.0)[None, :, None] - 20
    columns = torch.arange(41.0)[None, None, :] - 20
    far = turned * (columns > 12)
    degrees = torch.rad2deg(torch.atan2((far * rows).sum((1, 2)), (far * columns).sum((1, 2))))
    assert degrees.abs().max() < 16
    assert degrees.min() < -10
    assert degrees.max() > 10


def test_colours_are_scaled_by_up_to_30_percent():
    grey = torch.full((300, 1, 4, 4), 100, dtype=torch.uint8)
    values = augment(grey, only("colour"), generator())[:, 0, 0, 0].int()
    assert 69 <= values.min() < 78
    assert 122 < values.max() <= 131


def test_erasing_replaces_a_rectangle_in_about_half_of_the_images():
    images = torch.zeros(400, 1, 40, 40, dtype=torch.uint8)
    changed = augment(images, only("erase"), generator())[:, 0] > 0
    touched = changed.flatten(1).any(dim=1)
    assert 0.4 < touched.float().mean() < 0.6
    for mask in changed[touched]:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9  # a filled rectangle of noise
        assert 0.01 * 1600 < box.numel() < 0.26 * 1600


@given(seed=st.integers(0, 99), count=st.integers(1, 6))
def test_mixup_blends_images_and_labels_alike(seed: int, count: int):
    labels = torch.arange(count)
    images = torch.nn.functional.one_hot(labels, count).float()[:, None, None, :]  # an image is its own label
    mixed, soft = mix_up(images, labels, count, generator(seed))
    torch.testing.assert_close(mixed[:, 0, 0], soft)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(count))
    assert soft.min() >= 0


def test_names_are_combined():
    assert parse_augmentation("none", flip=True) is None
    assert parse_augmentation("policy", flip=True) == Augmentation(shift=0.1, flip=True)
    assert parse_augmentation("crop,mixup", flip=True) == Augmentation(shift=0.0, crop=True, mixup=True)
