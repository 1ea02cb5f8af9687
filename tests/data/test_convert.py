"""Images in memory: every form that is not ambiguous gives the same pixels, every other one a line that says why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from dualcaps import DataError, ImageDataset, create_model, predict
from dualcaps.data.convert import images_from, pixels_from

SIZES = st.integers(4, 9)  # no side can be taken for channels


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [N, C, H, W] with black and white in it."""
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8)
    images[0, 0, 0, :2] = 0, 255
    return images


def as_unit(images: torch.Tensor) -> np.ndarray:
    """What a network sees."""
    values = images.numpy().astype(np.float64)
    return values / 255 if images.dtype == torch.uint8 else values


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels first": lambda images: images,
    "channels last": lambda images: images.transpose(0, 2, 3, 1),
    "grey without channels": lambda images: images[:, 0],
}
TYPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda images: images,
    "int64": lambda images: images.astype(np.int64),
    "uint16": lambda images: images.astype(np.uint16),
    "big-endian": lambda images: images.astype(">i2"),
    "float32": lambda images: images.astype(np.float32) / np.float32(255),
    "float64": lambda images: images / 255,
    "big-endian floats": lambda images: (images / 255).astype(">f4"),
}


def read_only(images: np.ndarray) -> np.ndarray:
    copy = images.copy()
    copy.flags.writeable = False
    return copy


CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda images: images,
    "read-only": read_only,
    "backwards": lambda images: images[::-1].copy()[::-1],
    "list of arrays": list,
    "tuple of arrays": tuple,
    "nested lists": lambda images: images.tolist(),
    "tensor": lambda images: torch.from_numpy(images.astype(images.dtype.newbyteorder("="))),
    "list of tensors": lambda images: [
        torch.from_numpy(image.astype(image.dtype.newbyteorder("=")).copy()) for image in images
    ],
}


@given(
    layout=st.sampled_from(list(LAYOUTS)), kind=st.sampled_from(list(TYPES)),
    container=st.sampled_from(list(CONTAINERS)), channels=st.sampled_from([1, 3]),
    height=SIZES, width=SIZES, count=st.integers(2, 3),
)  # fmt: skip
def test_every_form_of_several_images_gives_the_same_pixels(layout, kind, container, channels, height, width, count):
    channels = 1 if layout == "grey without channels" else channels
    images = pictures(count, channels, height, width)
    given_ = CONTAINERS[container](TYPES[kind](LAYOUTS[layout](images)))
    found = images_from(given_, (channels, height, width))
    np.testing.assert_allclose(as_unit(found), images / 255, atol=1e-6)
    data, _ = pixels_from(given_, None, None, "x")
    np.testing.assert_array_equal(data, images)
    assert data.dtype == np.uint8


@given(kind=st.sampled_from(list(TYPES)), channels=st.sampled_from([1, 3]), height=SIZES, width=SIZES)
def test_every_form_of_one_image_gives_the_same_pixels(kind: str, channels: int, height: int, width: int):
    image = pictures(1, channels, height, width)
    forms = [image, image[0], image[0].transpose(1, 2, 0), image.transpose(0, 2, 3, 1), [image[0]]]
    forms += [image[0, 0], image[:, 0]] if channels == 1 else []
    for form in forms:
        what = [TYPES[kind](form[0])] if isinstance(form, list) else TYPES[kind](form)
        found = images_from(what, (channels, height, width))
        np.testing.assert_allclose(as_unit(found), image / 255, atol=1e-6)


def test_truth_values_are_black_and_white():
    truth = pictures(2, 1, 4, 5) > 127
    expected = torch.from_numpy(truth.astype(np.uint8) * 255)
    assert torch.equal(images_from(truth, (1, 4, 5)), expected)
    np.testing.assert_array_equal(pixels_from(truth, None, None, "x")[0], expected)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_type_are_taken(dtype: torch.dtype):
    images = torch.from_numpy(pictures(2, 1, 4, 5))
    what = images.double().div(255).to(dtype) if dtype.is_floating_point else images.int().to(dtype)
    np.testing.assert_allclose(as_unit(images_from(what, (1, 4, 5))), images / 255, atol=0.004)
    np.testing.assert_allclose(pixels_from(what, None, None, "x")[0], images, atol=1)


