"""Each data set of the paper, in each form it is distributed in, from small files of the same layout."""

import gzip
from collections import Counter
from pathlib import Path

import corpus
import numpy as np
import pytest
import torch
from PIL import Image

from dualcaps import DataError, ImageDataset, load_data
from dualcaps.data.load import check_data, data_state, inspect_source
from dualcaps.data.sources import data_set as card_of
from dualcaps.data.sources.cifar10 import CIFAR_BINARY, CIFAR_PYTHON
from dualcaps.data.sources.smallnorb import NORB
from dualcaps.registry import DATASETS


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder.parent


def load_cifar(tmp_path: Path, form: str) -> ImageDataset:
    binary = {name: corpus.cifar_record(20) for name in CIFAR_BINARY}
    python = {name: corpus.cifar_pickle(20) for name in CIFAR_PYTHON}
    folder = tmp_path / form / "cifar-10"
    match form:
        case "binary folder":
            root = put(folder / "cifar-10-batches-bin", binary).parent
        case "python folder":
            root = put(folder / "cifar-10-batches-py", python).parent
        case "binary archive":
            root = put(folder, {"cifar-10-binary.tar.gz": corpus.tar_gz(binary)})
        case _:
            root = put(folder, {"cifar-10-python.tar.gz": corpus.tar_gz(python)})
    return load_data("cifar-10", data_dir=root)


@pytest.mark.parametrize("form", ["binary folder", "python folder", "binary archive", "python archive"])
def test_cifar_10(tmp_path: Path, form: str):
    data = load_cifar(tmp_path, form)
    assert data.image_shape == (3, 32, 32)
    assert [len(data.train), len(data.validation), len(data.test)] == [90, 10, 20]
    np.testing.assert_array_equal(data.test.images, corpus.cifar_images(20)[0])
    assert data.test.labels.tolist() == list(range(10)) * 2
    assert data.classes[3] == "cat"
    assert data.flip
    assert data.provenance["official"] is False
    assert data.provenance["sha256_format_1"] == load_cifar(tmp_path, "binary folder").provenance["sha256_format_1"]
    grey = load_data("cifar-10", data_dir=tmp_path / form, channels=1, image_size=(16, 16))
    assert grey.image_shape == (1, 16, 16)


def test_cifar_10_with_a_batch_missing_is_named(tmp_path: Path):
    binary = {name: corpus.cifar_record(20) for name in CIFAR_BINARY[:-1]}
    root = put(tmp_path / "cifar-10", {"cifar-10-binary.tar.gz": corpus.tar_gz(binary)})
    with pytest.raises(DataError, match=r"test_batch\.bin is missing"):
        load_data("cifar-10", data_dir=root)


@pytest.mark.parametrize("extra", [False, True])
def test_svhn(tmp_path: Path, extra: bool):
    files = {"train_32x32.mat": corpus.mat_bytes(compressed=True, count=40)}
    files |= {"test_32x32.mat": corpus.mat_bytes(compressed=True, count=20)}
    files |= {"extra_32x32.mat": corpus.mat_bytes(compressed=False, count=60)} if extra else {}
    data = load_data("svhn", data_dir=put(tmp_path / "svhn", files), extra=extra)
    assert len(data.train) + len(data.validation) == (100 if extra else 40)
    assert data.image_shape == (3, 32, 32)
    np.testing.assert_array_equal(data.test.images, corpus.cifar_images(20)[0])
    assert data.test.labels.tolist() == [*range(1, 10), 0] * 2
    assert not data.flip


def norb_files(*, packed: bool, known: bool = True) -> tuple[dict[str, bytes], np.ndarray]:
    count = 5 * 9 * 18
    random = np.random.default_rng(0)
    pairs = random.integers(0, 256, (count, 2, 96, 96), dtype=np.uint8)
    classes = (np.arange(count) % 5).astype(np.int32)
    info = np.zeros((count, 4), np.int32)
    info[:, 0] = np.arange(count) // 5 % 4
    info[:, 1], info[:, 2] = np.arange(count) // 5 % 9, np.arange(count) // 45 * 2
    unknown = np.full_like(info, -1)
    arrays = [pairs, classes, info if known else unknown, pairs[::-1], classes[::-1].copy(), info[::-1]]
    contents = [corpus.norb_bytes(np.ascontiguousarray(array)) for array in arrays]
    if packed:
        return {f"{name}.gz": gzip.compress(content, 1) for name, content in zip(NORB, contents, strict=True)}, pairs
    return dict(zip(NORB, contents, strict=True)), pairs


