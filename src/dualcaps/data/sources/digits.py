"""digits: scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to 28x28 (D23)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.images import resize
from dualcaps.data.sources.card import DataSet, Labelled, Layout
from dualcaps.registry import register_dataset

DIGIT_NAMES = tuple("0123456789")


def _read_digits(_paths: Sequence[Path], config: DataConfig) -> Labelled:
    import sklearn.datasets  # takes a second to import

    bunch: Any = sklearn.datasets.load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)
    size = config.image_size or (28, 28)
    return {"train": (np.stack([resize(image[None], size) for image in grey]), bunch.target)}


@register_dataset("digits")
def digits() -> DataSet:
    """The card of `digits`, which needs no files."""
    return DataSet(
        "digits",
        DIGIT_NAMES,
        flip=False,
        size=(28, 28),
        channels=1,
        counts=lambda _: {"train": 1797},
        layouts=(Layout((), _read_digits),),
        splits=("random",),
    )
