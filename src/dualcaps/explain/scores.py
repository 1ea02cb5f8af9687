"""Scores of maps: does what a map marks matter to the network, and does the map depend on the network at all?

All take a network in evaluation mode, images with values in [0, 1], the class of each image, and a map for each image,
and return one number an image, so that means have intervals.
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.errors import DataError
from dualcaps.explain.maps import MAPS, explain
from dualcaps.inference import predict
from dualcaps.models import Network
from dualcaps.nn import to_unit_range, training_mode

_STEPS = 20  # of deletion and insertion
_ROAD_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ROAD_NOISE = 0.01
_DIRECT, _DIAGONAL = 1 / 6, 1 / 12  # ROAD's weights of a pixel's neighbours


class Mean(NamedTuple):
    """A mean over images with its 95 % interval.

    mean: the mean.
    margin: half the width of the interval, by the normal distribution; NaN of one image.
    images: how many.
    """

    mean: float
    margin: float
    images: int


class MapScores(NamedTuple):
    """The scores of one kind of map; see the functions of these names."""

    deletion: Mean
    insertion: Mean
    road: Mean
    randomised_weights: Mean


def score_maps(
    model: Network,
    images: Tensor,
    kinds: Sequence[str] = tuple(MAPS),
    *,
    batch_size: int = 50,
    each: Callable[[int], None] = lambda _: None,
) -> dict[str, MapScores]:
    """Score kinds of maps on images, each explained for the class that the network predicts.

    Args:
        model: the network; it is used in evaluation mode.
        images: uint8, or values in [0, 1].
        kinds: names in `dualcaps.explain.maps.MAPS`.
        batch_size: images at once.
        each: called after each kind of each batch with its number of images, to report progress.

    Raises:
        DataError: no images.
        ModelError: the network lacks the part that a kind is computed from.
    """
    if not len(images):
        raise DataError("no images to score maps on")
    device = next(model.parameters()).device
    found: dict[str, list[tuple[Tensor, ...]]] = {kind: [] for kind in kinds}
    with training_mode(model, False):
        for part in images.split(batch_size):
            placed = part.to(device)
            batch = to_unit_range(placed) if placed.dtype == torch.uint8 else placed
            classes = predict(model, batch).argmax(dim=1).to(device)
            for kind in kinds:

                def make(other: Network, batch: Tensor = batch, classes: Tensor = classes, kind: str = kind) -> Tensor:
                    return explain(other, batch, classes, kind)

                maps = make(model)
                scores = tuple(score(model, batch, classes, maps) for score in (deletion, insertion, road))
                found[kind].append((*scores, randomised_weights(model, maps, make)))
                each(len(part))
    return {
        kind: MapScores(*(_mean(torch.cat(values).tolist()) for values in zip(*parts, strict=True)))
        for kind, parts in found.items()
    }


def _mean(values: Sequence[float]) -> Mean:
    margin = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Mean(statistics.fmean(values), margin, len(values))


def ranks(maps: Float[Tensor, "batch height width"]) -> Int[Tensor, "batch height width"]:
    """The rank of each pixel, 0 for the highest value; pixels of equal value in random order."""
    flat = maps.flatten(1)
    shuffled = torch.rand(flat.shape, generator=torch.Generator(flat.device).manual_seed(0), device=flat.device)
    order = shuffled.argsort(dim=1)
    sorted_ = order.gather(1, flat.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return sorted_.argsort(dim=1).view_as(maps)


def deletion(
    model: Network, images: Tensor, classes: Tensor, maps: Float[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """The mean score of the class while the pixels are replaced by the image's mean, the highest first.

    The lower, the better the map. Petsiuk et al. 2018, who replace by a constant.
    """
    flat = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    return _mean_score(model, images, flat, classes, maps)


def insertion(
    model: Network, images: Tensor, classes: Tensor, maps: Float[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """The mean score of the class while the pixels are restored in a blurred image, the highest first.

    The higher, the better the map. Petsiuk et al. 2018; the blur's deviation is a tenth of the shorter side.
    """
    return _mean_score(model, blurred(images), images, classes, maps)


def road(
    model: Network, images: Tensor, classes: Tensor, maps: Float[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """The share of removals, of 10 to 90 % of the pixels, the highest first, after which the class is still predicted.

    Removed pixels are imputed from their neighbours, so that the removed shape tells nothing. The lower, the better
    the map. Rong et al. 2022 (remove and debias, most relevant first).
    """
    position = ranks(maps)
    found = torch.zeros(len(images))
    for share in _ROAD_SHARES:
        removed = position < round(share * position[0].numel())
        imputed = torch.stack([impute(image, gone) for image, gone in zip(images, removed, strict=True)])
        found += predict(model, imputed).argmax(dim=1).cpu() == classes.cpu()
    return found / len(_ROAD_SHARES)


def randomised_weights(
    model: Network, maps: Float[Tensor, "batch height width"], make_maps: Callable[[Network], Tensor]
) -> Float[Tensor, "batch"]:
    """How alike the maps of the network and of one with random weights are: Spearman's rank correlation.

    Near 0 for a map that depends on what was learnt. Adebayo et al. 2018, with the weights of all layers shuffled
    at once, each within its tensor.

    Args:
        model, maps: as for the other scores.
        make_maps: makes the maps of the same images with another network.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    first, second = (ranks(found).flatten(1).double() for found in (maps, make_maps(other)))
    first, second = (values - values.mean(dim=1, keepdim=True) for values in (first, second))
    return torch.cosine_similarity(first, second, dim=1)


