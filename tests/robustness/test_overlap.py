"""Overlapping images: both classes are found by a network trained for it, and each is reconstructed."""

import numpy as np
import pytest
import torch
from support import draw_shape

from dualcaps import ImageDataset, ImageSplit, TrainConfig, create_model, fit
from dualcaps.robustness.overlap import both_found, score_overlap


def test_both_classes_must_be_the_two_longest():
    lengths = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.1, 0.8, 0.9]])
    assert both_found(lengths, torch.tensor([[0, 1], [0, 1], [2, 1]])).tolist() == [True, False, True]
    assert both_found(lengths[:1], torch.tensor([[1, 1]])).tolist() == [True]  # an image that was left alone


@pytest.fixture(scope="module")
def shapes() -> ImageDataset:
    random = np.random.default_rng(0)
    labels = [number % 4 for number in range(240)]
    return ImageDataset.from_arrays(np.stack([draw_shape(label, (16, 16), random) for label in labels]), labels)


def test_training_on_overlapping_images_finds_and_draws_both(shapes: ImageDataset, tmp_path):
    torch.manual_seed(0)
    model = create_model("capsnet", shapes.image_shape, 4, width=16)
    test = ImageSplit(shapes.test.images, shapes.test.labels)
    before = score_overlap(model, test)
    config = TrainConfig(
        epochs=30, batch_size=16, augment="shift=0.1,overlap", protocol="last", precision="float32", device="cpu",
        reconstruction_weight=0.05, lr=0.003,
    )  # fmt: skip
    result = fit(model, shapes, config, out=tmp_path / "run", quiet=True, pictures=False)
    after = score_overlap(model, test)
    assert after.images == len(test)
    assert after.both > max(0.5, before.both + 0.2)
    assert after.both <= after.each
    assert result.history[-1]["train_accuracy"] > 0.5
    assert after.reconstruction_error is not None
    assert after.reconstruction_error < 0.8 * after.blank_error
    assert after == score_overlap(model, test)


def test_a_network_without_a_decoder_has_no_reconstruction_error(shapes: ImageDataset):
    score = score_overlap(
        create_model("cnn", shapes.image_shape, 4), ImageSplit(shapes.test.images, shapes.test.labels)
    )
    assert score.reconstruction_error is None
    assert 0 <= score.both <= score.each <= 1


def test_images_of_one_class_make_no_pairs(shapes: ImageDataset):
    only = ImageSplit(shapes.test.images[:5], torch.zeros(5, dtype=torch.int64))
    assert score_overlap(create_model("cnn", shapes.image_shape, 4), only).images == 0
