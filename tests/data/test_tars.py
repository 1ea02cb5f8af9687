"""WebDataset tar files: read and written as the package webdataset does, from paths and URLs."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualcaps import ImageDataset, ImageSplit, load_data
from dualcaps.data import tars
from dualcaps.data.pack import pack
from dualcaps.data.tars import read_tar, write_tars
from dualcaps.errors import DataError


def png(value: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("L", (4, 4), value).save(content, "PNG")
    return content.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(file)


@pytest.mark.filterwarnings("ignore")  # it leaves files open
def test_webdataset_reads_what_is_written(shapes: Path, tmp_path: Path):
    wds = pytest.importorskip("webdataset")
    data = load_data(shapes)
    files = list(write_tars(data, str(tmp_path / "out")))
    samples = list(wds.WebDataset(files[0], shardshuffle=False, empty_check=False).decode("l8"))
    assert len(samples) == len(data.train)
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["png"], data.train.images[number, 0].numpy())
        assert sample["cls"] == int(data.train.labels[number])
        assert sample["json"]["class"] == data.classes[sample["cls"]]


def test_what_webdataset_writes_is_read(tmp_path: Path):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "train-0.tar")) as sink:
        for number in range(12):
            sink.write({"__key__": f"{number:04d}", "png": png(number), "cls": str(number % 3)})
    found = list(read_tar(str(tmp_path / "train-0.tar")))
    assert [sample.label for sample in found] == [number % 3 for number in range(12)]
    assert [sample.image for sample in found] == [png(number) for number in range(12)]
    pack([tmp_path / "train-0.tar"], tmp_path / "packed")
    assert load_data(tmp_path / "packed").classes == ("0", "1", "2")


def test_urls_are_read_and_written(shapes: Path, tmp_path: Path):
    data = load_data(shapes)
    urls = list(write_tars(data, "memory://bucket/shapes"))
    assert urls[0] == "memory://bucket/shapes/train-000000.tar"
    assert fsspec.filesystem("memory").exists("/bucket/shapes/test-000000.tar")
    pack(urls, tmp_path / "packed")
    packed = load_data(tmp_path / "packed")
    assert packed.classes == data.classes
    assert len(packed.test) == len(data.test)


def test_the_order_of_the_classes_is_kept(tmp_path: Path):
    pixels = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    data = ImageDataset.from_arrays(pixels, [0, 1, 2] * 10, ["zebra", "ape", "gnu"])
    pack(list(write_tars(data, str(tmp_path / "out"))), tmp_path / "packed")
    packed = load_data(tmp_path / "packed")
    assert packed.classes == ("zebra", "ape", "gnu")
    assert all(
        int(image[0, 0, 0]) % 3 == label for image, label in zip(packed.train.images, packed.train.labels, strict=True)
    )


def test_the_same_data_give_the_same_files_in_pieces(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "_SAMPLES_IN_A_FILE", 10)
    one, other = (list(write_tars(load_data(shapes), str(tmp_path / name))) for name in ("one", "other"))
    assert [Path(file).name for file in one[:3]] == [f"train-00000{number}.tar" for number in range(3)]
    assert [Path(file).read_bytes() for file in one] == [Path(file).read_bytes() for file in other]
    assert sum(len(list(read_tar(file))) for file in one) == 36


@given(st.permutations(["a.png", "a.cls", "a.txt"]), st.sampled_from(["7", "cat", "ünicorn", " 7\n"]))
def test_the_files_of_a_sample_come_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], label: str
):
    contents = {"a.png": png(), "a.cls": label.encode(), "a.txt": b"a caption"}
    file = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", {f"in/{name}": contents[name] for name in names})
    ((image, found, name, number),) = read_tar(file)
    assert (image, found, number) == (png(), 7 if "7" in label else label, None)
    assert name == f"{file}: in/a"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "no files in this tar file"),
        ({"a.png": png()}, "x.tar: a: no label"),
        ({"a.cls": b"1"}, "x.tar: a: 0 images, one is expected"),
        ({"a.png": png(), "a.jpg": png(), "a.cls": b"1"}, "x.tar: a: 2 images"),
        ({"a.png": png(), "a.cls": b"\xff"}, "a.cls: not text"),
        ({"a.png": png(), "a.cls": b" "}, "a.cls: empty"),
        ({"a.png": png(), "a.json": b"{"}, "a.json: not JSON"),
        ({"a.png": png(), "a.json": json.dumps({"label": [1]}).encode()}, "a: no label"),
        ({"a.png": png(), "a.cls": bytes(70_000)}, "a.cls has 70,000 bytes, too many"),
    ],
)
def test_samples_that_are_not_clear_are_refused(tmp_path: Path, members: dict[str, bytes], said: str):
    with pytest.raises(DataError) as error:
        list(read_tar(write_tar(tmp_path / "x.tar", members)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_file_is_refused(tmp_path: Path):
    file = Path(write_tar(tmp_path / "x.tar", {"a.png": png(), "a.cls": b"1"}))
    file.write_bytes(file.read_bytes()[:540])
    with pytest.raises(DataError, match=r"x\.tar: not a tar file that can be read"):
        list(read_tar(str(file)))
    with pytest.raises(DataError, match=r"nowhere\.tar: cannot be opened"):
        list(read_tar(str(tmp_path / "nowhere.tar")))


def test_images_that_are_no_pictures_are_not_written(tmp_path: Path):
    pair = ImageSplit(np.zeros((4, 2, 4, 4), np.uint8), [0, 1] * 2)
    with pytest.raises(DataError, match="stereo: 2 channels: PNG images have 1 or 3"):
        list(write_tars(ImageDataset("stereo", pair, pair, pair, ("a", "b")), str(tmp_path)))
