"""Packing own images of every form: the same images and split as they have unpacked, also after a kill."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualcaps import DataConfig, load_data
from dualcaps.data import pack as packing
from dualcaps.data.dataset import ImageDataset
from dualcaps.data.pack import pack
from dualcaps.data.tars import write_tars
from dualcaps.errors import DataError


def content(data: ImageDataset, part: str) -> list[tuple[bytes, str]]:
    """The images of a part with the names of their classes, in an order that does not depend on the file's."""
    split = getattr(data, part)
    return sorted(
        (image.numpy().tobytes(), data.classes[label])
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )


def write_parquet(folder: Path, file: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*/*.png"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": images, "label": [file.parent.name for file in files]}), file)
    return file


def assert_same(one: ImageDataset, other: ImageDataset) -> None:
    assert one.classes == other.classes
    for part in ("train", "validation", "test"):
        assert content(one, part) == content(other, part)


def test_a_packed_folder_has_the_images_and_the_split_of_the_folder(shapes: Path, tmp_path: Path):
    said = []
    index = pack([shapes], tmp_path / "packed", on_progress=lambda *what: said.append(what))
    data = load_data(tmp_path / "packed")
    assert_same(data, load_data(shapes))
    assert said[-1] == ("hashing", 36, 36)
    assert index.parts["train"][0].images == 27
    assert not data.train.labels.equal(data.train.labels.sort().values)  # mixed, not class by class
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["images.npy", "index.json", "labels.npy"]
    assert not list(tmp_path.glob(".*"))


def test_parquet_and_tar_files_are_packed_as_they_are_read(shapes: Path, tmp_path: Path):
    parquet = write_parquet(shapes, tmp_path / "shapes.parquet")
    pack([parquet], tmp_path / "from-parquet")
    assert_same(load_data(tmp_path / "from-parquet"), load_data(parquet))
    written = list(write_tars(load_data(shapes), str(tmp_path / "tars")))
    assert [Path(file).name for file in written] == [f"{part}-000000.tar" for part in ("train", "validation", "test")]
    pack([tmp_path / "tars"], tmp_path / "from-tars")
    pack(written, tmp_path / "from-files")
    assert_same(load_data(tmp_path / "from-tars"), load_data(shapes))
    assert_same(load_data(tmp_path / "from-files"), load_data(shapes))


def test_images_of_several_sizes_are_packed_at_the_size_asked_for(shapes_folder: Path, tmp_path: Path):
    Image.new("L", (200, 90), 7).save(shapes_folder / "down" / "large.png")
    with pytest.raises(DataError, match=r"images of 2 sizes from 12x12 to 90x200: choose the size .*--image-size"):
        pack([shapes_folder], tmp_path / "packed")
    pack([shapes_folder], tmp_path / "packed", DataConfig(image_size=(20, 16), channels=3))
    assert_same(load_data(tmp_path / "packed"), load_data(shapes_folder, image_size=(20, 16), channels=3))
    with pytest.raises(DataError, match=r"packed with image_size \(20, 16\), not \(8, 8\)"):
        load_data(tmp_path / "packed", image_size=(8, 8))


def test_damaged_files_are_named_or_left_out(shapes_folder: Path, tmp_path: Path):
    cut = shapes_folder / "down" / "03.png"
    cut.write_bytes(cut.read_bytes()[:60])  # its header can be read, its pixels cannot
    (shapes_folder / "across" / "00.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"across/00\.png: not an image that can be read.*--skip-damaged"):
        pack([shapes_folder], tmp_path / "packed")
    (shapes_folder / "across" / "00.png").unlink()
    with pytest.raises(DataError, match=r"down/03\.png: cannot be read"):
        pack([shapes_folder], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    index = pack([shapes_folder], tmp_path / "packed", DataConfig(skip_damaged=True))
    assert "1 damaged image files left out" in index.notes[-1]
    data = load_data(tmp_path / "packed")
    together = [image for part in ("train", "validation", "test") for image in content(data, part)]
    whole = load_data(shapes_folder, skip_damaged=True)
    assert sorted(together) == sorted(
        image for part in ("train", "validation", "test") for image in content(whole, part)
    )


def test_a_killed_packing_goes_on_where_it_was(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "_CHUNK_IMAGES", 5)
    monkeypatch.setattr(packing, "_KEPT_SECONDS", 0.0)
    decoded = []
    read_images = packing.read_images

    def counting(images, *arguments, **options):
        if len(decoded) == 4:
            decoded.append(0)
            raise KeyboardInterrupt
        decoded.append(len(images))
        return read_images(images, *arguments, **options)

    monkeypatch.setattr(packing, "read_images", counting)
    with pytest.raises(KeyboardInterrupt):
        pack([shapes], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    pack([shapes], tmp_path / "packed")
    assert sum(decoded) == 36  # nothing was decoded twice
    assert_same(load_data(tmp_path / "packed"), load_data(shapes))
    for split in (load_data(tmp_path / "packed").train, load_data(tmp_path / "packed").test):
        assert sum(map(len, split.pieces())) == len(split)


def test_a_packing_of_other_images_does_not_go_on(shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "_CHUNK_IMAGES", 5)
    monkeypatch.setattr(packing, "_KEPT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_close_gaps", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack([shapes_folder], tmp_path / "packed")
    os.utime(shapes_folder / "down" / "03.png", (1, 1))
    Image.new("L", (12, 12), 9).save(shapes_folder / "down" / "03.png")
    pack([shapes_folder], tmp_path / "packed")
    assert_same(load_data(tmp_path / "packed"), load_data(shapes_folder))


def test_a_full_disk_and_a_second_packing_are_one_line(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        return type("Usage", (), {"free": 100})

    with monkeypatch.context() as patch:
        patch.setattr(packing.shutil, "disk_usage", full)
        with pytest.raises(DataError, match="disk full, 0 MB free where the images need 0 MB"):
            pack([shapes], tmp_path / "packed")
    assert not list(tmp_path.glob(".*"))

    def twice(*_):
        with pytest.raises(DataError, match="another process is packing to this folder"):
            pack([shapes], tmp_path / "packed")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_hash", twice)
        with pytest.raises(KeyboardInterrupt):
            pack([shapes], tmp_path / "packed")
    pack([shapes], tmp_path / "packed")
    with pytest.raises(DataError, match="exists already"):
        pack([shapes], tmp_path / "packed")


def test_a_disk_that_fills_up_while_packing_costs_nothing(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packing, "_CHUNK_IMAGES", 5)
    monkeypatch.setattr(packing, "_KEPT_SECONDS", 0.0)
    keep, kept = packing._keep, []

    def full(*arguments) -> None:
        if len(kept) == 3:
            kept.append(0)
            raise OSError(28, "No space left on device", "images.npy")
        kept.append(0)
        keep(*arguments)

    monkeypatch.setattr(packing, "_keep", full)
    with pytest.raises(OSError, match="No space left on device"):
        pack([shapes], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    pack([shapes], tmp_path / "packed")
    assert_same(load_data(tmp_path / "packed"), load_data(shapes))


def test_deep_images_need_the_range_of_their_values(tmp_path: Path):
    for name, level in (("dark", 1_000), ("light", 9_000)):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8), level + 100 * number, np.uint16)
            Image.fromarray(pixels).save(tmp_path / "deep" / name / f"{number}.png")
    with pytest.raises(DataError, match="not of 8 bits: give the pixel values of black and white"):
        pack([tmp_path / "deep"], tmp_path / "packed")
    pack([tmp_path / "deep"], tmp_path / "packed", DataConfig(value_range=(0, 10_000)))
    packed = load_data(tmp_path / "packed")
    assert packed.value_range == (0, 10_000)
    assert_same(packed, load_data(tmp_path / "deep", value_range=(0, 10_000)))


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "nothing to pack"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["a.tar", "b"], "2 sources: several are packed together only if all of them are tar files"),
        (["s3://nowhere/train-0.tar"], "s3://nowhere/train-0.tar: Install s3fs to access S3"),
        (["quite://nowhere/train-0.tar"], "quite://nowhere/train-0.tar: cannot be opened"),
    ],
)
def test_what_cannot_be_packed_is_one_line(tmp_path: Path, sources: list[str], said: str):
    with pytest.raises(DataError) as error:
        pack(sources, tmp_path / "packed")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "packed").exists()


def test_the_notes_and_the_source_are_kept(shapes: Path, tmp_path: Path):
    pack([shapes], tmp_path / "packed")
    kept = json.loads((tmp_path / "packed" / "index.json").read_text())
    assert kept["source"] == str(shapes)
    assert kept["notes"] == ["36 image files used"]
    data = load_data(tmp_path / "packed")
    assert data.provenance["packed_from"] == str(shapes)
    assert torch.equal(data.test.images, torch.cat(list(data.test.pieces())))
