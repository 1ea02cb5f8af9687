"""Each augmentation by name: what it may change, how often, and that every image has its own draw."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import draw_shape
from torch.nn import functional

from dualcaps import Augmentation, ConfigError, ImageDataset, ImageSplit, TrainConfig, create_model, fit
from dualcaps.config import AUGMENTATIONS
from dualcaps.data.augment import augment, mix_up, overlap, parse_augmentation
from dualcaps.data.augment import test_time_views as time_views
from dualcaps.data.batches import training_batches

OF_PIXELS = [name for name in AUGMENTATIONS if name not in ("mixup", "overlap")]

named = pytest.mark.parametrize("name", OF_PIXELS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(name: str) -> Augmentation:
    how = parse_augmentation(name, flip=False)
    assert how is not None
    return how


def change(name: str, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment(images, only(name), generator(seed))


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(99))


def constant(value: int, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_policy_can_be_joined_with_names(flip: bool):
    assert parse_augmentation("policy,erase", flip) == Augmentation(flip=flip, erase=True)
    assert parse_augmentation("policy", flip) == Augmentation(flip=flip)


def test_names_are_parsed_to_what_they_say():
    for name in AUGMENTATIONS:
        how = only(name)
        fields = {field.name: bool(getattr(how, field.name)) for field in dataclasses.fields(how)}
        assert fields == {other: other == name for other in AUGMENTATIONS}
    assert parse_augmentation("shift,flip", flip=False) == Augmentation(shift=0.1, flip=True)
    assert parse_augmentation("crop", flip=True) == Augmentation(shift=0.0, crop=True)  # a name says it all
    assert parse_augmentation("policy", flip=True) == Augmentation(shift=0.1, flip=True)
    assert parse_augmentation("policy", flip=False) == Augmentation(shift=0.1)
    assert parse_augmentation("paper-literal", flip=False) == Augmentation(shift=0.1, flip=True)
    assert parse_augmentation("none", flip=True) is None


@pytest.mark.parametrize("names", ["mirror", "shift,mirror", "Flip", "flip;crop", "none,flip", "shift,"])
def test_an_unknown_name_is_refused_and_the_known_ones_listed(names: str):
    with pytest.raises(ConfigError, match="is not one of policy, paper-literal, none") as caught:
        TrainConfig(augment=names)
    assert all(name in str(caught.value) for name in AUGMENTATIONS)
    assert "\n" not in str(caught.value)


@named
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), channels=st.sampled_from([1, 3]), count=st.integers(1, 5),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_shape_and_type_are_kept_and_the_generator_decides(name: str, height, width, channels, count, seed):
    images = noise(count, channels, height, width)
    before = images.clone()
    changed = change(name, images, seed)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, change(name, images, seed))
    assert torch.equal(images, before)


@named
def test_every_image_has_its_own_draw(name: str):
    one = noise(1, 3, 16, 20)
    changed = change(name, one.expand(64, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in changed}) >= (2 if name == "flip" else 15)
    assert not torch.equal(changed, change(name, one.expand(64, -1, -1, -1), seed=1))


def test_half_of_the_images_are_mirrored_and_the_others_left():
    images = noise(400, 1, 6, 7)
    changed = change("flip", images)
    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    assert torch.equal(changed[~mirrored], images[~mirrored])
    assert 0.4 < mirrored.float().mean() < 0.6


@named
@pytest.mark.parametrize("value", [0, 100, 255])
def test_nothing_appears_at_the_edges_of_an_even_image(name: str, value: int):
    images = constant(value, 30, 3, 11, 16)
    changed = change(name, images)
    if name in ("colour", "erase"):
        return
    assert torch.equal(changed, images)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 16), (5, 2)])
def test_a_crop_is_any_window_of_the_image_reflected_by_an_eighth(height: int, width: int):
    image = noise(1, 3, height, width)
    down, across = max(1, round(height / 8)), max(1, round(width / 8))
    wide = np.pad(image[0].numpy(), ((0, 0), (down, down), (across, across)), mode="reflect")
    windows = {
        wide[:, top : top + height, left : left + width].tobytes()
        for top in range(2 * down + 1)
        for left in range(2 * across + 1)
    }
    changed = change("crop", image.expand(600, -1, -1, -1))
    assert {one.numpy().tobytes() for one in changed} == windows


def ring(height: int, width: int) -> torch.Tensor:
    """A picture that looks the same however it is turned about its centre."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    return torch.from_numpy((127 + 120 * np.cos(distance / 3)).astype(np.uint8))[None, None]


