"""Image files and folders of them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import corpus
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dualcaps import DataError, load_data
from dualcaps.data import images
from dualcaps.data.images import inspect_images, read_image, read_images
from dualcaps.data.sources.files import cache_folder
from dualcaps.data.sources.folder import list_classes, list_images


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_shows_the_same_picture(tmp_path: Path, mode: str, channels: int):
    halves = np.zeros((8, 8), np.uint8)
    halves[:, 4:] = 255
    if mode == "I;16":
        image = Image.fromarray(halves.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(halves).convert("RGB").convert(mode)
    path = save(image, tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    read = read_image(path, (channels, 8, 8))
    assert read.shape == (channels, 8, 8)
    assert np.abs(read.astype(int) - halves).max() <= 1


def test_transparency_becomes_white(tmp_path: Path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2, 3] = 255  # black on the left, nothing on the right
    read = read_image(save(Image.fromarray(pixels), tmp_path / "x.png"), (1, 4, 4))
    np.testing.assert_array_equal(read[0], np.repeat([[0, 0, 255, 255]], 4, axis=0))


def test_rotation_in_the_exif_data_is_applied(tmp_path: Path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(image, tmp_path / "x.png", exif=exif)
    assert inspect_images([path])[:2] == ({(6, 4): 1}, False)
    np.testing.assert_array_equal(read_image(path, (1, 6, 4))[0], np.rot90(np.asarray(image), -1))


def test_colours_stay_in_their_channels_and_become_grey_by_luminance(tmp_path: Path):
    path = save(Image.new("RGB", (3, 5), (10, 100, 200)), tmp_path / "x.webp", lossless=True)
    assert inspect_images([path])[:2] == ({(5, 3): 1}, True)
    np.testing.assert_array_equal(read_image(path, (3, 5, 3))[:, 0, 0], [10, 100, 200])
    assert read_image(path, (1, 5, 3))[0, 0, 0] == Image.new("RGB", (1, 1), (10, 100, 200)).convert("L").getpixel(
        (0, 0)
    )


def test_shrinking_is_by_area(tmp_path: Path):
    pixels = np.array([[0, 100], [200, 60]], np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    checkered = pixels.copy()
    checkered[::2, ::2] += 20
    read = read_image(save(Image.fromarray(checkered), tmp_path / "x.png"), (1, 2, 2))
    np.testing.assert_allclose(read[0], [[5, 105], [205, 65]], atol=1)


def test_many_images_come_in_order(tmp_path: Path):
    paths = [save(Image.new("L", (2, 2), value), tmp_path / f"{value}.png") for value in range(0, 250, 7)]
    np.testing.assert_array_equal(read_images(paths, (1, 2, 2))[:, 0, 0, 0], range(0, 250, 7))
    with pytest.raises(DataError, match="image files have 1 or 3 channels, the network takes 2"):
        read_images(paths, (2, 2, 2))


@pytest.mark.parametrize("cut", [0, 1, 10, 20])
def test_what_is_no_image_is_named(tmp_path: Path, cut: int):
    whole = save(Image.effect_noise((30, 30), 50), tmp_path / "whole.png").read_bytes()
    path = tmp_path / "x.png"
    path.write_bytes(whole[:cut] if cut else b"just text")
    with pytest.raises(DataError) as caught:
        read_image(path, (1, 8, 8))
    for message in (str(caught.value), inspect_images([path]).unread[0]):
        assert str(path) in message
        assert "\n" not in message


def test_a_picture_cut_in_its_pixels_is_named(tmp_path: Path):
    path = save(Image.effect_noise((60, 60), 50), tmp_path / "x.png")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"x\.png: cannot be read"):
        read_image(path, (1, 8, 8))


def test_a_bomb_is_refused(tmp_path: Path):
    path = save(Image.new("L", (8000, 7000)), tmp_path / "x.png")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"x\.png.*8000x7000 pixels take 224 MB to decode"):
        read_image(path, (1, 8, 8))


@pytest.mark.parametrize(
    ("mode", "side", "kind"), [("RGB", 6800, "png"), ("RGBA", 4800, "png"), ("RGBA", 3400, "webp"), ("L", 6800, "tif")]
)
def test_the_largest_pictures_that_are_read_take_less_than_200_mb(tmp_path: Path, mode: str, side: int, kind: str):
    packing = {"compression": "tiff_lzw"} if kind == "tif" else {}
    path = save(Image.new(mode, (side, side), 120), tmp_path / f"x.{kind}", **packing)
    before = corpus.reset_peak()
    inspect_images([path])
    assert corpus.peak_megabytes() - before < 5  # the header tells enough
    assert read_image(path, (3, 8, 8)).shape == (3, 8, 8)
    assert corpus.peak_megabytes() - before < corpus.MOST_MEGABYTES


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_large_pictures_held_in_any_way_are_read_like_small_ones(tmp_path: Path, orientation: int, kind: str):
    pixels = np.kron(np.arange(40, 232, 8).reshape(4, 6), np.ones((100, 100))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(pixels), tmp_path / f"x.{kind}", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert inspect_images([path]).sizes == {expected.shape: 1}
    height, width = (4, 6) if expected.shape == (400, 600) else (6, 4)
    np.testing.assert_allclose(read_image(path, (1, height, width))[0], expected[50::100, 50::100], atol=2)


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path):
    path = save(Image.effect_noise((64, 64), 50), tmp_path / "x.jpg", progressive=True)
    assert read_image(path, (1, 8, 8)).shape == (1, 8, 8)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * 100)
    with pytest.raises(DataError, match=r"x\.jpg.*more scans than any picture needs"):
        read_image(path, (1, 8, 8))


def test_class_folders_are_listed_with_their_images_alone(tmp_path: Path):
    root = tmp_path / "root"
    for name in ("b/2.png", "b/deeper/1.JPG", "b/notes.txt", "b/.hidden.png", "a/1.png", ".git/x.png", "readme.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    listed = list_classes(root)
    assert list(listed) == ["a", "b"]
    assert listed["b"] == [root / "b/2.png", root / "b/deeper/1.JPG"]
    assert list_images(root).files[0] == root / "a/1.png"
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images"):
        list_classes(root)
    with pytest.raises(DataError, match="no class sub-folders"):
        list_classes(root / "a")


def test_large_data_sets_are_kept_in_files_and_are_the_same(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch):
    small = load_data(shapes_folder)
    shutil.rmtree(cache_folder())
    made: list[np.ndarray] = []
    new_pixels = images.new_pixels

    def watched(shape: tuple[int, ...]) -> np.ndarray:
        made.append(new_pixels(shape))
        return made[-1]

    monkeypatch.setattr(images, "_IN_MEMORY", 100)
    monkeypatch.setattr(images, "_COPIED_AT_ONCE", 3)
    monkeypatch.setattr(images, "new_pixels", watched)
    large = load_data(shapes_folder)
    assert made
    assert all(isinstance(array, np.memmap) for array in made)
    assert large.fingerprint == small.fingerprint
    assert torch.equal(large.train.images, small.train.images)
    assert not [path for path in cache_folder().iterdir() if path.is_file()]  # the files have no names
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=299))
    assert not isinstance(images.new_pixels((101,)), np.memmap)
