"""A person's own images in other forms than class folders."""

from pathlib import Path

import corpus
import numpy as np
import pytest
import torch

from dualcaps import DataError, load_data
from dualcaps.data.load import load_labelled


def test_npz_with_numbers_or_names(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (30, 14, 12, 3), dtype=np.uint8)
    for name, labels, classes in (
        ("numbers", np.arange(30) % 3, ("0", "1", "2")),
        ("names", np.array(["ape", "bee", "cat"] * 10), ("ape", "bee", "cat")),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(corpus.npz_bytes(x=images, y=labels))
        data = load_data(path)
        assert data.name == name
        assert data.classes == classes
        assert data.image_shape == (3, 14, 12)
        assert [len(data.train), len(data.validation), len(data.test)] == [21, 3, 6]
        assert load_data(path, image_size=(20, 20), channels=1).image_shape == (1, 20, 20)


def test_npz_with_a_test_part_and_class_names(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    path = tmp_path / "x.npz"
    arrays = {"x_train": images[:20], "y_train": np.arange(20) % 2, "x_test": images[20:], "y_test": np.arange(10) % 2}
    path.write_bytes(corpus.npz_bytes(**arrays, classes=np.array(["no", "yes"])))
    data = load_data(path)
    assert data.classes == ("no", "yes")
    np.testing.assert_array_equal(data.test.images[:, 0], images[20:])


def test_a_file_can_be_evaluated_on_by_a_network_that_knows_its_classes(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)
    (tmp_path / "x.npz").write_bytes(corpus.npz_bytes(x=images, y=np.array(["cat", "bee"] * 3)))
    part = load_labelled(tmp_path / "x.npz", ("ape", "bee", "cat"), (3, 12, 12))
    assert part.labels.tolist() == [2, 1] * 3
    np.testing.assert_array_equal(part.images[:, 2], images)
    with pytest.raises(DataError, match="class 'bee' is not one of the run's: cat, dog"):
        load_labelled(tmp_path / "x.npz", ("cat", "dog"), (3, 12, 12))


def test_parquet_file_and_folder(tmp_path: Path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00002.parquet").write_bytes(corpus.parquet_bytes(10))
    (folder / "train-00001-of-00002.parquet").write_bytes(corpus.parquet_bytes(10))
    (folder / "test-00000-of-00001.parquet").write_bytes(corpus.parquet_bytes(6))
    data = load_data(tmp_path / "hub")
    assert data.image_shape == (1, 8, 8)
    assert [len(data.train), len(data.validation), len(data.test)] == [18, 2, 6]
    (folder.parent / "test").mkdir()
    (folder / "test-00000-of-00001.parquet").rename(folder.parent / "test" / "0000.parquet")
    assert load_data(tmp_path / "hub").provenance["images"] == data.provenance["images"]
    single = load_data(folder / "train-00000-of-00002.parquet", image_size=(12, 12))
    assert len(load_labelled(tmp_path / "hub", ("0", "1"), (1, 8, 8))) == 6
    assert single.image_shape == (1, 12, 12)
    assert torch.bincount(single.test.labels).tolist() == [1, 1]


def test_parquet_with_named_classes(tmp_path: Path):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"_type": "ClassLabel", "names": ["off", "on"]}, "image": {"_type": "Image"}}
    images = pa.array([{"bytes": corpus.picture("JPEG", "RGB"), "path": None}] * 12)
    table = pa.table({"label": np.arange(12) % 2, "image": images})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "lamps.parquet")
    data = load_data(tmp_path / "lamps.parquet")
    assert data.classes == ("off", "on")
    assert data.image_shape == (3, 8, 8)


def test_what_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DataError, match=r"notes\.txt: neither a folder nor a \.npz or \.parquet file"):
        load_data(tmp_path / "notes.txt")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "test-0.parquet").write_bytes(corpus.parquet_bytes())
    (tmp_path / "hub" / "test-1.parquet").write_bytes(corpus.parquet_bytes())
    with pytest.raises(DataError, match="no file of a training part"):
        load_data(tmp_path / "hub")
    (tmp_path / "hub" / "more.parquet").write_bytes(corpus.parquet_bytes())
    with pytest.raises(DataError, match=r"more\.parquet: its name does not say train, validation or test"):
        load_data(tmp_path / "hub")
    (tmp_path / "hub" / "more.parquet").unlink()
    (tmp_path / "hub" / "train-0.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"train-0\.parquet: not a Parquet file"):
        load_data(tmp_path / "hub")
