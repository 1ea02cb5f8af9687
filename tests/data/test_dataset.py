"""Images in memory: every unambiguous form means the same, and what is ambiguous is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualcaps import DataError, ImageDataset, ImageSplit
from dualcaps.data.convert import images_from

GREY, COLOUR = (1, 6, 7), (3, 6, 7)


def pixels(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


FORMS: dict[str, Any] = {
    "array, channels first": lambda x: x,
    "array, channels last": lambda x: x.transpose(0, 2, 3, 1),
    "tensor": torch.from_numpy,
    "floats": lambda x: x.astype(np.float32) / 255,
    "doubles": lambda x: torch.from_numpy(x).double() / 255,
    "whole numbers": lambda x: x.astype(np.int64),
    "list of arrays": list,
    "PIL": lambda x: [Image.fromarray(one[0] if len(one) == 1 else one.transpose(1, 2, 0)) for one in x],
}


@pytest.mark.parametrize("form", FORMS)
@given(shape=st.sampled_from([GREY, COLOUR]), count=st.integers(2, 4), seed=st.integers(0, 99))
def test_every_form_is_predicted_on_the_same_pixels(form: str, shape: tuple[int, int, int], count: int, seed: int):
    x = pixels(shape, count, seed)
    x[0, 0, 0, :2] = 0, 255  # so that whole numbers are not taken for a smaller range
    found = images_from(FORMS[form](x), shape)
    if found.is_floating_point():
        found = (found * 255).round().to(torch.uint8)
    np.testing.assert_array_equal(found.numpy(), x)
    one = images_from(FORMS[form](x)[0], shape)
    assert one.shape == (1, *shape)


def test_truth_values_are_black_and_white():
    assert images_from(np.eye(6, 7, dtype=bool), GREY).unique().tolist() == [0, 255]


def test_a_known_range_scales_other_values():
    deep = np.array([[0, 2048, 4095]], np.uint16)
    torch.testing.assert_close(
        images_from(deep, (1, 1, 3), (0.0, 4095.0)).flatten(), torch.tensor([0, 2048 / 4095, 1]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.full((2, 1, 6, 7), 2.0), "floats from 2 to 2 where 0 to 1 is expected"),
        (np.full((2, 1, 6, 7), -0.5), "floats from -0.5 to -0.5"),
        (np.full((2, 1, 6, 7), np.nan), "not finite"),
        (np.full((2, 1, 6, 7), 4000), "whole numbers from 4000 to 4000"),
        (np.ones((2, 1, 6, 7), int), "whole numbers from 1 to 1"),
        (np.zeros((2, 7, 6), np.uint8), r"images of shape \(2, 7, 6\) do not fit"),
        ("photo.png", "images must be a tensor, an array, PIL images or a list of these"),
        ([[1, 2], [3]], "images of different shapes"),
    ],
)
def test_what_is_not_clear_is_refused(images: Any, said: str):
    with pytest.raises(DataError, match=said):
        images_from(images, GREY)


LABELS: dict[str, Any] = {
    "numbers from 0": ([0, 1, 2], ("0", "1", "2")),
    "numbers from 1": ([1, 2, 3], ("1", "2", "3")),
    "years": ([1999, 2005, 2020], ("1999", "2005", "2020")),
    "names": (["ant", "bee", "cat"], ("ant", "bee", "cat")),
    "names with numbers": (["c2", "c10", "c1"], ("c1", "c2", "c10")),
    "bytes": ([b"ant", b"bee", b"cat"], ("ant", "bee", "cat")),
    "whole floats": ([0.0, 1.0, 2.0], ("0", "1", "2")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_become_classes_without_empty_ones(kind: str):
    values, classes = LABELS[kind]
    y = np.array(values * 10)
    data = ImageDataset.from_arrays(pixels(GREY, 30, 0), y, name="mine")
    assert data.classes == classes
    for split in (data.train, data.validation, data.test):
        assert set(split.labels.tolist()) == {0, 1, 2}
    names = [values[0].decode() if isinstance(values[0], bytes) else str(values[0]).removesuffix(".0")]
    first = (data.train + data.validation + data.test).images == torch.from_numpy(pixels(GREY, 30, 0)[:1])
    place = int(first.flatten(1).all(dim=1).nonzero()[0])
    assert data.classes[(data.train + data.validation + data.test).labels[place]] == names[0]


@pytest.mark.parametrize(
    ("y", "classes", "said"),
    [
        ([0.5] * 30, None, "labels of the train part must be whole numbers or names"),
        ([0] * 30, None, "only one class"),
        ([0, -1] * 15, None, "label -1 is below 0"),
        ([0, 1, 5] * 10, ["a", "b"], "label 5 is not one of the 2 classes"),
        (["a", "b", "x"] * 10, ["a", "b"], "label 'x' is not one of the classes a, b"),
        ([0, 1] * 15, ["a", "a"], "two classes have the same name"),
        ([0, 1] * 14, None, "30 train images but 28 labels"),
        (np.zeros((30, 3), int), None, "labels of the train part"),
    ],
)
def test_labels_that_are_not_clear_are_refused(y: Any, classes: Any, said: str):
    with pytest.raises(DataError, match=said):
        ImageDataset.from_arrays(pixels(GREY, 30, 0), y, classes)


def test_the_fingerprint_follows_pixels_labels_and_names_alone():
    x, y = pixels(GREY, 30, 0), [0, 1] * 15
    print_of = lambda *arguments, **options: ImageDataset.from_arrays(*arguments, **options).fingerprint  # noqa: E731
    same = print_of(x, y)
    assert print_of(torch.from_numpy(x), torch.tensor(y), name="other") == same
    assert print_of(x.transpose(0, 2, 3, 1), y, channels_last=True) == same
    changed = x.copy()
    changed[7, 0, 3, 3] ^= 1
    others = {
        print_of(changed, y),
        print_of(x, [1, *y[1:]]),
        print_of(x, y, ["a", "b"]),
        print_of(x, y, split_seed=1),
        print_of(255 - x, y),
    }
    assert len(others) == 5
    assert same not in others


class Pairs(torch.utils.data.Dataset):
    classes = ("even", "odd")

    def __init__(self, count: int, kind: type) -> None:
        self.x, self.kind = pixels(GREY, count, 1), kind

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.x[index][0]
        return (Image.fromarray(image) if self.kind is Image.Image else torch.from_numpy(image)[None]), index % 2


@pytest.mark.parametrize("kind", [Image.Image, torch.Tensor])
def test_a_torch_data_set_is_taken_with_its_classes_and_test_part(kind: type):
    data = ImageDataset.from_torch(Pairs(30, kind), x_test=Pairs(8, kind))
    assert (data.name, data.classes, len(data.test)) == ("pairs", ("even", "odd"), 8)
    np.testing.assert_array_equal(data.test.images.numpy(), pixels(GREY, 8, 1))
    assert data.test.labels.tolist() == [0, 1] * 4


class Rows(list):
    """Rows as Hugging Face `datasets` gives them."""

    column_names = ("img", "fine_label")
    features = {"fine_label": type("ClassLabel", (), {"names": ["even", "odd"]})}  # noqa: RUF012


def rows(count: int, seed: int) -> Rows:
    x = pixels(GREY, count, seed)
    return Rows({"img": Image.fromarray(one[0]), "fine_label": n % 2} for n, one in enumerate(x))


def test_hugging_face_data_are_taken_with_parts_and_names():
    data = ImageDataset.from_huggingface({"train": rows(30, 0), "test": rows(6, 1)})
    assert data.classes == ("even", "odd")
    np.testing.assert_array_equal(data.test.images.numpy(), pixels(GREY, 6, 1))
    with pytest.raises(DataError, match="no column 'label': the columns are img, fine_label"):
        ImageDataset.from_huggingface(rows(6, 0), label_column="label")
    with pytest.raises(DataError, match="part 'extra' is not one of train, validation, test"):
        ImageDataset.from_huggingface({"extra": rows(6, 0)})


def test_splits_check_their_tensors():
    with pytest.raises(DataError, match=r"images must be uint8 \[N, C, H, W\], got float32 \(2, 1, 6, 7\)"):
        ImageSplit(torch.zeros(2, 1, 6, 7), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="labels must be class numbers, got float32"):
        ImageSplit(torch.zeros(2, 1, 6, 7, dtype=torch.uint8), torch.zeros(2))
    with pytest.raises(DataError, match=r"2 images but labels of shape \(3,\)"):
        ImageSplit(torch.zeros(2, 1, 6, 7, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