def by_area(images: np.ndarray) -> np.ndarray:
    """Means of 3x3 pixels; Pillow rounds after each of its two passes, so it may differ by 2/3."""
    return images.reshape(-1, 32, 3, 32, 3).mean(axis=(2, 4))


def test_smallnorb(tmp_path: Path):
    files, pairs = norb_files(packed=True)
    root = put(tmp_path / "smallnorb", files)
    left = load_data("smallnorb", data_dir=root)
    assert left.image_shape == (3, 32, 32)
    assert [len(left.train), len(left.validation), len(left.test)] == [730, 80, 810]
    assert left.classes == ("animal", "human", "airplane", "truck", "car")
    assert np.abs(left.test.images[:, 0].numpy() - by_area(pairs[::-1, 0])).max() < 0.7
    right = load_data("smallnorb", data_dir=root, camera="right", channels=1)
    assert right.image_shape == (1, 32, 32)
    assert np.abs(right.test.images[:, 0].numpy() - by_area(pairs[::-1, 1])).max() < 0.7
    both = load_data("smallnorb", data_dir=root, camera="both")
    assert len(both.test) == 1620
    assert torch.equal(both.test.images[1::2, :1], right.test.images)
    assert both.test.labels[:4].tolist() == [4, 4, 3, 3]
    # A pair's pictures stay together, so the left ones held out are those of the left camera alone.
    assert torch.equal(both.validation.images[::2], left.validation.images)
    stereo = load_data("smallnorb", data_dir=root, camera="stereo")
    assert inspect_source(stereo.config).image_shape == stereo.image_shape == (2, 32, 32)
    assert (left.flip, both.flip, stereo.flip) == (True, True, False)
    assert torch.equal(stereo.test.images[:, :1], both.test.images[::2, :1])
    assert torch.equal(stereo.test.images[:, 1:], right.test.images)
    assert torch.equal(stereo.test.labels, right.test.labels)
    assert torch.equal(stereo.validation.images[:, :1], left.validation.images[:, :1])


@pytest.mark.parametrize("packed", [False, True])
def test_smallnorb_with_one_camera_twice(tmp_path: Path, packed: bool):
    files, pairs = norb_files(packed=packed)
    twice = corpus.norb_bytes(np.repeat(pairs[:, 1:], 2, axis=1))
    name = f"{NORB[3]}.gz" if packed else NORB[3]
    root = put(tmp_path / "smallnorb", files | {name: gzip.compress(twice, 1) if packed else twice})
    same = "the left and the right camera's pictures are the same"
    for camera in ("stereo", "both"):
        with pytest.raises(
            DataError, match=rf"testing-dat.*: {same}, so there are no stereo pairs: choose --camera left"
        ):
            load_data("smallnorb", data_dir=root, camera=camera)
    for _ in range(2):  # read from the files, then from the cache
        assert load_data("smallnorb", data_dir=root).notes == (f"{name}: {same}",)


