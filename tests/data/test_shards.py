"""Packed images: an epoch sees each image once, also resumed, in several processes and across windows."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import ImageSplit, load_data
from dualcaps.data import shards
from dualcaps.data.augment import Augmentation
from dualcaps.data.batches import places_of_batch, training_batches
from dualcaps.data.shards import PackedIndex, Shard, Shards
from dualcaps.errors import DataError
from dualcaps.training.team import Team


def packed_folder(folder: Path, counts: dict[str, list[int]], shape: tuple[int, int, int] = (1, 2, 2)) -> Path:
    """Images whose pixels count from 0, in shards of so many images."""
    import hashlib

    total = sum(map(sum, counts.values()))
    images = (np.arange(total) % 256).astype(np.uint8)[:, None, None, None] * np.ones(shape, np.uint8)
    labels = np.arange(total, dtype=np.int64) % 2
    parts, start = {}, 0
    for part, sizes in counts.items():
        found = []
        for size in sizes:
            found.append(Shard.of(start, size, images[start : start + size].tobytes()))
            start += size
        parts[part] = tuple(found)
    folder.mkdir(parents=True)
    np.save(folder / shards.IMAGES, images)
    np.save(folder / shards.LABELS, labels)
    options = {"validation": 0.1, "test": 0.2, "split_seed": 0, "value_range": None}
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    index = PackedIndex(("even", "odd"), shape, parts, digest, None, options, "here", ())
    shards.write_index(folder, index)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [7] * 30 + [3]
    return packed_folder(
        tmp_path_factory.mktemp("packed") / "data", {"train": sizes, "validation": [5], "test": [6, 2]}
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(packed: Path, batch_size: int, **options) -> list[tuple[list[int], list[int], int]]:
    train = dataclasses.replace(load_data(packed).train, labels=torch.arange(213))
    return [
        (batch.labels.tolist(), batch.images[:, 0, 0, 0].tolist(), batch.size)
        for batch in training_batches(train, batch_size, None, generator(), **options)
    ]


@given(batch_size=st.integers(1, 250), data=st.data())
def test_an_epoch_sees_each_image_once_and_goes_on_where_it_was(packed: Path, batch_size: int, data):
    batches = numbered(packed, batch_size)
    seen = [label for labels, _, _ in batches for label in labels]
    assert sorted(seen) == list(range(213))
    assert [size for *_, size in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(labels == pixels for labels, pixels, _ in batches)  # each image with its label
    done = data.draw(st.integers(0, len(batches)))
    assert numbered(packed, batch_size, done=done) == batches[done:]


def test_the_order_mixes_shards_and_depends_on_the_generator(packed: Path):
    train = load_data(packed).train
    first, again, other = (
        torch.cat([batch.images[:, 0, 0, 0] for batch in training_batches(train, 8, None, generator(seed))]).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len({place // 7 for place in first[:16]}) > 8  # shards among the first images


@given(count=st.integers(1, 5), batch_size=st.integers(1, 40))
def test_processes_share_each_batch(packed: Path, count: int, batch_size: int):
    whole = numbered(packed, batch_size)
    teams = [Team(torch.device("cpu"), rank, count) for rank in range(count)]
    shared = [numbered(packed, batch_size, share=team.share) for team in teams]
    for place, (labels, _, size) in enumerate(whole):
        own = [found[place][0] for team, found in zip(teams, shared, strict=True) if team.weight(size)]
        assert [label for part in own for label in part] == labels


@given(batch_size=st.integers(1, 60), data=st.data())
def test_the_images_of_a_batch_can_be_told_afterwards(packed: Path, batch_size: int, data):
    batches = numbered(packed, batch_size)
    number = data.draw(st.integers(0, len(batches) - 1))
    train = load_data(packed).train
    assert places_of_batch(train, batch_size, generator(), number) == batches[number][0]


@pytest.mark.parametrize(
    "how", [Augmentation(flip=True, crop=True, rotate=True, colour=True), Augmentation(mixup=True)]
)
def test_an_image_is_changed_in_the_same_way_whatever_the_number_of_processes(how: Augmentation):
    images = torch.randint(256, (23, 3, 16, 16), dtype=torch.uint8, generator=generator(5))
    split = ImageSplit(images, torch.arange(23) % 4)
    whole = list(training_batches(split, 10, how, generator(), 4))
    for rank in range(3):
        team = Team(torch.device("cpu"), rank, 3)
        for batch, own in zip(whole, training_batches(split, 10, how, generator(), 4, share=team.share), strict=True):
            assert torch.equal(batch.images[team.share(batch.size)], own.images)
            assert torch.equal(batch.labels[team.share(batch.size)], own.labels)


def test_parts_that_follow_each_other_are_joined_without_a_copy(packed: Path):
    data = load_data(packed)
    both = data.train + data.validation
    assert len(both) == 218
    assert both.images.data_ptr() == data.train.images.data_ptr()
    assert torch.equal(both.images, torch.cat([data.train.images, data.validation.images]))
    assert torch.equal(torch.cat(list(both.pieces())), both.images)
    with pytest.raises(ValueError, match="not successive"):
        _ = data.validation + data.train


@given(count=st.integers(1, 12))
def test_parts_to_evaluate_are_whole_shards_with_their_labels(packed: Path, count: int):
    train = load_data(packed).train
    parts = [train.part(number, count) for number in range(count)]
    assert sum(map(len, parts)) == len(train)
    for part in parts:
        assert torch.equal(torch.cat([part.images[:0], *part.pieces()]), part.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), train.labels)


def test_a_damaged_shard_is_named_and_nothing_of_it_is_used(packed: Path, tmp_path: Path):
    copy = packed_folder(tmp_path / "copy", {"train": [7] * 5, "validation": [5], "test": [6]})
    with (copy / shards.IMAGES).open("r+b") as file:
        file.seek(128 + 4 * 15)
        file.write(b"\xff")
    train = load_data(copy).train
    with pytest.raises(DataError, match=r"images\.npy: shard 2 \(images 14 to 20\) is damaged: pack the images again"):
        list(training_batches(train, 4, None, generator()))


def _index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / shards.INDEX).read_text())
        change(content)
        (folder / shards.INDEX).write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / shards.LABELS).unlink(), r"labels\.npy: missing or damaged"),
        (lambda folder: (folder / shards.INDEX).write_text("{"), r"index\.json: damaged"),
        (lambda folder: (folder / shards.INDEX).write_bytes(b"\xff\xfe"), r"index\.json: damaged"),
        (lambda folder: np.save(folder / shards.LABELS, np.zeros(46, np.int64)), r"labels\.npy: damaged"),
        (lambda folder: np.save(folder / shards.LABELS, np.zeros(4, np.int64)), r"labels\.npy: int64 \(4,\) is not"),
        (lambda folder: np.save(folder / shards.IMAGES, np.zeros((46, 1, 2, 2))), r"images\.npy: float64"),
        (_index(lambda content: content.update(format=9)), "format 9, this version reads 1"),
        (_index(lambda content: content["parts"].pop("test")), r"damaged \('test'\)"),
        (_index(lambda content: content["parts"]["train"].pop(1)), "does not follow the one before it"),
        (_index(lambda content: content.update(classes=["a", "a"])), "two or more different names"),
        (_index(lambda content: content.update(image_shape=[1, 0, 2])), "whole number from 1 to 4096"),
        (_index(lambda content: content["options"].update(validation=7)), "validation must be above 0"),
        (_index(lambda content: content["options"].update(unknown=7)), r"index\.json: damaged"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str):
    copy = packed_folder(tmp_path / "copy", {"train": [7] * 5, "validation": [5], "test": [6]})
    damage(copy)
    with pytest.raises(DataError, match=said) as error:
        load_data(copy)
    assert "\n" not in str(error.value)


def test_a_folder_that_vanishes_while_it_is_read_is_one_line(tmp_path: Path):
    copy = packed_folder(tmp_path / "copy", {"train": [7] * 60, "validation": [5], "test": [6]})
    batches = training_batches(load_data(copy).train, 4, None, generator())
    next(batches)
    (copy / shards.IMAGES).unlink()
    with pytest.raises(DataError, match=r"images\.npy: cannot be read \(No such file"):
        list(batches)


def test_hashes_tell_images_and_labels(tmp_path: Path):
    counts = {"train": [7, 3], "validation": [5], "test": [6]}
    same, again = (load_data(packed_folder(tmp_path / name, counts)) for name in ("same", "again"))
    other = load_data(packed_folder(tmp_path / "other", {**counts, "train": [10]}))
    assert same.fingerprint == again.fingerprint
    assert len(other.train) == len(same.train)
    assert Shards(Path("a"), 0, (1, 1, 1), (Shard(0, 3, "", 0),)) != Shards(
        Path("b"), 0, (1, 1, 1), (Shard(0, 3, "", 0),)
    )