def test_gradients_and_read_only_memory_are_no_obstacle():
    images = pictures(2, 1, 4, 5)
    wanted = (torch.from_numpy(images) / 255).requires_grad_()
    np.testing.assert_allclose(as_unit(images_from(wanted, (1, 4, 5)).detach()), images / 255, atol=1e-6)
    np.testing.assert_array_equal(pixels_from(wanted, None, None, "x")[0], images)
    source = read_only(images)
    images_from(source, (1, 4, 5)).fill_(0)
    np.testing.assert_array_equal(source, images)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


def in_mode(halves: np.ndarray, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(halves.astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(halves).convert(mode)
    image = Image.fromarray(halves).convert("RGB")
    return image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_pillow_images_of_every_mode_show_the_same_picture(mode: str):
    halves = np.zeros((8, 8), np.uint8)
    halves[:, 4:] = 255
    image = in_mode(halves, mode)
    for channels in (1, 3):
        expected = np.broadcast_to(halves, (1, channels, 8, 8))
        for what in (image, [image]):
            np.testing.assert_allclose(images_from(what, (channels, 8, 8)), expected, atol=1)
    found, _ = pixels_from([image, image], None, None, "x")
    np.testing.assert_allclose(found, np.broadcast_to(halves, found.shape), atol=1)
    assert found.shape[1] in (1, 3)


def test_pillow_images_in_a_palette_keep_their_colours():
    image = Image.new("P", (4, 5), 1)
    image.putpalette([0, 0, 0, 10, 100, 200])
    for found in (images_from(image, (3, 5, 4))[0], pixels_from([image], None, None, "x")[0][0]):
        assert [int(channel[0, 0]) for channel in found] == [10, 100, 200]


def test_pillow_images_are_stretched_to_the_size_and_turned_as_their_exif_data_say():
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    assert images_from(image, (1, 2, 3)).shape == (1, 1, 2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.getexif().update(exif)
    turned = np.rot90(np.asarray(image), -1)
    np.testing.assert_array_equal(images_from(image, (1, 6, 4))[0, 0], turned)
    np.testing.assert_array_equal(pixels_from([image], None, None, "x")[0][0, 0], turned)


def test_deep_images_are_scaled_from_the_range_that_is_given():
    deep = np.array([[0, 1000], [2000, 4000]], np.uint16)
    expected = [[0, 0.25], [0.5, 1]]
    np.testing.assert_allclose(as_unit(images_from(deep, (1, 2, 2), (0, 4000)))[0, 0], expected)
    np.testing.assert_allclose(
        as_unit(images_from(Image.fromarray(deep), (1, 2, 2), (0, 4000)))[0, 0], expected, atol=0.003
    )
    signed = np.array([[-1.0, 0.0], [0.5, 1.0]])
    np.testing.assert_allclose(as_unit(images_from(signed, (1, 2, 2), (-1, 1)))[0, 0], [[0, 0.5], [0.75, 1]])
    beyond = images_from(deep, (1, 2, 2), (1000, 2000))
    np.testing.assert_allclose(as_unit(beyond)[0, 0], [[0, 0], [1, 1]])


def test_no_images_are_no_error():
    assert images_from([], (1, 4, 5)).shape == (0, 1, 4, 5)
    assert images_from(np.zeros((0, 4, 5), np.uint8), (1, 4, 5)).shape == (0, 1, 4, 5)
    assert images_from(np.zeros((0, 1, 4, 5)), (1, 4, 5)).shape == (0, 1, 4, 5)


GREY = (1, 4, 5)
REFUSED_BY_NETWORKS = [
    (np.zeros((5, 4, 1), np.uint8), GREY, r"images of shape \(5, 4, 1\) do not fit .* \[N, 1, 4, 5\]: resize them"),
    (np.zeros((2, 3, 4, 5)), GREY, "do not fit the network"),
    (np.zeros(20), GREY, r"images of shape \(20,\)"),
    (np.full((4, 5), 2.0), GREY, "images of floats from 2 to 2 where 0 to 1 is expected: divide them"),
    (np.full((4, 5), -1), GREY, "images of whole numbers from -1 to -1 where 0 to 255 is expected"),
    (np.full((4, 5), 256), GREY, "images of whole numbers from 256 to 256"),
    (np.eye(4, 5, dtype=np.int64), GREY, "images of whole numbers from 0 to 1 where"),
    (np.full((4, 5), np.nan), GREY, "values that are not finite numbers"),
    (np.zeros((4, 5), complex), GREY, "images of complex numbers"),
    ([np.zeros((4, 5)), np.zeros((5, 4))], GREY, r"images of different shapes, such as \(4, 5\) and \(5, 4\)"),
    ([np.zeros((4, 5), np.uint8), np.zeros((4, 5))], GREY, "images of different types, such as float64 and uint8"),
    ("picture.png", GREY, "images must be a tensor, an array, PIL images or a list of these, got str"),
    (None, GREY, "images must be a tensor, .* got NoneType"),
    (["a.png", "b.png"], GREY, "images must be a tensor"),
]


@pytest.mark.parametrize(("what", "shape", "said"), REFUSED_BY_NETWORKS)
def test_images_whose_meaning_is_not_clear_are_refused(what: Any, shape: tuple[int, int, int], said: str):
    with pytest.raises(DataError, match=said) as caught:
        images_from(what, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"x: images of shape \(2, 3, 4, 3\): say where .* \(channels_last\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "have neither 1 nor 3 channels"),
        (np.zeros((4, 4), np.uint8), r"images must be \[N, H, W\], .* got \(4, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), r"got \(0, 4, 4\)"),
        (np.eye(4, dtype=np.int64)[None], r"whole numbers 0 and 1 only: give booleans, or value_range=\(0, 1\)"),
        (np.full((1, 4, 4), -1.0), "values from -1 to -1: give the values of black and white"),
        (np.full((1, 4, 4), 70000), "values from 70000 to 70000: give the values of"),
        (np.full((1, 4, 4), np.inf), "values that are not finite numbers"),
        (np.zeros((1, 4, 4), complex), "images of complex numbers"),
        ([], "no images"),
        ([None], "images must be a tensor"),
    ],
)
def test_data_sets_whose_meaning_is_not_clear_are_refused(what: Any, said: str):
    with pytest.raises(DataError, match=said) as caught:
        pixels_from(what, None, None, "x")
    assert "\n" not in str(caught.value)


def test_where_the_channels_are_can_be_said():
    images = pictures(2, 3, 4, 3)
    np.testing.assert_array_equal(pixels_from(images, None, False, "x")[0], images)
    np.testing.assert_array_equal(pixels_from(images.transpose(0, 2, 3, 1), None, True, "x")[0], images)


IMAGES = pictures(30, 1, 6, 7)


def from_arrays(x: Any = IMAGES, y: Any = None, **options: Any) -> ImageDataset:
    return ImageDataset.from_arrays(x, [0, 1, 2] * 10 if y is None else y, **options)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 2], ("0", "1", "2")),
        ([1, 2, 3], ("1", "2", "3")),
        ([2019, 2020, 2024], ("2019", "2020", "2024")),
        ([2, 10, 100], ("2", "10", "100")),
        ([1.0, 2.0, 3.0], ("1", "2", "3")),
        (["ape", "bee", "cat"], ("ape", "bee", "cat")),
        (["item 1", "item 2", "item 10"], ("item 1", "item 2", "item 10")),
        (["é", "漢", "a b"], ("a b", "é", "漢")),
        ([b"x", b"y", b"z"], ("x", "y", "z")),
        ([False, True, True], ("0", "1")),
    ],
)
@pytest.mark.parametrize("container", [list, tuple, np.array, lambda values: np.array(values)[:, None]])
def test_labels_of_any_type_become_classes(labels: list[Any], classes: tuple[str, ...], container: Callable):
    data = from_arrays(y=container(labels * 10))
    assert data.classes == classes
    seen = {image.numpy().tobytes(): data.classes[label] for part in (data.train, data.validation, data.test)
            for image, label in zip(part.images, part.labels, strict=True)}  # fmt: skip
    assert len(seen) == 30
    for image, label in zip(IMAGES, labels * 10, strict=True):
        name = label.decode() if isinstance(label, bytes) else label if isinstance(label, str) else str(int(label))
        assert seen[image.tobytes()] == name


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0.5, 1, 2], None, "labels of the train part must be whole numbers or names"),
        ([None, 1, 2], None, "must be whole numbers or names, one for each image, got list"),
        ([float("inf"), 1, 2], None, "must be whole numbers or names"),
        ([-1, 0, 1], None, "label -1 is below 0: leave out images without a label"),
        ([4, 4, 4], None, r"only one class \(4\): at least two are needed"),
        ([0, 1, 3], ("a", "b", "c"), "label 3 is not one of the 3 classes, numbered from 0"),
        (["a", "b", "d"], ("a", "b", "c"), "label 'd' is not one of the classes a, b, c"),
        ([0, 1, 1], ("a", "a"), "two classes have the same name"),
    ],
)
def test_labels_that_are_none_are_refused(labels: list[Any], classes: Any, said: str):
    with pytest.raises(DataError, match=said) as caught:
        from_arrays(y=labels * 10, classes=classes)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="arrays: 30 train images but 3 labels"):
        from_arrays(y=[0, 1, 2])


