"""Adversarial images: small changes by which a network predicts another class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualcaps.models import CapsOutput, Network
from dualcaps.nn import training_mode


def fgsm(
    model: Network, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, "batch"], size: float
) -> Float[Tensor, "batch channels height width"]:
    """One step of the gradient's sign (Goodfellow et al. 2015).

    Args:
        model: the network, on the images' device; it is used in evaluation mode.
        images: values in [0, 1].
        labels: the true classes.
        size: how far each value is changed, in units of the images' values.

    Returns:
        Changed images, values in [0, 1].
    """
    with training_mode(model, False):
        return (images + size * _ascent(model, images, labels, 0.0).sign()).clamp(0, 1)


def pgd(
    model: Network,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, "batch"],
    size: float,
    *,
    steps: int = 40,
    reconstruction_weight: float = 0.0,
) -> Float[Tensor, "batch channels height width"]:
    """Projected gradient ascent from a random start within the allowed change (Madry et al. 2018).

    With a reconstruction weight the attack also keeps the reconstruction from the longest wrong class close to the
    changed image, so that the reconstruction error does not show it (after Qin et al. 2020, who alternate between the
    two aims instead of adding them).

    Args:
        model, images, labels, size: as for `fgsm`.
        steps: of 2.5 `size` / `steps` each.
        reconstruction_weight: weight of the squared error of the reconstruction, summed over the image's values,
            against the difference of the two lengths.

    Raises:
        ModelError: a reconstruction weight, but the network has no decoder.
    """
    generator = torch.Generator(images.device).manual_seed(0)
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    changed = (images + size * (2 * noise - 1)).clamp(0, 1)
    with training_mode(model, False):
        for _ in range(steps):
            step = _ascent(model, changed, labels, reconstruction_weight).sign()
            moved = changed + 2.5 * size / steps * step
            changed = torch.minimum(torch.maximum(moved, images - size), images + size).clamp(0, 1)
    return changed


def _ascent(model: Network, images: Tensor, labels: Tensor, reconstruction_weight: float) -> Tensor:
    """The gradient of the longest wrong length minus the true one, which unlike the margin loss never vanishes."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        output = model(inputs)
        assert isinstance(output, CapsOutput)
        true = torch.nn.functional.one_hot(labels, output.lengths.shape[1]).bool()
        wrong = output.lengths.masked_fill(true, -1).max(dim=1)
        aim = (wrong.values - output.lengths[true]).sum()
        if reconstruction_weight:
            drawn = model.reconstruct(output.poses, wrong.indices)
            aim = aim - reconstruction_weight * (drawn - inputs).square().sum()
        return torch.autograd.grad(aim, inputs)[0]
