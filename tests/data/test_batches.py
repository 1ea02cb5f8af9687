"""Batches and augmentation on the device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import Augmentation, ImageSplit
from dualcaps.data import batches
from dualcaps.data.augment import augment
from dualcaps.data.batches import training_batches
from dualcaps.nn import to_unit_range as to_float


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_change(image: torch.Tensor, how: Augmentation) -> set[bytes]:
    """All that augmentation may make of one image, by loops."""
    _, height, width = image.shape
    most_down, most_across = int(how.shift * height), int(how.shift * width)
    results = set()
    for mirrored in (False, True) if how.flip else (False,):
        for down in range(-most_down, most_down + 1):
            for across in range(-most_across, most_across + 1):
                moved = torch.empty_like(image)
                for y in range(height):
                    for x in range(width):
                        source_y = min(max(y - down, 0), height - 1)
                        source_x = min(max((width - 1 - x if mirrored else x) - across, 0), width - 1)
                        moved[:, y, x] = image[:, source_y, source_x]
                results.add(moved.numpy().tobytes())
    return results


@pytest.mark.parametrize("flip", [False, True])
def test_augmentation_draws_every_allowed_change_and_no_other(flip: bool):
    how = Augmentation(shift=0.2, flip=flip)
    image = torch.randint(256, (3, 5, 10), dtype=torch.uint8, generator=generator())
    changed = augment(image.expand(800, -1, -1, -1), how, generator(1))
    assert {one.numpy().tobytes() for one in changed} == every_change(image, how)


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), channels=st.integers(1, 4), count=st.integers(1, 5),
    shift=st.floats(0, 0.5), flip=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_augmentation_keeps_shape_and_type_and_is_seeded(height, width, channels, count, shift, flip, seed):
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))
    how = Augmentation(shift, flip)
    changed = augment(images, how, generator(seed))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, augment(images, how, generator(seed)))
    if shift * max(height, width) < 1 and not flip:
        assert torch.equal(changed, images)


def numbered(count: int) -> ImageSplit:
    labels = torch.arange(count)
    return ImageSplit(labels.to(torch.uint8)[:, None, None, None].expand(-1, 2, 4, 3).contiguous(), labels)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_an_epoch_shows_each_image_once_with_its_label(count: int, batch_size: int):
    batches = list(training_batches(numbered(count), batch_size, Augmentation(flip=True), generator()))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for images, labels, *_ in batches:
        assert torch.equal(images, labels.to(torch.uint8)[:, None, None, None].expand_as(images))
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(count))


@given(count=st.integers(2, 40), batch_size=st.integers(1, 9), data=st.data())
def test_an_epoch_goes_on_after_some_batches_with_the_same_images_and_draws(count: int, batch_size: int, data):
    split = numbered(count)
    drawn, states = generator(), []
    whole = []
    for batch in training_batches(split, batch_size, Augmentation(flip=True, erase=True), drawn):
        whole.append(batch)
        states.append(drawn.get_state())
    done = data.draw(st.integers(1, len(whole)))
    again = generator()
    rest = list(
        training_batches(
            split, batch_size, Augmentation(flip=True, erase=True), again, done=done, state=states[done - 1]
        )
    )
    assert len(rest) == len(whole) - done
    for one, other in zip(rest, whole[done:], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_the_order_depends_on_the_generator_alone():
    def order(seed: int) -> list[int]:
        batches = training_batches(numbered(30), 7, None, generator(seed))
        return [int(label) for batch in batches for label in batch.labels]

    assert order(1) == order(1) != order(2)


def test_batches_copied_ahead_are_those_selected_and_a_started_epoch_can_be_left():
    split = ImageSplit(torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8), torch.arange(50))
    chosen = torch.randperm(50).split(8)
    selected = [(split.images[part], split.labels[part], len(part)) for part in chosen]
    copied = list(batches._copied_ahead(iter(selected), torch.device("cpu")))
    assert len(copied) == len(chosen)
    for (images, labels, count), part in zip(copied, chosen, strict=True):
        assert torch.equal(images, split.images[part])
        assert torch.equal(labels, split.labels[part])
        assert count == len(part)
    started = batches._copied_ahead(iter(selected), torch.device("cpu"))
    next(started)
    started.close()
    outside = ((split.images[place], split.labels[place], 1) for place in (3, 60))
    with pytest.raises(IndexError):
        list(batches._copied_ahead(outside, torch.device("cpu")))


def test_scaling_reaches_zero_and_one_and_puts_channels_last():
    scaled = to_float(torch.tensor([0, 255, 51], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 4, 4))
    torch.testing.assert_close(scaled[0, :, 0, 0], torch.tensor([0, 1, 0.2]))
    assert scaled.is_contiguous(memory_format=torch.channels_last)


def test_parts_add_up():
    both = numbered(3) + numbered(2)
    assert both.labels.tolist() == [0, 1, 2, 0, 1]
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]