@given(
    kind=st.sampled_from(list(TYPES)), container=st.sampled_from(list(CONTAINERS)),
    layout=st.sampled_from(list(LAYOUTS)), labels=st.sampled_from([list, tuple, np.array, torch.tensor]),
)  # fmt: skip
def test_the_fingerprint_is_that_of_the_content_whatever_it_is_given_in(kind, container, layout, labels):
    same = from_arrays(CONTAINERS[container](TYPES[kind](LAYOUTS[layout](IMAGES))), labels([0, 1, 2] * 10))
    assert same.fingerprint == from_arrays().fingerprint


@given(place=st.integers(0, IMAGES.size - 1), value=st.integers(1, 255), number=st.integers(0, 29))
def test_one_pixel_or_label_changes_the_fingerprint(place: int, value: int, number: int):
    other = IMAGES.copy()
    other.ravel()[place] ^= value  # another value in any case
    labels = [0, 1, 2] * 10
    before = from_arrays().fingerprint
    assert from_arrays(other).fingerprint != before
    labels[number] = (labels[number] + 1) % 3
    assert from_arrays(y=labels).fingerprint != before
    assert from_arrays(classes=["a", "b", "c"]).fingerprint != before


def test_parts_that_are_given_are_kept_and_others_split_off_by_the_seed():
    data = from_arrays(x_test=IMAGES[:6], y_test=[0, 1, 2] * 2, validation=0.2)
    np.testing.assert_array_equal(data.test.images, IMAGES[:6])
    assert (len(data.train), len(data.validation)) == (24, 6)
    assert from_arrays(split_seed=1).fingerprint != from_arrays().fingerprint
    with pytest.raises(DataError, match="6 test images but no labels"):
        from_arrays(x_test=IMAGES[:6])


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float64])
def test_all_parts_are_scaled_from_one_range(dtype: type):
    deep = IMAGES.astype(dtype) * 16
    bright = deep.copy()
    bright[0, 0, 0, 0] = 60000  # only the test part has a value of 16 bits
    data = from_arrays(deep, x_test=bright, y_test=[0, 1, 2] * 10)
    assert data.value_range == (0, 65535)
    dark = {image.numpy().tobytes() for image in data.test.images[1:]}
    missing = [image for image in data.train.images if image.numpy().tobytes() not in dark]
    assert len(missing) <= 1  # the one that has the bright pixel
    mixed = from_arrays(IMAGES, x_test=IMAGES / 255, y_test=[0, 1, 2] * 10)
    np.testing.assert_array_equal(mixed.test.images, IMAGES)
    assert mixed.train.images.max() == 255
    assert mixed.train.images.float().mean() == pytest.approx(IMAGES.mean(), rel=0.1)


