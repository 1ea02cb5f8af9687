"""Linear probes: how much of an image's viewpoint and light can be read linearly from poses, features and pixels.

For each class a ridge regression predicts all attributes from a representation of its images, cross-validated; the
folds are the toys of smallNORB, so that the probe is tested on a toy it has not seen, and random for COIL-20, whose
classes are one object each.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import DataError, ModelError
from dualcaps.inference import run_batches
from dualcaps.models import Intermediates, Network

ATTRIBUTES: Mapping[str, str] = {
    "azimuth": "mean error in degrees",
    "elevation": "mean error in degrees",
    "lighting": "accuracy",
}
"""The attributes that are probed, and what is measured."""

_FOLDS = 5
_PENALTIES = np.logspace(-2, 6, 9)  # of the ridge regression, for inputs of variance 1
_CIRCLE = 360


class Probe(NamedTuple):
    """How well attributes are predicted from one representation.

    values: by attribute, the measure of `ATTRIBUTES`.
    dimensions: of the representation.
    images: number of images.
    """

    values: dict[str, float]
    dimensions: int
    images: int


@torch.inference_mode()
def representations(model: Network, split: ImageSplit) -> dict[str, np.ndarray]:
    """The poses of each image's own class [N, dim], all poses, trunk features and pixels, each flattened.

    Raises:
        ModelError: the network has no poses or feature map.
    """
    found: dict[str, list[torch.Tensor]] = {"pose": [], "all poses": [], "features": [], "pixels": []}
    start = 0
    for inputs, output in run_batches(model, split.images, intermediates=True):
        assert isinstance(output, Intermediates)
        if not output.poses.shape[2] or output.features is None:
            raise ModelError(f"{model.config.name} has no poses to probe")
        labels = split.labels[start : start + len(inputs)].to(inputs.device)
        start += len(inputs)
        own = output.poses[torch.arange(len(inputs), device=inputs.device), labels]
        for name, values in (
            ("pose", own),
            ("all poses", output.poses),
            ("features", output.features),
            ("pixels", inputs),
        ):
            found[name].append(values.flatten(1).float().cpu())
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def probe_all(model: Network, split: ImageSplit, *, most: int = 5_000) -> dict[str, Probe]:
    """Probe each representation of a network, and "none", which predicts each attribute by its mean.

    Args:
        model: a capsule network; it is left in evaluation mode.
        split: images with attributes.
        most: images used, evenly from each class; images whose attributes are not known are left out.

    Raises:
        DataError: no image has attributes.
        ModelError: the network has no poses.
    """
    names = [name for name in ATTRIBUTES if name in split.attributes and (split.attributes[name] >= 0).any()]
    if not names:
        raise DataError("these images have no viewpoints to probe: smallNORB's test images and COIL-20 have")
    known = np.flatnonzero(np.all([split.attributes[name] >= 0 for name in names], axis=0))
    labels = split.labels.cpu().numpy()
    share = max(1, most // len(np.unique(labels[known])))
    random = np.random.default_rng(0)
    chosen = np.sort(
        np.concatenate(
            [random.permutation(known[labels[known] == label])[:share] for label in np.unique(labels[known])]
        )
    )
    part = ImageSplit(split.images[chosen], split.labels[chosen])
    attributes = {name: split.attributes[name][chosen] for name in names}
    groups = split.attributes["instance"][chosen] if "instance" in split.attributes else None
    found = representations(model, part)
    found["none"] = np.zeros((len(chosen), 1), np.float32)
    return {name: probe(values, attributes, part.labels.numpy(), groups) for name, values in found.items()}


def probe(
    values: np.ndarray, attributes: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray | None = None
) -> Probe:
    """Probe one representation.

    Args:
        values: [N, dim].
        attributes: names in `ATTRIBUTES`, with the attribute of each image.
        labels: the class of each image; each has a regression of its own.
        groups: images of a class with the same number stay in one fold; by default the folds are random.

    Raises:
        DataError: a class has fewer than 5 images, or only one group.
    """
    predicted = {name: np.zeros(len(values)) for name in attributes}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        for trained, tested in _folds(own, None if groups is None else groups[own]):
            answers = _ridge(values, attributes, trained, tested)
            for name, answer in answers.items():
                predicted[name][tested] = answer
    measures = {name: _measure(name, predicted[name], truth) for name, truth in attributes.items()}
    return Probe(measures, values.shape[1], len(values))


def _folds(own: np.ndarray, groups: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, KFold

    if len(own) < _FOLDS:
        raise DataError(f"a class has {len(own)} images: at least {_FOLDS} are needed to probe it")
    if groups is None:
        folds = KFold(_FOLDS, shuffle=True, random_state=0).split(own)
    else:
        count = len(np.unique(groups))
        if count < 2:
            raise DataError("a class has one instance only: at least two are needed to probe it")
        folds = GroupKFold(min(_FOLDS, count)).split(own, groups=groups)
    return [(own[trained], own[tested]) for trained, tested in folds]


def _ridge(
    values: np.ndarray, attributes: Mapping[str, np.ndarray], trained: np.ndarray, tested: np.ndarray
) -> dict[str, np.ndarray]:
    """Predict the attributes of some images by a regression on others."""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    targets = {name: _encode(name, truth) for name, truth in attributes.items()}
    wanted = np.concatenate(list(targets.values()), axis=1)
    scaler = StandardScaler().fit(values[trained])
    ridge = RidgeCV(_PENALTIES, alpha_per_target=True).fit(scaler.transform(values[trained]), wanted[trained])
    answers = ridge.predict(scaler.transform(values[tested])).reshape(len(tested), -1)
    ends = np.cumsum([target.shape[1] for target in targets.values()])
    parts = np.split(answers, ends[:-1], axis=1)
    return {name: _decode(name, part) for name, part in zip(targets, parts, strict=True)}


def _encode(name: str, truth: np.ndarray) -> np.ndarray:
    """Regression targets [N, columns]: a direction, a number, or one column for each kind of light."""
    if name == "azimuth":
        angle = np.deg2rad(truth)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.eye(int(truth.max()) + 1)[truth] if name == "lighting" else truth[:, None].astype(float)


def _decode(name: str, answers: np.ndarray) -> np.ndarray:
    if name == "azimuth":
        return np.rad2deg(np.arctan2(answers[:, 1], answers[:, 0])) % _CIRCLE
    return answers.argmax(axis=1) if name == "lighting" else answers[:, 0]


def _measure(name: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    if name == "lighting":
        return float((predicted == truth).mean())
    error = np.abs(predicted - truth)
    return float((np.minimum(error, _CIRCLE - error) if name == "azimuth" else error).mean())
