"""What the capsules see: pictures computed from a trained network."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualcaps.data.load import ImageData
from dualcaps.data.batches import Augmentation, Part, augment, to_float
from dualcaps.models import CapsOutput, Network
from dualcaps.plots import image_rows, image_strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.inference_mode()
def reconstruction_figure(model: Network, part: Part, *, most: int = 10) -> "Figure":
    """Images of a part above what the decoder makes of their predicted class's pose.

    One image of each class, in turn, `most` at the most; titles name the true class, and where
    it is another the predicted one.

    Raises:
        ModelError: the network has no decoder.
    """
    first = _one_of_each_class(part, most)
    images, output = _answer(model, part.images[first])
    predicted = output.lengths.argmax(dim=1).tolist()
    titles = [
        model.classes[truth] if truth == guess else f"{model.classes[truth]}\n(seen as {model.classes[guess]})"
        for truth, guess in zip(part.labels[first].tolist(), predicted, strict=True)
    ]
    rows = {"input": images, "reconstruction": model.reconstruct(output.poses).float()}
    return image_rows({name: row.permute(0, 2, 3, 1).cpu().numpy() for name, row in rows.items()}, titles)


@torch.inference_mode()
def reconstruction_strips(model: Network, part: Part, *, most: int = 10) -> tuple[bytes, bytes]:
    """The same images and what the decoder makes of them, as two PNG files: side by side, pixel for pixel.

    Raises:
        ModelError: the network has no decoder.
    """
    images, output = _answer(model, part.images[_one_of_each_class(part, most)])
    drawn = model.reconstruct(output.poses).float()
    inputs, reconstructions = (image_strip(row.permute(0, 2, 3, 1).cpu().numpy()) for row in (images, drawn))
    return inputs, reconstructions


@torch.inference_mode()
def reconstruction_error(model: Network, part: Part, *, batch_size: int = 128) -> float:
    """How far images of a part are from what the decoder makes of their predicted class's pose.

    The mean squared difference over all values of all images, both in [0, 1].

    Raises:
        ModelError: the network has no decoder.
    """
    total = 0.0
    for batch in part.images.split(batch_size):
        images, output = _answer(model, batch)
        total += (model.reconstruct(output.poses) - images).square().sum(dtype=torch.float64).item()
    return total / part.images.numel()


def _one_of_each_class(part: Part, most: int) -> list[int]:
    return [int(torch.nonzero(part.labels == label)[0]) for label in part.labels.unique()[:most]]


def _answer(model: Network, images: Tensor) -> tuple[Tensor, CapsOutput]:
    model.eval()
    inputs = to_float(images.to(next(model.parameters()).device))
    return inputs, model(inputs)


def contact_sheet(data: ImageData, *, columns: int = 6, most: int = 20, seed: int = 0) -> "Figure":
    """Training images of each class, as they are and as augmentation shows them to a network.

    Args:
        data: whose images.
        columns: images of each class as they are, and as many augmented.
        most: how many classes at the most, from the first.
        seed: seed of the choice and the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    how = Augmentation(flip=data.flip)
    rows = {}
    for label, name in enumerate(data.classes[:most]):
        members = torch.nonzero(data.train.labels == label).flatten()
        chosen = members[torch.randint(len(members), (columns,), generator=generator)]
        images = data.train.images[chosen]
        both = torch.cat([images, augment(images, how, generator)])
        rows[name] = to_float(both).permute(0, 2, 3, 1).numpy()
    return image_rows(rows, ["as it is"] * columns + ["augmented"] * columns)