@pytest.mark.parametrize(("height", "width"), [(41, 41), (40, 40), (24, 60), (60, 24)])
def test_a_ring_turned_is_the_same_ring_and_other_pictures_are_not(height: int, width: int):
    image = ring(height, width)
    turned = change("rotate", image.expand(20, -1, -1, -1))
    # Corners come from outside, where the edge is repeated.
    rows, columns = np.mgrid[:height, :width]
    inside = torch.from_numpy(np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) < min(height, width) / 2 - 1)
    difference = (turned.float() - image.float()).abs()[:, 0, inside]
    assert difference.mean() < 2
    assert difference.max() < 12
    stripes = (torch.arange(width) % 8 < 4).to(torch.uint8).mul(255).expand(1, 1, height, width)
    assert (change("rotate", stripes.expand(20, -1, -1, -1)).float() - stripes.float()).abs().mean() > 10


def test_the_angle_is_at_most_15_degrees_to_either_side():
    image = torch.zeros(1, 1, 101, 101, dtype=torch.uint8)
    image[..., 50, 51:] = 255  # a hand that points to the right
    turned = change("rotate", image.expand(300, -1, -1, -1))[:, 0].double()
    rows, columns = torch.meshgrid(torch.arange(101.0) - 50, torch.arange(101.0) - 50, indexing="ij")
    weights = turned * (columns > 20)
    angles = torch.atan2((weights * rows).sum(dim=(1, 2)), (weights * columns).sum(dim=(1, 2))).rad2deg()
    assert angles.abs().max() < 15.5
    assert angles.min() < -12
    assert angles.max() > 12
    assert angles.mean().abs() < 2


def test_colour_multiplies_brightness_by_0_7_to_1_3():
    levels = change("colour", constant(100, 500, 1, 4, 4)).flatten(1)
    assert (levels == levels[:, :1]).all()
    assert 70 <= levels.min() < 75
    assert 125 < levels.max() <= 130


def test_colour_multiplies_contrast_by_0_7_to_1_3():
    halves = constant(60, 500, 1, 4, 4)
    halves[..., 2:] = 120
    changed = change("colour", halves).double()
    brightness = changed.mean(dim=(1, 2, 3)) / 90
    contrast = (changed[:, 0, 0, 3] - changed[:, 0, 0, 0]) / (60 * brightness)
    assert 0.67 < contrast.min() < 0.75
    assert 1.25 < contrast.max() < 1.33
    assert torch.corrcoef(torch.stack([brightness, contrast]))[0, 1].abs() < 0.2


def test_colour_changes_saturation_but_leaves_grey_grey():
    grey = noise(50, 1, 4, 4).expand(-1, 3, -1, -1).contiguous()
    changed = change("colour", grey)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])
    blue = torch.tensor([80, 100, 140], dtype=torch.uint8)[None, :, None, None].expand(400, 3, 2, 2).contiguous()
    changed = change("colour", blue).double()[:, :, 0, 0]
    spread = (changed[:, 2] - changed[:, 0]) / changed.mean(dim=1)
    assert spread.max() / spread.min() > 1.6