def test_novel_viewpoints_of_smallnorb(tmp_path: Path):
    files, pairs = norb_files(packed=False)
    root = put(tmp_path / "smallnorb", files)
    elevation = load_data("smallnorb", data_dir=root, split="elevation")
    assert len(elevation.train) + len(elevation.validation) == 810 * 3 // 9
    assert len(elevation.test) == 810 * 6 // 9
    azimuth = load_data("smallnorb", data_dir=root, split="azimuth")
    assert len(azimuth.train) + len(azimuth.validation) == 810 * 6 // 18
    kept = np.isin(np.arange(810)[::-1] // 45 * 2, (0, 2, 4, 30, 32, 34), invert=True)
    assert np.abs(azimuth.test.images[:, 0].numpy() - by_area(pairs[::-1, 0][kept])).max() < 0.7
    assert azimuth.test.attributes["azimuth"].tolist() == (np.arange(810)[::-1] // 45 * 20)[kept].tolist()


def test_smallnorb_by_chance_has_every_toy_in_both_parts(tmp_path: Path):
    files, _ = norb_files(packed=False)
    root = put(tmp_path / "smallnorb", files)
    stereo = load_data("smallnorb", data_dir=root, camera="stereo", split="random")
    # The files' two parts hold the same pictures, so that a picture is drawn for the test never, once or twice.
    drawn = Counter(bytes(image.numpy()) for part in (stereo.train, stereo.validation) for image in part.images)
    tested = Counter(bytes(image.numpy()) for image in stereo.test.images)
    assert len(stereo.test) == 810
    assert set((drawn + tested).values()) == {2}
    assert 540 < len(tested) < 680
    # The viewpoints move with the pictures, and both cameras' pictures of a pair stay together.
    both = load_data("smallnorb", data_dir=root, camera="both", split="random")
    assert torch.equal(both.test.images[::2], stereo.test.images[:, :1].expand(-1, 3, -1, -1))
    assert both.test.attributes["azimuth"][::2].tolist() == stereo.test.attributes["azimuth"].tolist()
    other = load_data("smallnorb", data_dir=root, camera="stereo", split="random", split_seed=1)
    assert not torch.equal(other.test.labels, stereo.test.labels)


def test_viewpoints_of_smallnorb_belong_to_their_images(tmp_path: Path):
    files, _ = norb_files(packed=False)
    root = put(tmp_path / "smallnorb", files)
    for camera, repeats in (("left", 1), ("both", 2), ("stereo", 1)):
        data = load_data("smallnorb", data_dir=root, camera=camera)
        number = np.repeat(np.arange(810)[::-1], repeats)
        assert data.test.attributes["azimuth"].tolist() == (number // 45 * 20).tolist()
        assert data.test.attributes["elevation"].tolist() == (30 + 5 * (number // 5 % 9)).tolist()
        assert set(data.test.attributes) == {"instance", "elevation", "azimuth", "lighting"}
        # The validation images are drawn from the training images, each with its own viewpoint.
        pixels = {bytes(image.numpy()): place for place, image in enumerate(data.test.images)}
        places = [pixels[bytes(image.numpy())] for image in data.validation.images]
        assert data.validation.attributes["azimuth"].tolist() == data.test.attributes["azimuth"][places].tolist()
    unknown = put(tmp_path / "unknown" / "smallnorb", norb_files(packed=False, known=False)[0])
    assert set(load_data("smallnorb", data_dir=unknown).train.attributes["elevation"]) == {-1}


def test_smallnorb_without_known_viewpoints_is_named(tmp_path: Path):
    root = put(tmp_path / "smallnorb", norb_files(packed=False, known=False)[0])
    assert len(load_data("smallnorb", data_dir=root).test) == 810
    with pytest.raises(DataError, match="the azimuth of some images is not known: choose --split official"):
        load_data("smallnorb", data_dir=root, split="azimuth")


@pytest.fixture
def coil(tmp_path: Path) -> Path:
    return write_coil(tmp_path)


def write_coil(folder: Path) -> Path:
    """The folder form of COIL-20, in a folder: each picture's grey tells object and view."""
    pictures = folder / "coil-20" / "coil-20-proc"
    pictures.mkdir(parents=True)
    for number in range(20):
        for view in range(72):
            Image.new("L", (128, 128), number * 10 + view // 8).save(pictures / f"obj{number + 1}__{view}.png")
    return folder


def test_coil_20(coil: Path):
    data = load_data("coil-20", data_dir=coil)
    assert data.image_shape == (3, 32, 32)
    assert data.batch_size == 16
    assert len(data.classes) == 10
    assert torch.bincount(data.test.labels).tolist() == [7] * 10
    assert torch.equal(data.train.images[:, 0, 0, 0] // 10, data.train.labels.to(torch.uint8))
    inside = load_data("coil-20", data_dir=coil / "coil-20" / "coil-20-proc")
    assert torch.equal(inside.train.images, data.train.images)
    for part in (data.train, data.validation, data.test):
        assert (part.images[:, 0, 0, 0] % 10).tolist() == (part.attributes["azimuth"] // 40).tolist()
    merged = data.train + data.validation
    assert merged.attributes["azimuth"].shape == merged.labels.shape
    every = load_data("coil-20", data_dir=coil, objects=20)
    assert len(every.classes) == 20
    assert len(every.train) + len(every.validation) + len(every.test) == 1440


def test_coil_20_with_a_quarter_turn_held_out(coil: Path):
    data = load_data("coil-20", data_dir=coil, split="views", channels=1)
    assert torch.bincount(data.test.labels).tolist() == [18] * 10
    shown = {int(image[0, 0, 0]) for image in (data.train + data.validation).images}
    held = sorted({int(image[0, 0, 0]) % 10 for image in data.test.images})
    # The grey tells views eight by eight: a contiguous quarter of 18 views covers three or four such eights.
    assert len(held) in (3, 4)
    assert (data.test.images[:, 0, 0, 0] % 10).tolist() == (data.test.attributes["azimuth"] // 40).tolist()
    assert len(shown) >= 10 * 6
    other = load_data("coil-20", data_dir=coil, split="views", split_seed=1, channels=1)
    assert other.provenance["sha256_format_1"] != data.provenance["sha256_format_1"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mnist", {"camera": "left"}, "mnist has no option camera"),
        ("digits", {"objects": 10}, "digits has no option objects"),
        ("cifar-10", {"extra": True}, "cifar-10 has no option extra"),
        ("coil-20", {"objects": 11}, "objects must be one of 10, 20"),
        ("coil-20", {"split": "azimuth"}, "split of coil-20 must be one of random, views"),
        ("smallnorb", {"camera": "middle"}, "camera must be one of left, right, both, stereo"),
        ("smallnorb", {"camera": "stereo", "channels": 1}, "leave the option channels out"),
    ],
)
def test_options_that_a_set_does_not_have_are_named(name: str, options: dict, said: str):
    with pytest.raises(DataError, match=said):
        load_data(name, **options)


def test_a_second_load_reads_nothing(coil: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_data("coil-20", data_dir=coil)
    monkeypatch.setattr("dualcaps.data.sources.coil20.read_coil", lambda *_: pytest.fail("read again"))
    second = load_data("coil-20", data_dir=coil)
    assert second.provenance == first.provenance
    assert torch.equal(second.train.images, first.train.images)


def test_states_and_checks_tell_official_files_from_others(tmp_path: Path):
    root = put(
        tmp_path / "svhn",
        {n: corpus.mat_bytes(compressed=True, count=20) for n in ("train_32x32.mat", "test_32x32.mat")},
    )
    assert data_state("svhn", root) == f"{tmp_path / 'svhn'} (not checked yet)"
    load_data("svhn", data_dir=root)
    assert data_state("svhn", root) == f"{tmp_path / 'svhn'} (not official)"
    data, files = check_data("svhn", data_dir=root)
    assert [file.verdict for file in files] == ["not official"] * 2
    assert data.provenance == load_data("svhn", data_dir=root).provenance
    assert data_state("mnist", root) == "not found"
    assert data_state("digits").startswith("embedded")
    (tmp_path / "svhn" / "test_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"test_32x32\.mat"):
        check_data("svhn", data_dir=root)


def test_every_set_says_where_it_comes_from():
    for name in DATASETS:
        data_set = card_of(name)
        assert data_set.name == name
        assert data_set.downloads or name == "digits"
        for download in data_set.downloads:
            algorithm, _, digits = download.checksum.partition(":")
            assert len(digits) == {"md5": 32, "sha256": 64}[algorithm]
            assert all(address.endswith("/" + download.file) for address in download.addresses)
