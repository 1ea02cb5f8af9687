"""`load_data`, the one door to the pixels."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualcaps import DataError, load_data
from dualcaps.data.load import load_labelled
from dualcaps.data.splits import stratified_split


def test_digits_are_split_class_by_class_and_enlarged():
    data = load_data()
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.image_shape == (1, 28, 28)
    assert data.train.images.max() == 255
    assert not data.flip
    for part in (data.train, data.validation, data.test):
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert shares.sub(0.1).abs().max() < 0.02


def test_parts_have_no_image_in_common_and_splits_are_seeded():
    parts = load_data()
    seen = [{image.numpy().tobytes() for image in part.images} for part in (parts.train, parts.validation, parts.test)]
    whole = {image for part in seen for image in part}
    assert len(whole) == sum(map(len, seen))
    again, other = load_data(), load_data(split_seed=1)
    assert again.provenance == parts.provenance
    assert other.provenance["sha256_format_1"] != parts.provenance["sha256_format_1"]
    assert {image.numpy().tobytes() for image in (other.train + other.validation + other.test).images} == whole


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 30)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder


def test_idx_files_are_read_and_the_validation_part_split_off(idx_folder: Path):
    data = load_data("mnist", data_dir=idx_folder.parent)
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 30)
    assert torch.bincount(data.validation.labels).tolist() == [1] * 10
    assert data.provenance["from"] == str(idx_folder)
    wide = load_data("mnist", data_dir=idx_folder.parent, image_size=(32, 30), channels=3)
    assert wide.image_shape == (3, 32, 30)
    assert torch.equal(wide.test.images[:, 0], wide.test.images[:, 2])


@pytest.mark.parametrize(
    ("file", "array", "said"),
    [
        ("train-labels-idx1-ubyte", np.arange(99) % 10, "99 labels for the 100 images"),
        ("train-labels-idx1-ubyte", np.full(100, 10), "label 10 is not one of the 10 classes"),
        ("train-images-idx3-ubyte.gz", np.zeros((100, 28)), "not images"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((30, 20, 28)), r"shape \(30, 20, 28\), not images"),
    ],
)
def test_idx_files_that_do_not_belong_together_are_named(idx_folder: Path, file: str, array: np.ndarray, said: str):
    write_idx(idx_folder / file, array)
    with pytest.raises(DataError, match=said) as caught:
        load_data("mnist", data_dir=idx_folder.parent)
    assert str(idx_folder) in str(caught.value)


REAL_SETS = [Path(os.environ.get("DUALCAPS_DATA", "/nowhere")), Path("/usr/share/datasets")]


@pytest.mark.skipif(
    not any((root / "fashion-mnist").is_dir() for root in REAL_SETS) and "CI" not in os.environ,
    reason="needs the real Fashion-MNIST (Debian's package dataset-fashion-mnist)",
)
def test_the_real_fashion_mnist():
    root = next((root for root in REAL_SETS if (root / "fashion-mnist").is_dir()), None)
    data = load_data("fashion-mnist", data_dir=root)
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.classes[data.test.labels[0]] == "Ankle boot"
    assert data.test.images.float().mean().item() == pytest.approx(73.15, abs=0.01)
    assert data.flip


def test_a_folder_of_classes_is_split(shapes_folder: Path):
    data = load_data(shapes_folder)
    assert data.name == "shapes"
    assert data.classes == ("across", "down", "slanted")
    assert data.image_shape == (1, 12, 12)
    for part, each in ((data.train, 9), (data.validation, 1), (data.test, 2)):
        assert torch.bincount(part.labels).tolist() == [each] * 3
    assert load_data(str(shapes_folder) + "/").provenance == data.provenance


def test_parts_of_its_own_are_kept(shapes_folder: Path, tmp_path: Path):
    root = tmp_path / "split"
    for part, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        for name in ("across", "down", "slanted"):
            (root / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(shapes_folder / name / f"{number:02}.png", root / part / name)
    data = load_data(root)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 6, 6]
    expected = np.asarray(Image.open(shapes_folder / "down" / "10.png"))
    np.testing.assert_array_equal(data.test.images[2, 0], expected)
    part = load_labelled(root, data.classes, data.image_shape)
    assert torch.equal(part.images, data.test.images)
    shutil.rmtree(root / "val")
    assert len(load_data(root).validation) == 3
    (root / "test").rename(root / "Testing")
    assert len(load_data(root).test) == 6
    shutil.copytree(root / "Testing", root / "test")
    with pytest.raises(DataError, match="Testing and test are both the test part"):
        load_data(root)
    shutil.rmtree(root / "Testing")
    (root / "test" / "across").rename(root / "test" / "unheard")
    with pytest.raises(DataError, match="class 'unheard' of the test part is missing from the training part"):
        load_data(root)


def test_size_and_channels_are_inferred_or_given(shapes_folder: Path):
    Image.new("RGB", (12, 12), "red").save(shapes_folder / "down" / "red.png")
    assert load_data(shapes_folder).image_shape == (3, 12, 12)
    Image.new("L", (100, 20)).save(shapes_folder / "down" / "long.png")
    assert load_data(shapes_folder).image_shape == (3, 32, 32)
    assert load_data(shapes_folder, image_size=(14, 20), channels=1).image_shape == (1, 14, 20)


def test_one_size_is_kept_up_to_64_pixels(tmp_path: Path):
    for side, expected in ((64, 64), (65, 32)):
        for name in ("a", "b"):
            folder = tmp_path / str(side) / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (side, 40)).save(folder / f"{number}.png")
        assert load_data(tmp_path / str(side)).image_shape[2] == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": 0.0}, "validation must be above 0"),
        ({"test": 1.0}, "test must be above 0 and below 1"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
        ({"channels": 2}, "channels must be one of 1, 3, got 2"),
        ({"image_size": (0, 4)}, "image_size"),
    ],
)
def test_options_out_of_range_are_named(options, said: str):
    with pytest.raises(DataError, match=said):
        load_data("digits", **options)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, shapes_folder: Path):
    with pytest.raises(DataError, match="unknown data set 'nothing'"):
        load_data("nothing")
    (tmp_path / "one" / "only").mkdir(parents=True)
    Image.new("L", (12, 12)).save(tmp_path / "one" / "only" / "x.png")
    with pytest.raises(DataError, match=r"only one class \(only\)"):
        load_data(tmp_path / "one")
    (shapes_folder / "single").mkdir()
    Image.new("L", (12, 12)).save(shapes_folder / "single" / "x.png")
    with pytest.raises(DataError, match="class 'single' has too few images"):
        load_data(shapes_folder)


def test_a_labelled_folder_may_lack_classes_but_not_have_others(shapes_folder: Path):
    shutil.rmtree(shapes_folder / "across")
    part = load_labelled(shapes_folder, ("across", "down", "slanted"), (3, 16, 16))
    assert part.images.shape == (24, 3, 16, 16)
    assert set(part.labels.tolist()) == {1, 2}
    with pytest.raises(DataError, match="class 'slanted' is not one of the run's"):
        load_labelled(shapes_folder, ("across", "down"), (1, 12, 12))
    with pytest.raises(DataError, match="unknown data set"):
        load_labelled("nowhere", ("across", "down"), (1, 12, 12))


def test_a_stratified_split_takes_its_part_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 10, 2])
    kept, held = stratified_split(labels, 0.1, 0, ("a", "b", "c"))
    assert sorted([*kept, *held]) == list(range(112))
    assert np.bincount(labels[held]).tolist() == [10, 1, 1]


def test_every_image_keeps_the_name_of_its_file(shapes_folder: Path):
    damaged = shapes_folder / "down" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    for _ in range(2):  # read, and mapped from the cache
        data = load_data(shapes_folder, skip_damaged=True)
        for split in (data.train, data.validation, data.test, data.train + data.test):
            assert split.files is not None
            for image, label, file in zip(split.images, split.labels, split.files, strict=True):
                assert Path(file).parent.name == data.classes[label]
                np.testing.assert_array_equal(image[0], np.asarray(Image.open(file)))
        assert str(damaged) not in (data.train + data.validation + data.test).files
    assert load_data("digits").test.files is None