def test_an_erased_rectangle_covers_2_to_20_percent_of_half_of_the_images():
    side = 60
    images = noise(600, 3, side, side)
    different = (change("erase", images) != images).any(dim=1)
    touched = different.flatten(1).any(dim=1)
    assert 0.42 < touched.float().mean() < 0.58
    places = set()
    for one in different[touched]:
        rows, columns = (one.any(dim=axis).nonzero().ravel() for axis in (1, 0))
        height, width = (int(line[-1] - line[0]) + 1 for line in (rows, columns))
        places.add((int(rows[0]), int(columns[0])))
        # A border of a pixel more or less, as the rectangle need not begin at a pixel.
        assert (height - 1) * (width - 1) <= 0.2 * side**2
        assert (height + 1) * (width + 1) >= 0.02 * side**2
        assert 0.3 * (width - 1) <= height + 1
        assert 0.3 * (height - 1) <= width + 1
        assert one.float().mean() * side**2 > 0.95 * height * width  # all of it is noise
    assert len(places) > 200


def test_mixup_blends_pixels_and_labels_by_the_same_share():
    classes, count = 5, 64
    labels = torch.arange(count) % classes
    level = labels.float() / (classes - 1)
    images = level[:, None, None, None].expand(count, 3, 4, 6).contiguous()
    mixed, soft = mix_up(images, labels, classes, generator())
    assert mixed.shape == images.shape
    assert soft.shape == (count, classes)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(count))
    assert (soft >= 0).all()
    expected = (soft * torch.arange(classes) / (classes - 1)).sum(dim=1)
    torch.testing.assert_close(mixed, expected[:, None, None, None].expand_as(mixed))
    assert (soft[torch.arange(count), labels] > 0).all()
    assert ((soft > 0).sum(dim=1) == 2).float().mean() > 0.5
    shares = soft.max(dim=1).values
    assert shares.std() > 0.05  # each pair has a share of its own
    again = mix_up(images, labels, classes, generator())
    assert torch.equal(mixed, again[0])
    assert torch.equal(soft, again[1])


def test_batches_with_mixup_have_floats_and_soft_labels():
    labels = torch.arange(20) % 3
    split = ImageSplit(labels.to(torch.uint8).mul(100)[:, None, None, None].expand(20, 1, 4, 4).contiguous(), labels)
    for images, soft, *_ in training_batches(split, 8, only("mixup"), generator(), 3):
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 200 / 255
        torch.testing.assert_close(images[:, 0, 0, 0], soft @ torch.tensor([0, 100 / 255, 200 / 255]))


def test_shift_can_be_given_an_amount():
    assert parse_augmentation("shift=0.15,flip", flip=False) == Augmentation(shift=0.15, flip=True)
    assert parse_augmentation("policy,shift=.25", flip=True) == Augmentation(shift=0.25, flip=True)
    images = constant(0, 200, 1, 20, 20)
    images[:, :, 10, 10] = 255
    moved = augment(images, Augmentation(shift=0.25), generator())
    rows = moved.flatten(1).argmax(dim=1) // 20
    assert (rows.min(), rows.max()) == (5, 15)


@pytest.mark.parametrize(
    "names", ["shift=1", "shift=1.5", "shift=-0.1", "shift=", "shift=nan", "flip=0.1", "shift=0.1x"]
)
def test_other_amounts_are_refused(names: str):
    with pytest.raises(ConfigError, match="is not one of policy"):
        TrainConfig(augment=names)


def test_overlapping_images_are_the_sum_of_two_classes():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    images = noise(6, 1, 5, 4)
    merged, present, parts = overlap(images, labels, 4, generator())
    assert torch.equal(parts.images[:, 0], images)
    assert torch.equal(parts.labels[:, 0], labels)
    assert (parts.labels[:, 1] != labels).all()
    assert torch.equal(merged.int(), parts.images.int().sum(dim=1).clamp(max=255))
    assert torch.equal(present, torch.stack([torch.isin(torch.arange(4), pair).float() for pair in parts.labels]))
    for image, label in zip(parts.images[:, 1], parts.labels[:, 1], strict=True):
        assert any(torch.equal(image, other) for other in images[labels == label])
    partners = {tuple(overlap(images, labels, 4, generator(seed))[2].labels[:, 1].tolist()) for seed in range(20)}
    assert len(partners) > 5


