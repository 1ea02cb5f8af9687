"""Pose space: the poses of many images in two dimensions."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import DataError
from dualcaps.explain.probes import representations
from dualcaps.models import Network
from dualcaps.plots import pose_scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PERPLEXITY = 30  # of t-SNE
_FEWEST_IMAGES = 5


class PoseSpace(NamedTuple):
    """Poses in two dimensions.

    labels: the class of each image.
    azimuths: in degrees, -1 where it is not known.
    together: the poses of all classes of each image, by t-SNE.
    own: the pose of each image's own class, by the two principal components of the class.
    explained: by class, the share of the variance in its two components, 0 to 1.
    """

    labels: Int[np.ndarray, "count"]
    azimuths: Int[np.ndarray, "count"]
    together: Float[np.ndarray, "count 2"]
    own: Float[np.ndarray, "count 2"]
    explained: dict[int, float]


def pose_space(model: Network, split: ImageSplit, *, most: int = 2_000) -> PoseSpace:
    """Project the poses of images into two dimensions.

    Args:
        model: a capsule network; it is left in evaluation mode.
        split: the images.
        most: images used at most, drawn with seed 0.

    Raises:
        DataError: fewer than 5 images.
        ModelError: the network has no poses.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(split) < _FEWEST_IMAGES:
        raise DataError(f"{len(split)} images are too few to show poses of: at least {_FEWEST_IMAGES} are needed")
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:most])
    found = representations(model, ImageSplit(split.images[chosen], split.labels[chosen]))
    labels = split.labels[chosen].cpu().numpy()
    perplexity = min(_PERPLEXITY, (len(chosen) - 1) / 3)
    together = TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(found["all poses"])
    own, explained = np.zeros((len(chosen), 2)), {}
    for label in np.unique(labels):
        poses = found["pose"][labels == label]
        components = PCA(min(2, len(poses)))
        own[labels == label, : components.n_components] = components.fit_transform(poses)
        explained[int(label)] = float(np.sum(components.explained_variance_ratio_))
    azimuths = split.attributes.get("azimuth", np.full(len(split), -1))[chosen]
    return PoseSpace(labels, azimuths, together, own, explained)


def pose_space_figure(space: PoseSpace, classes: tuple[str, ...], *, most: int = 7) -> "Figure":
    """Draw all poses by class, and the poses of the first classes by azimuth where it is known.

    Args:
        space: the result of `pose_space`.
        classes: class names in the order of the labels.
        most: how many classes to show by azimuth.
    """
    by_azimuth = {}
    for label, share in space.explained.items():
        shown = (space.labels == label) & (space.azimuths >= 0)
        if shown.any() and len(by_azimuth) < most:
            title = f"{classes[label]}: PCA, {100 * share:.0f} % of variance"
            by_azimuth[title] = (space.own[shown], space.azimuths[shown])
    return pose_scatter(space.together, [classes[label] for label in space.labels], by_azimuth)
