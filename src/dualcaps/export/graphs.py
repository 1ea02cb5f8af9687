"""What is exported: classifier and decoder as modules of plain tensors, and the comparison with the network."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from dualcaps.errors import ModelError
from dualcaps.models import Network

BATCH_SIZES = (1, 3, 64)
"""The batch sizes that an export is compared at."""

_TESTED_TORCH = "2.13"
_MOST_DIFFERENCE = 1e-4  # of lengths, poses and reconstructed values, all from -1 to 1

Graph = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Classifier(nn.Module):
    """uint8 images [batch, channels, height, width] to lengths, and poses where the network has them."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify images."""
        output = self.model(images)
        return (output.lengths, output.poses) if output.poses.shape[2] else (output.lengths,)


class Reconstruction(nn.Module):
    """Poses [batch, classes, dim] and class numbers [batch] to images, values from 0 to 1."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        assert model.decoder is not None
        self.decoder = model.decoder

    def forward(self, poses: Tensor, labels: Tensor) -> tuple[Tensor]:
        """Reconstruct images."""
        return (self.decoder(poses, labels),)


def compare(
    graph: Graph, module: nn.Module, inputs: Sequence[Tensor], what: str, *, most: float = _MOST_DIFFERENCE
) -> float:
    """Compare an exported graph with the module at several batch sizes.

    Args:
        graph: runs the export on arrays.
        module: in evaluation mode, on the CPU.
        inputs: the inputs, of which as many as the batch size are taken, repeated where there are fewer.
        what: names the export in messages.
        most: the largest difference allowed.

    Returns:
        The largest difference found.

    Raises:
        ModelError: they differ by more.
    """
    differences = [0.0]
    for size, batch in _batches(inputs):
        with torch.no_grad():
            wanted = module(*batch)
        for found, right in zip(graph([part.numpy() for part in batch]), wanted, strict=True):
            if found.shape != tuple(right.shape):
                raise ModelError(f"{what}: gives {found.shape} instead of {tuple(right.shape)} for {size} images")
            differences.append(float(np.abs(found - right.numpy()).max()))
    largest = float(np.max(differences))  # NaN if any is
    if not largest <= most:
        raise ModelError(f"{what}: differs from the network by {largest:.2g}, at most {most:g} is allowed")
    return largest


def _batches(inputs: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    for size in BATCH_SIZES:
        chosen = torch.arange(size) % len(inputs[0])
        yield size, [part[chosen] for part in inputs]


@contextmanager
def exporting(what: str) -> Iterator[None]:
    """Whatever torch's exporter raises becomes a ModelError that names the export; its warnings are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals
        try:
            yield
        except Exception as error:  # of many types
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"{what}: torch {torch.__version__} cannot export this network ({reason[:200]}): torch {_TESTED_TORCH} "
                "can export those of this package"
            ) from error


def on_cpu(model: Network, images: UInt8[Tensor, "count channels height width"]) -> tuple[Network, Tensor]:
    """The network in evaluation mode and images on the CPU, where it is exported."""
    return model.place(torch.device("cpu")).eval(), images.cpu()


def poses_of(model: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Poses and the class numbers of the longest, as the decoder takes them, of a network in evaluation mode."""
    with torch.no_grad():
        output = model(images)
    return output.poses, output.lengths.argmax(dim=1)