def test_an_image_without_another_class_in_its_batch_is_left_alone():
    images = noise(3, 1, 5, 4)
    merged, present, parts = overlap(images, torch.tensor([1, 1, 1]), 2, generator())
    assert torch.equal(merged, images)
    assert present.tolist() == [[0, 1]] * 3
    assert not parts.images[:, 1].any()


def test_mixup_and_overlap_are_not_combined():
    with pytest.raises(ConfigError, match="mixup and overlap"):
        TrainConfig(augment="mixup,overlap")


ALL_BUT_OVERLAP = ",".join(name for name in AUGMENTATIONS if name != "overlap")


@pytest.mark.parametrize("names", [ALL_BUT_OVERLAP, "mixup", "shift,overlap"])
def test_a_network_is_trained_on_augmented_images(names: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualcaps.training.callbacks.png", lambda figure: b"")
    random = np.random.default_rng(0)
    images = np.stack([draw_shape(number, (12, 12), random) for number in range(36)])
    data = ImageDataset.from_arrays(images, [number % 3 for number in range(36)])
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "float32", "device": "cpu"}
    losses = []
    for run, augmentation in (("a", names), ("b", names), ("plain", "none")):
        torch.manual_seed(0)
        model = create_model("capsnet", data.image_shape, 3, width=8)
        result = fit(model, data, TrainConfig(augment=augmentation, **settings), out=run, quiet=True)
        losses.append([line["loss"] for line in result.history])
    assert losses[0] == losses[1] != losses[2]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("none", [1]),
        ("flip", [1 / 2, 1 / 2]),
        ("shift", [1 / 2, 1 / 4, 1 / 4]),
        ("flip-shift", [1 / 4, 1 / 8, 1 / 8, 1 / 4, 1 / 8, 1 / 8]),
    ],
)
def test_test_time_views_are_the_image_mirrored_and_shifted_by_a_pixel(name: Any, weights: list[float]):
    images = noise(2, 3, 8, 10)
    found = [(weight, change(images)) for weight, change in time_views(name)]
    assert [weight for weight, _ in found] == weights
    padded = functional.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    windows = [padded[:, :, 1:-1, 1:-1]]
    if "shift" in name:
        windows += [padded[:, :, 2:, 2:], padded[:, :, :-2, :-2]]
    if "flip" in name:
        windows += [window.flip(3) for window in windows]
    for (_, view), window in zip(found, windows, strict=True):
        assert torch.equal(view, window)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1)])
def test_the_smallest_images_can_be_shifted(size: tuple[int, int]):
    images = noise(2, 1, *size)
    for _, change in time_views("flip-shift"):
        assert change(images).shape == images.shape


@pytest.mark.parametrize("channels", [1, 3])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**20), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_large_images_are_moved_and_mirrored_like_small_ones(
    channels: int, height: int, width: int, seed: int, share: float
):
    images, how = noise(5, channels, height, width), Augmentation(shift=share, flip=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualcaps.data.augment._COPIED_BY_ROWS", 10**9)
        small = augment(images, how, generator(seed))
        patch.setattr("dualcaps.data.augment._COPIED_BY_ROWS", 1)
        large = augment(images, how, generator(seed))
    assert torch.equal(small, large)


@pytest.mark.parametrize("name", ["rotate", "colour"])
def test_large_images_are_changed_in_pieces_like_small_ones(name: str):
    images, how = noise(9, 3, 12, 14), dataclasses.replace(only(name), shift=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualcaps.data.augment._COPIED_BY_ROWS", 1)
        pieces = augment(images, how, generator(3))
    assert torch.equal(pieces, augment(images, how, generator(3)))
