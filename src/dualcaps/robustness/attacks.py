"""Adversarial images: small changes by which a network predicts another class."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualcaps.inference import predict
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
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        output = model(inputs)
        assert isinstance(output, CapsOutput)
        aim = _aim(model, output, labels).sum()
        if reconstruction_weight:
            wrong = _without_true(output.lengths, labels).argmax(dim=1)
            drawn = model.reconstruct(output.poses, wrong)
            aim = aim - reconstruction_weight * (drawn - inputs).square().sum()
        return torch.autograd.grad(aim, inputs)[0]


def _aim(model: Network, output: CapsOutput, labels: Tensor) -> Float[Tensor, "batch"]:
    """The longest wrong length minus the true one, which unlike the margin loss keeps a gradient.

    Of a softmax the logarithms, whose difference is the one of the logits: the softmax itself saturates.
    """
    lengths = output.lengths
    if model.softmax:
        lengths = lengths.clamp_min(torch.finfo(lengths.dtype).tiny).log()
    true = lengths.gather(1, labels[:, None])[:, 0]
    return _without_true(lengths, labels).amax(dim=1) - true


def _without_true(lengths: Tensor, labels: Tensor) -> Tensor:
    return lengths.scatter(1, labels[:, None], -torch.inf)


class GradientCheck(NamedTuple):
    """Whether attacks follow gradients that mean something, after Athalye et al. 2018 (arXiv:1802.00420).

    zero_gradients: share of the images whose gradient is zero or not finite everywhere, 0 to 1.
    finite_difference: median relative difference of the gradient's norm from the change of the network's output over a
        small step along it.
    noise_accuracy: accuracy under random changes, each value up or down by `size`.
    pgd_accuracy: accuracy under PGD of the same size.
    unbounded_accuracy: accuracy under PGD that may change every value to any other.
    size: of the noise.
    """

    zero_gradients: float
    finite_difference: float
    noise_accuracy: float
    pgd_accuracy: float
    unbounded_accuracy: float
    size: float

    def signs(self) -> list[str]:
        """Signs that gradients are masked, so that the attacks' accuracies are too high; empty if there are none."""
        signs = []
        if self.zero_gradients > _ZERO_GRADIENTS:
            signs.append(f"{100 * self.zero_gradients:.0f} % of the images have no gradient")
        if not self.finite_difference <= _FINITE_DIFFERENCE:
            signs.append(f"gradients differ from finite differences by {100 * self.finite_difference:.0f} %")
        if self.noise_accuracy < self.pgd_accuracy:
            signs.append("random changes do more than PGD")
        if self.unbounded_accuracy > _UNBOUNDED:
            signs.append(f"{100 * self.unbounded_accuracy:.0f} % are right under PGD without a bound")
        return signs


_ZERO_GRADIENTS, _FINITE_DIFFERENCE, _UNBOUNDED = 0.01, 0.1, 0.01  # more are signs of masked gradients
_STEP = 1e-2  # of the finite difference, as the norm of the change of the image


def check_gradients(
    model: Network,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, "batch"],
    *,
    size: float = 0.1,
    steps: int = 40,
) -> GradientCheck:
    """Check that the gradients which `fgsm` and `pgd` follow are not masked.

    Args:
        model, images, labels, size, steps: as for `pgd`.
    """
    with training_mode(model, False):
        gradient = _ascent(model, images, labels, 0.0).nan_to_num(posinf=0, neginf=0)
        norm = gradient.flatten(1).norm(dim=1)
        along = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None, None, None]
        with torch.no_grad():
            ahead, behind = (
                _aim(model, model(images + sign * _STEP * along), labels)  # pyright: ignore[reportArgumentType]
                for sign in (1, -1)
            )
    usable = norm > 0
    difference = (ahead - behind) / (2 * _STEP)
    relative = (difference[usable] / norm[usable] - 1).abs()
    generator = torch.Generator(images.device).manual_seed(0)
    noise = torch.randint(0, 2, images.shape, generator=generator, device=images.device) * 2 - 1

    def accuracy(changed: Tensor) -> float:
        return float((predict(model, changed.clamp(0, 1)).argmax(dim=1) == labels.cpu()).float().mean())

    return GradientCheck(
        zero_gradients=float((~usable).float().mean()),
        finite_difference=float(relative.median()) if usable.any() else torch.inf,
        noise_accuracy=accuracy(images + size * noise),
        pgd_accuracy=accuracy(pgd(model, images, labels, size, steps=steps)),
        unbounded_accuracy=accuracy(pgd(model, images, labels, 1.0, steps=steps)),
        size=size,
    )
