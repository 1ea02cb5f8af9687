"""Losses: pure functions of what the network answered, the mean over the batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def margin_loss(
    lengths: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    *,
    present: float = 0.9,
    absent: float = 0.1,
    absent_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """Margin loss, summed over the classes (Sabour et al. 2017, Eq. 4).

    `T max(0, m+ - |v|)^2 + lambda (1 - T) max(0, |v| - m-)^2`, where T is 1 for the labelled
    class and 0 for the others.

    Args:
        lengths: the capsules' lengths, in [0, 1].
        labels: class numbers, 0 to classes - 1.
        present: m+, the length wanted of the labelled class at least.
        absent: m-, the length allowed to the other classes.
        absent_weight: lambda, the weight of the other classes.
    """
    one_hot = torch.nn.functional.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    missing = (present - lengths).clamp_min(0).square()
    excess = (lengths - absent).clamp_min(0).square()
    return (one_hot * missing + absent_weight * (1 - one_hot) * excess).sum(dim=1).mean()


def reconstruction_loss(
    reconstructions: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Sum of squared differences over an image's values, both in [0, 1]."""
    return (reconstructions - images).square().flatten(1).sum(dim=1).mean()


def cross_entropy(probabilities: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Negative log-likelihood of the labels, for the `cnn`, whose lengths are probabilities.

    Probabilities below 1e-7 count as 1e-7, the clipping of the Keras of the paper.
    """
    return torch.nn.functional.nll_loss(probabilities.clamp_min(1e-7).log(), labels)
