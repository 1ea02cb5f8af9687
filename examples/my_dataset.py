"""A data set of one's own, known by name: rings and crosses, drawn at random.

dualcaps train rings-and-crosses --plugin examples/my_dataset.py --epochs 5
"""

import numpy as np

from dualcaps import DataConfig, ImageDataset, register_dataset


@register_dataset("rings-and-crosses")
def rings_and_crosses(config: DataConfig) -> ImageDataset:
    """600 grey images in two classes.

    Args:
        config: what the user asked for; its `image_size` and `split_seed` are followed.
    """
    height, width = config.image_size or (28, 28)
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width] / max(height, width) - 0.5
    images, labels = [], []
    for number in range(600):
        y, x = rows - random.uniform(-0.2, 0.2), columns - random.uniform(-0.2, 0.2)
        size = random.uniform(0.15, 0.3)
        ring = abs(np.hypot(y, x) - size) < 0.05
        cross = (np.minimum(abs(y), abs(x)) < 0.05) & (np.maximum(abs(y), abs(x)) < size)
        images.append(np.where(cross if number % 2 else ring, 220, 20) + random.integers(0, 30, (height, width)))
        labels.append(("ring", "cross")[number % 2])
    return ImageDataset.from_arrays(
        np.stack(images).astype(np.uint8), labels, split_seed=config.split_seed, flip=True, name="rings-and-crosses"
    )
