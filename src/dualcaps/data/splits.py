"""Stratified random splits."""

import numpy as np

from dualcaps.errors import DataError


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into kept and held-out ones, `fraction` of each class but at least one image.

    Args:
        labels: class numbers.
        fraction: the share held out, above 0 and below 1.
        seed: seed of the random choice.
        classes: class names, in the order of the labels.

    Returns:
        Indices kept and held out, both sorted.

    Raises:
        DataError: a class with a single image, which cannot be split.

    Example:
        >>> kept, held = stratified_split(np.array([0, 0, 0, 1, 1, 1]), 0.3, 0, ("a", "b"))
        >>> len(kept), len(held)
        (4, 2)
    """
    random = np.random.default_rng(seed)
    held = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise DataError(f"class {name!r} has too few images to hold some out: at least 3 are needed")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(random.permutation(members)[: max(count, 0)])
    out = np.zeros(len(labels), bool)
    out[np.concatenate(held)] = True
    return np.flatnonzero(~out), np.flatnonzero(out)