class Pairs(Dataset):
    """A data set of torch."""

    def __init__(self, images: list[Any], labels: list[Any], classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


@pytest.mark.parametrize(
    "of",
    [
        lambda image: image, lambda image: image[0], lambda image: torch.from_numpy(image / 255).float(),
        lambda image: Image.fromarray(image[0]),
    ],
    ids=["array", "grey array", "tensor", "Pillow"],
)  # fmt: skip
def test_a_torch_data_set_is_the_same_as_its_arrays(of: Callable[[np.ndarray], Any]):
    pairs = Pairs([of(image) for image in IMAGES], [torch.tensor(n % 3) for n in range(30)], ["a", "b", "c"])
    data = ImageDataset.from_torch(pairs)
    assert data.fingerprint == from_arrays(classes=["a", "b", "c"]).fingerprint
    assert (data.name, data.classes) == ("pairs", ("a", "b", "c"))
    assert ImageDataset.from_torch(pairs, ["x", "y", "z"], name="mine").classes == ("x", "y", "z")
    split = ImageDataset.from_torch(pairs, x_test=Pairs(pairs.images[:6], pairs.labels[:6]))
    np.testing.assert_array_equal(split.test.images, IMAGES[:6])


def test_torch_data_sets_that_cannot_be_used_are_one_line():
    with pytest.raises(DataError, match="a data set without images"):
        ImageDataset.from_torch(Pairs([], []))
    with pytest.raises(DataError, match=r"images of different shapes, such as \(1, 4, 7\) and \(1, 6, 7\)"):
        ImageDataset.from_torch(Pairs([IMAGES[0], IMAGES[0, :, :4]], [0, 1]))


class Rows(list):
    """Stands for a `datasets.Dataset`."""

    def __init__(self, image: str, label: str, labels: list[Any], names: list[str] | None = None) -> None:
        images = [Image.fromarray(image[0]) for image in IMAGES]
        super().__init__({image: picture, label: value} for picture, value in zip(images, labels, strict=False))
        self.column_names = [image, label]
        self.features = {label: type("ClassLabel", (), {"names": names})()} if names else {}


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("images", "target")])
def test_a_hugging_face_data_set_is_the_same_as_its_arrays(columns: tuple[str, str]):
    data = ImageDataset.from_huggingface(Rows(*columns, [0, 1, 2] * 10, ["a", "b", "c"]))
    assert data.fingerprint == from_arrays(classes=["a", "b", "c"]).fingerprint
    assert ImageDataset.from_huggingface(Rows(*columns, ["x", "y", "z"] * 10)).classes == ("x", "y", "z")


