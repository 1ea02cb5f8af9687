"""Losses: pure functions of a network's outputs, averaged over the batch."""

import torch
from jaxtyping import Float
from torch import Tensor


def margin_loss(
    lengths: Float[Tensor, "batch classes"],
    labels: Tensor,
    *,
    present: float = 0.9,
    absent: float = 0.1,
    absent_weight: float = 0.5,
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:
    """Margin loss, summed over the classes (Sabour et al. 2017, Eq. 4).

    `T max(0, m+ - |v|)^2 + lambda (1 - T) max(0, |v| - m-)^2`, where T is 1 for the labelled class and 0 for
    the others.

    Args:
        lengths: the capsules' lengths, in [0, 1].
        labels: class numbers [B], int64 from 0 to classes - 1, or T itself [B, classes] in [0, 1].
        present: m+, the length that the labelled class should exceed.
        absent: m-, the length that the other classes may have.
        absent_weight: lambda, the weight of the other classes.
        label_smoothing: s, at least 0 and below 1; T becomes (1 - s) T + s / classes.
        class_weight: weight of each class; the mean over the batch is then weighted by the labelled class's.

    Returns:
        The mean over the batch.

    Example:
        >>> margin_loss(torch.tensor([[0.9, 0.1], [0.2, 0.5]]), torch.tensor([0, 1]))
        tensor(0.0825)
    """
    targets = _targets(labels, lengths, label_smoothing)
    missing = (present - lengths).clamp_min(0).square()
    excess = (lengths - absent).clamp_min(0).square()
    losses = (targets * missing + absent_weight * (1 - targets) * excess).sum(dim=1)
    return _weighted_mean(losses, labels, lengths, class_weight)


def reconstruction_loss(
    reconstructions: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Sum of squared differences over an image's values, both in [0, 1]; the mean over the batch.

    Example:
        >>> reconstruction_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5))
        tensor(1.)
    """
    return (reconstructions - images).square().flatten(1).sum(dim=1).mean()


def cross_entropy(
    probabilities: Float[Tensor, "batch classes"],
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weight: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of probabilities, for networks whose lengths are a softmax.

    Probabilities are clipped at 1e-7 from below, as in the Keras version of the paper.

    Args:
        probabilities: they sum to 1 over the classes.
        labels: as in `margin_loss`.
        label_smoothing: as in `margin_loss`.
        class_weight: as in `margin_loss`.

    Returns:
        The mean over the batch.

    Example:
        >>> cross_entropy(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        tensor(0.6931)
    """
    logarithms = probabilities.clamp_min(1e-7).log()
    if labels.ndim == 1 and not label_smoothing and class_weight is None:
        return torch.nn.functional.nll_loss(logarithms, labels)
    losses = -(_targets(labels, probabilities, label_smoothing) * logarithms).sum(dim=1)
    return _weighted_mean(losses, labels, probabilities, class_weight)


def _targets(labels: Tensor, lengths: Tensor, smoothing: float) -> Tensor:
    classes = lengths.shape[1]
    targets = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes)
    targets = targets.to(lengths.dtype)
    return (1 - smoothing) * targets + smoothing / classes if smoothing else targets


def _weighted_mean(losses: Tensor, labels: Tensor, lengths: Tensor, class_weight: Tensor | None) -> Tensor:
    if class_weight is None:
        return losses.mean()
    weights = _targets(labels, lengths, 0.0) @ class_weight.to(lengths.dtype)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(lengths.dtype).tiny)
