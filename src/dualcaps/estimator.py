"""`CapsNetClassifier`: the networks as a scikit-learn estimator."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dualcaps.calibration import kept_calibration, probabilities
from dualcaps.config import Optimizer, TrainConfig
from dualcaps.data.dataset import ImageDataset, ImageSplit
from dualcaps.inference import predict as predict_lengths
from dualcaps.inference import run_batches
from dualcaps.models import create_model
from dualcaps.runs.run import Run
from dualcaps.training.fit import fit as fit_network

_SMALLEST_SIDE = 16  # of the networks' images, in pixels; smaller ones are enlarged
_MOST_REPEATS = 100  # of one image with a large sample weight


class CapsNetClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """A capsule network that classifies images, for scikit-learn.

    `X` is images [n, H, W], [n, H, W, C] (or [n, C, H, W] with `channels_first`), or features [n, f], which are images
    of `image_shape` in the order of numpy's `reshape`; without `image_shape` they fill a square row by row, the rest of
    it is black. Numbers of type uint8 stand for black at 0 and white at 255; of other types the smallest and largest
    number of the training data do, and others are clipped to that range. Images with a side below 16 pixels are
    enlarged.

    Probabilities are softmax(lengths / T). The temperature T minimises the cross-entropy on a held-out part of the
    training data, on which the epoch is selected too (Guo et al. 2017).

    Training computes in float32 without compilation, so that it can be repeated with an integer `random_state`.

    Args:
        model: a registered network.
        epochs: passes over the training images.
        batch_size: images in a training step.
        lr: learning rate; by default the optimizer's.
        optimizer: adam, adamw or sgd.
        augment: changes of the training images, as in `TrainConfig`.
        device: auto, cpu, cuda, …
        switches: fields of `ModelConfig` and options of the network, such as {"width": 32, "iterations": 2}.
        image_shape: (H, W) or (H, W, C) of features; with `channels_first` (C, H, W).
        channels_first: whether images of four axes are [n, C, H, W].
        validation: the share of the training images held out, above 0 and below 1. Where a class has too few images for
            it, all are trained on and used to choose epoch and temperature, with a warning.
        random_state: seed of weights, order and split.

    Attributes:
        classes_: the labels, sorted.
        network_: the trained `Network`.
        n_features_in_: the number of features, or of rows.
        value_range_: the numbers that stand for black and white.
        temperature_: T.
        calibration_error_: expected calibration error on the held-out part, "before" with lengths divided by their sum,
            and "after" with the temperature.
        history_: a dictionary for each epoch.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> classifier = CapsNetClassifier("capsnet", epochs=1, switches={"width": 8}, image_shape=(8, 8))
        >>> classifier.fit(X[:200], y[:200]).predict_proba(X[:3]).shape
        (3, 10)
    """

    def __init__(
        self,
        model: str = "da-capsnet",
        *,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float | None = None,
        optimizer: str = "adam",
        augment: str = "none",
        switches: Mapping[str, Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        channels_first: bool = False,
        validation: float = 0.1,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.augment = augment
        self.switches = switches
        self.image_shape = image_shape
        self.channels_first = channels_first
        self.validation = validation
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train on images and labels.

        Args:
            X: see the class.
            y: labels of any type, [n].
            sample_weight: how often each image counts, relative to the others; images are repeated accordingly, at
                random where that is not a whole number.

        Raises:
            ValueError: values that are not finite, one class only, a wrong shape or option.
        """
        X, y = validate_data(self, X, y, allow_nd=True, dtype="numeric")  # noqa: N806
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"one class only ({self.classes_[0]!r}): at least two are needed to train a classifier")
        self._shape = X.shape[1:]
        self.value_range_ = (0.0, 255.0) if X.dtype == np.uint8 else (float(X.min()), float(X.max()))
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31))
        images = self._images(X)
        held_out, trained = self._split(numbers, random)
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X)
            trained = trained[_repetitions(weights[trained], random)]
        labels = torch.from_numpy(numbers)
        training, selection = (ImageSplit(images[part], labels[part]) for part in (trained, held_out))
        names = tuple(map(str, range(len(self.classes_))))
        data = ImageDataset("arrays", training, selection, selection, names)  # `fit` needs test images
        config = TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=cast(Optimizer, self.optimizer),
            augment=self.augment,
            device=self.device,
            precision="float32",
            compile="never",
            seed=seed,
        )
        with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="dualcaps-") as folder:
            torch.manual_seed(seed)
            network = create_model(self.model, data.image_shape, len(self.classes_), **(self.switches or {}))
            out = Path(folder) / "run"
            result = fit_network(network, data, config, out=out, quiet=True, pictures=False, keep_checkpoint=False)
            calibration = kept_calibration(Run.open(out))
            assert calibration is not None  # `fit` computed it from the held-out part
        self.network_, self.history_ = network, result.history
        self.temperature_ = calibration.temperature
        self.calibration_error_ = {"before": calibration.error_before, "after": calibration.error_after}
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The label of the longest capsule of each image, [n]."""
        lengths = self._lengths(X)
        return self.classes_[lengths.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """The probability of each class, softmax(lengths / temperature), [n, classes]."""
        lengths = self._lengths(X)
        return probabilities(lengths, self.temperature_)

    def _lengths(self, X: Any) -> np.ndarray:  # noqa: N803
        """The length of each class's capsule, [n, classes]."""
        images = self._checked(X)
        return predict_lengths(self.network_, images).numpy()

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """The poses of all classes, [n, classes * dim].

        Raises:
            ModelError: the network has no poses.
        """
        images = self._checked(X)
        parts = [output.poses.flatten(1).float().cpu() for _, output in run_batches(self.network_, images)]
        return torch.cat(parts).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """Names of the columns of `transform`: pose0_0 is the first dimension of the first class's pose."""
        check_is_fitted(self)
        config = self.network_.config
        dim = self.transform(np.zeros((1, *self._shape))).shape[1] // config.num_classes
        return np.array(
            [f"pose{label}_{number}" for label in range(config.num_classes) for number in range(dim)], object
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # poses are float32
        return tags

    def _checked(self, X: Any) -> torch.Tensor:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, allow_nd=True, dtype="numeric", reset=False)  # noqa: N806
        if X.shape[1:] != self._shape:
            raise ValueError(f"images of shape {X.shape[1:]}, but trained on {self._shape}")
        return self._images(X)

    def _images(self, X: np.ndarray) -> torch.Tensor:  # noqa: N803
        """Images uint8 [n, C, H, W] of at least 16 pixels a side."""
        low, high = self.value_range_
        scaled = (X.astype(np.float64) - low) * (255 / (high - low)) if high > low else np.zeros(X.shape)
        pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if pixels.ndim == 2:
            pixels = self._reshaped(pixels)
        elif self.image_shape is not None:
            raise ValueError(f"image_shape is for features [n, f], got images of shape {X.shape}: leave it out")
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.ndim != 4:
            raise ValueError(f"X must be features [n, f] or images of 3 or 4 axes, got an array of shape {X.shape}")
        elif not self.channels_first:
            pixels = pixels.transpose(0, 3, 1, 2)
        if pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels, got {pixels.shape[1]} in an array of shape {X.shape}: is "
                f"channels_first={self.channels_first} right?"
            )
        times = max(1, -(-_SMALLEST_SIDE // min(pixels.shape[2:])))
        return torch.from_numpy(np.ascontiguousarray(pixels.repeat(times, axis=2).repeat(times, axis=3)))

    def _reshaped(self, features: np.ndarray) -> np.ndarray:
        count, width = features.shape
        if self.image_shape is None:
            side = int(np.ceil(np.sqrt(width)))
            return np.pad(features, ((0, 0), (0, side * side - width))).reshape(count, side, side)
        if np.prod(self.image_shape) != width or len(self.image_shape) not in (2, 3):
            raise ValueError(
                f"image_shape {self.image_shape} does not fit {width} features: their product must be that"
            )
        return features.reshape(count, *self.image_shape)

    def _split(self, numbers: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """The images held out and those trained on: both all of them where there are too few."""
        from sklearn.model_selection import train_test_split

        every = np.arange(len(numbers))
        try:
            trained, held_out = train_test_split(
                every, test_size=self.validation, stratify=numbers, random_state=random
            )
        except ValueError as error:
            if not 0 < self.validation < 1:
                raise ValueError(f"validation must be above 0 and below 1, got {self.validation}") from error
            warnings.warn(
                f"{len(numbers)} images are too few to hold {self.validation:g} of them out with every class: all are "
                "trained on, and epoch and temperature are chosen on the same images",
                stacklevel=3,
            )
            return every, every
        return np.sort(held_out), np.sort(trained)


def _repetitions(weights: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Indices, each as often as its weight says: weights are whole numbers, or else scaled to a mean of 1."""
    if (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight must not be negative, nor all zero")
    wanted = weights if np.array_equal(weights, np.rint(weights)) else weights / weights.mean()
    if wanted.max() > _MOST_REPEATS:
        raise ValueError(
            f"sample_weight: an image counts {wanted.max():g} times as much as others: at most {_MOST_REPEATS} "
            "is possible"
        )
    counts = np.floor(wanted).astype(int)
    counts += random.random_sample(len(wanted)) < wanted - counts
    return np.repeat(np.arange(len(weights)), counts)