def blurred(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Images convolved with a Gaussian whose deviation is a tenth of the shorter side; edges are repeated."""
    height, width = images.shape[2:]
    deviation = min(height, width) / 10
    reach = min(round(3 * deviation), height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    padded = nn.functional.pad(images, (reach,) * 4, mode="replicate")
    across = nn.functional.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return nn.functional.conv2d(across, kernel.view(-1, 1).expand(channels, 1, -1, 1), groups=channels)


def impute(
    image: Float[Tensor, "channels height width"], removed: Float[Tensor, "height width"]
) -> Float[Tensor, "channels height width"]:
    """An image whose removed pixels are the weighted means of their eight neighbours, plus a little noise.

    The means hold for all removed pixels at once, which is a sparse linear system (Rong et al. 2022).
    """
    import scipy.sparse
    import scipy.sparse.linalg

    gone = removed.cpu().numpy()
    count = int(gone.sum())
    if not count:
        return image
    height, width = gone.shape
    number = np.full(gone.shape, -1)
    number[gone] = np.arange(count)
    rows, columns = np.nonzero(gone)
    pixels = image.detach().cpu().double().numpy()
    known, weights = np.zeros((count, len(pixels))), np.zeros(count)
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if not down and not right:
                continue
            weight = _DIAGONAL if down and right else _DIRECT
            y, x = rows + down, columns + right
            inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
            weights[inside] += weight
            neighbour = number[y[inside], x[inside]]
            unknown = neighbour >= 0
            entries.append((inside[unknown], neighbour[unknown], np.full(unknown.sum(), -weight)))
            seen = inside[~unknown]
            known[seen] += weight * pixels[:, y[seen], x[seen]].T
    own = np.arange(count)
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, (own, own, weights), strict=True))
    if count == gone.size:
        solved = np.broadcast_to(pixels.mean(axis=(1, 2)), (count, len(pixels)))
    else:
        system = scipy.sparse.csc_matrix((value, (row, column)), shape=(count, count))
        solved = scipy.sparse.linalg.spsolve(system, known).reshape(count, len(pixels))
    noise = np.random.default_rng(0).normal(0, _ROAD_NOISE, solved.shape)
    pixels[:, rows, columns] = (solved + noise).T
    return torch.from_numpy(pixels).to(image).clamp(0, 1)


def _mean_score(model: Network, start: Tensor, end: Tensor, classes: Tensor, maps: Tensor) -> Tensor:
    """The mean score of the class while the pixels of one image replace those of another: the area below the curve."""
    position, pixels = ranks(maps).unsqueeze(1), maps[0].numel()
    scores = []
    for step in range(_STEPS + 1):
        shown = torch.where(position < round(pixels * step / _STEPS), end, start)
        scores.append(predict(model, shown).cpu().gather(1, classes.cpu().unsqueeze(1)).squeeze(1))
    return torch.trapezoid(torch.stack(scores), dx=1 / _STEPS, dim=0)
