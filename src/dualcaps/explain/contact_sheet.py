"""A contact sheet of a data set's images, plain and augmented."""

from typing import TYPE_CHECKING

import torch

from dualcaps.data.augment import Augmentation, augment
from dualcaps.data.dataset import ImageDataset
from dualcaps.nn import to_unit_range
from dualcaps.plots import image_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contact_sheet(data: ImageDataset, *, columns: int = 6, most: int = 20, seed: int = 0) -> "Figure":
    """Draw training images of each class, plain and augmented.

    Args:
        data: the data set.
        columns: number of plain images per class, and of augmented ones.
        most: how many classes to show, from the first; where there are more, the title says how many.
        seed: seed of the choice and the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    how = Augmentation(flip=data.flip)
    rows = {}
    for label, name in enumerate(data.classes[:most]):
        members = torch.nonzero(data.train.labels == label).flatten()
        if not len(members):
            continue
        chosen = members[torch.randint(len(members), (columns,), generator=generator)]
        images = data.train.images[chosen]
        both = torch.cat([images, augment(images, how, generator)])
        rows[name] = to_unit_range(both).permute(0, 2, 3, 1).numpy()
    title = f"{most} of {len(data.classes)} classes" if len(data.classes) > most else ""
    return image_rows(rows, ["plain"] * columns + ["augmented"] * columns, title)
