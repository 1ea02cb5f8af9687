"""The scikit-learn estimator."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from support import draw_shape

from dualcaps import CapsNetClassifier, predict

SMALL: dict[str, Any] = {"model": "capsnet", "switches": {"width": 8, "decoder": False}}

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "repeated images come in other batches",
    "check_methods_subset_invariance": "sums in float32 differ in the seventh digit with the size of the batch",
    "check_methods_sample_order_invariance": "sums in float32 differ in the seventh digit with the place in the batch",
}


def shapes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 16, 16] of three patterns, and their names."""
    random = np.random.default_rng(0)
    images = np.stack([draw_shape(number, (16, 16), random) for number in range(count)])
    return images, np.array(["across", "down", "slanted"])[np.arange(count) % 3]


def small(**options: Any) -> CapsNetClassifier:
    return CapsNetClassifier(**{**SMALL, "epochs": 4, "random_state": 0, "batch_size": 16, **options})


@pytest.mark.slow
@parametrize_with_checks(
    [CapsNetClassifier(**SMALL, epochs=12, batch_size=32, lr=1e-2, random_state=0)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learn_finds_nothing_wrong(estimator: Any, check: Any):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*images are too few to hold")
        check(estimator)


def test_images_are_classified_with_probabilities_and_poses():
    images, names = shapes(120)
    classifier = small().fit(images[:90], names[:90])
    assert classifier.classes_.tolist() == ["across", "down", "slanted"]
    assert classifier.score(images[90:], names[90:]) > 0.9
    probabilities = classifier.predict_proba(images[90:])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    lengths = predict(classifier.network_, torch.from_numpy(images[90:, None])).numpy()
    shares = np.exp(lengths / classifier.temperature_)
    np.testing.assert_allclose(probabilities, shares / shares.sum(axis=1, keepdims=True), rtol=1e-4)
    assert (probabilities.argmax(axis=1) == lengths.argmax(axis=1)).all()
    assert classifier.calibration_error_["after"] < classifier.calibration_error_["before"]
    poses = classifier.transform(images[90:])
    assert poses.shape == (30, 3 * 16)
    np.testing.assert_allclose(np.linalg.norm(poses.reshape(30, 3, 16), axis=2), lengths, atol=1e-5)
    assert classifier.get_feature_names_out()[[0, 17]].tolist() == ["pose0_0", "pose1_1"]
    assert len(classifier.history_) == 4


def test_the_same_images_in_every_form_are_trained_on_alike():
    images, names = shapes(60)
    wanted = small(epochs=1).fit(images, names).predict_proba(images)
    colour = np.repeat(images[..., None], 3, axis=3)
    forms = [
        ({"image_shape": (16, 16)}, images.reshape(60, 256)),
        ({}, images.reshape(60, 256)),  # a square
        ({}, images[..., None]),
        ({"channels_first": True}, images[:, None]),
    ]
    for options, X in forms:  # noqa: N806
        np.testing.assert_array_equal(small(epochs=1, **options).fit(X, names).predict_proba(X), wanted)
    in_colour = small(epochs=1).fit(colour, names)
    assert in_colour.network_.config.image_shape == (3, 16, 16)
    of_features = small(epochs=1, image_shape=(16, 16, 3)).fit(colour.reshape(60, 768), names)
    np.testing.assert_array_equal(of_features.predict_proba(colour.reshape(60, 768)), in_colour.predict_proba(colour))


def test_small_images_are_enlarged_and_other_ranges_scaled():
    X = np.linspace(-3, 5, 40 * 10).reshape(40, 10)  # noqa: N806
    classifier = small(epochs=1).fit(X, np.arange(40) % 2)
    assert classifier.network_.config.image_shape == (1, 16, 16)
    assert classifier.value_range_ == (-3, 5)
    images = classifier._images(X)
    assert (images[-1, 0, 8:12, 4:8] == 255).all()  # the tenth feature, third row and second column of 4x4
    assert (images[:, 0, 12:] == 0).all()
    np.testing.assert_array_equal(classifier.predict_proba(X + 100), classifier.predict_proba(np.full_like(X, 5)))


def test_a_random_state_repeats_the_training_and_leaves_torch_alone():
    images, names = shapes(60)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    first = small(epochs=1).fit(images, names)
    assert torch.rand(1) == wanted
    second = clone(first).fit(images, names)
    np.testing.assert_array_equal(first.predict_proba(images), second.predict_proba(images))
    other = small(epochs=1, random_state=1).fit(images, names)
    assert not np.array_equal(first.predict_proba(images), other.predict_proba(images))
    copied = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(first.predict_proba(images), copied.predict_proba(images))


def test_images_without_weight_do_not_count():
    images, names = shapes(90)
    wrong = names.copy()
    wrong[60:] = np.roll(names[60:], 1)
    weight = np.r_[np.ones(60), np.zeros(30)]
    classifier = small(epochs=8).fit(images, wrong, sample_weight=weight)
    assert classifier.score(images, names) > 0.9
    with pytest.raises(ValueError, match="must not be negative"):
        small().fit(images, names, sample_weight=-weight)
    with pytest.raises(ValueError, match="times as much"):
        small().fit(images, names, sample_weight=np.r_[np.full(87, 1), np.full(3, 1_000)])


def test_it_works_in_the_tools_of_scikit_learn():
    images, names = shapes(90)
    X = images.reshape(90, 256) / 255  # noqa: N806
    pipeline = make_pipeline(MinMaxScaler(), small(image_shape=(16, 16)))
    assert cross_val_score(pipeline, X, names, cv=2, n_jobs=2).mean() > 0.8
    search = GridSearchCV(small(epochs=2), {"lr": [1e-9, 3e-3]}, cv=2).fit(X, names)
    assert search.best_params_ == {"lr": 3e-3}
    calibrated = CalibratedClassifierCV(small(), cv=2).fit(X, names)
    assert calibrated.predict_proba(X).shape == (90, 3)


def test_mistakes_are_named():
    images, names = shapes(30)
    for X, options, said in (  # noqa: N806
        (images[:, :, :, None].repeat(2, axis=3), {}, "1 or 3 channels, got 2"),
        (images.reshape(30, 256), {"image_shape": (15, 15)}, r"image_shape \(15, 15\) does not fit 256 features"),
        (images, {"image_shape": (16, 16)}, "image_shape is for features"),
        (images[:, None, None], {}, "features .* or images of 3 or 4 axes"),
        (images, {"validation": 2.0}, "validation must be above 0"),
        (images, {"model": "capsnt"}, "did you mean 'capsnet'"),
    ):
        with pytest.raises(ValueError, match=said):
            small(**options).fit(X, names)
    with pytest.raises(ValueError, match="one class only"):
        small().fit(images, np.zeros(30))
    with pytest.warns(UserWarning, match="too few to hold 0.1 of them out"):
        fitted = small(epochs=1).fit(images[:6], names[:6])
    with pytest.raises(ValueError, match=r"images of shape \(16, 8\), but trained on \(16, 16\)"):
        fitted.predict(images[:, :, :8])