def test_the_parts_of_a_hugging_face_data_set_are_kept():
    parts = {"train": Rows("image", "label", [0, 1, 2] * 10), "test": Rows("image", "label", [0, 1, 2] * 2)}
    data = ImageDataset.from_huggingface(parts)
    np.testing.assert_array_equal(data.test.images, IMAGES[:6])
    parts["valid"] = parts.pop("test")
    assert len(ImageDataset.from_huggingface(parts).validation) == 6
    own = Rows("picture", "kind", [0, 1, 2] * 10)
    named = ImageDataset.from_huggingface(own, image_column="picture", label_column="kind")
    assert named.fingerprint == from_arrays().fingerprint


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        (Rows("picture", "label", [0, 1]), {}, "none of the columns picture, label is called image or img"),
        (Rows("image", "label", [0, 1]), {"label_column": "kind"}, "no column 'kind': the columns are image, label"),
        ({"unsupervised": []}, {}, "part 'unsupervised' is not one of train, validation, test"),
        ({"test": Rows("image", "label", [0, 1])}, {}, "parts test but no train: rename one"),
    ],
)
def test_hugging_face_data_sets_that_cannot_be_used_are_one_line(dataset: Any, options: dict, said: str):
    with pytest.raises(DataError, match=said):
        ImageDataset.from_huggingface(dataset, **options)


def test_a_network_predicts_the_same_from_every_form():
    model = create_model("capsnet", (1, 12, 12), 3, width=8, decoder=False)
    images = pictures(3, 1, 12, 12)
    expected = predict(model, images)
    for what in (images[:, 0], images / 255, [Image.fromarray(image[0]) for image in images], torch.from_numpy(images)):
        torch.testing.assert_close(predict(model, what), expected, rtol=1e-4, atol=1e-5)
