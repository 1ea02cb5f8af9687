"""Maps: which parts of an image speak for a class, by several methods."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.errors import ConfigError, ModelError, unknown_name
from dualcaps.explain.credit import capsule_parts, constant_gates, credit_of, on_grid
from dualcaps.models import Network
from dualcaps.nn import training_mode

_NOISY_COPIES, _NOISE = 25, 0.15  # of SmoothGrad; the noise as a share of the range of values

Map = Callable[[Network, Tensor, Tensor], Tensor]


def explain(
    model: Network, images: Float[Tensor, "batch channels height width"], classes: Int[Tensor, "batch"], kind: str
) -> Float[Tensor, "batch height width"]:
    """A map of each image: the higher a pixel's value, the more it speaks for the class by this method.

    Args:
        model: the network, on the images' device; it is used in evaluation mode.
        images: values in [0, 1].
        classes: the class of each image to explain.
        kind: a name in `MAPS`.

    Raises:
        ConfigError: no such kind.
        ModelError: the network lacks the part that the kind is computed from.
    """
    if kind not in MAPS:
        raise ConfigError(unknown_name("map", kind, MAPS))
    with training_mode(model, False):
        return MAPS[kind](model, images, classes).detach()


def gradient(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """The size of the gradient of the class's log-odds, summed over the channels (Simonyan et al. 2013)."""
    return _input_gradient(model, images, classes).abs().sum(dim=1)


def smooth_gradient(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """The mean of `gradient` over 25 copies with noise of 15 % of the images' range (Smilkov et al. 2017)."""
    generator = torch.Generator(images.device).manual_seed(0)
    spread = _NOISE * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros(len(images), *images.shape[2:], dtype=images.dtype, device=images.device)
    for _ in range(_NOISY_COPIES):
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
        total += gradient(model, images + spread * noise, classes)
    return total / _NOISY_COPIES


def grad_cam(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Channels of the trunk weighted by the mean gradient of the class's log-odds, negative sums left out.

    Selvaraju et al. 2017.
    """
    with torch.enable_grad():
        found = model(images, intermediates=True)
        if found.features is None:
            raise ModelError(f"{model.config.name} has no feature map for Grad-CAM")
        (slopes,) = torch.autograd.grad(_log_odds(found.lengths, classes).sum(), found.features)
    cam = (slopes.mean(dim=(2, 3), keepdim=True) * found.features).sum(dim=1).relu()
    return _over_image(model, cam)


def child_credit(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """The shares of the child capsules at each position in the class's length; see `credit`."""
    with torch.no_grad():
        found = capsule_parts(model, images)
        assert found.features is not None
        shares = on_grid(credit_of(model, found).shares, found.features)
    return _over_image(model, _of_class(shares, classes))


def pixel_credit(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Credit carried to the pixels: the class's length before the squash, as gradient times input.

    Couplings, attention gates and the pose's direction are held constant. A linearisation: unlike the credit of
    the child capsules it is not complete, as the trunk has biases and is not linear.
    """
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        with constant_gates(model):
            found = capsule_parts(model, inputs)
        assert found.gated_votes is not None
        assert found.couplings is not None
        couplings, votes = found.couplings.detach(), found.gated_votes
        sums = (couplings.unsqueeze(-1) * votes).sum(dim=2)
        lengths = (sums * nn.functional.normalize(sums, dim=-1).detach()).sum(dim=-1)
        (slopes,) = torch.autograd.grad(_of_class(lengths, classes).sum(), inputs)
    return (slopes * images).sum(dim=1)


def child_couplings(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    """The couplings of the child capsules at each position with the class, in the last routing iteration."""
    with torch.no_grad():
        found = capsule_parts(model, images)
    assert found.features is not None
    assert found.couplings is not None
    return _over_image(model, _of_class(on_grid(found.couplings, found.features), classes))


def random_map(_: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Noise, which a map has to surpass to explain anything."""
    generator = torch.Generator(images.device).manual_seed(0)
    shape = (len(classes), *images.shape[2:])
    return torch.rand(shape, generator=generator, dtype=images.dtype, device=images.device)


MAPS: Mapping[str, Map] = MappingProxyType(
    {
        "credit": child_credit,
        "pixel-credit": pixel_credit,
        "couplings": child_couplings,
        "gradient": gradient,
        "smoothgrad": smooth_gradient,
        "grad-cam": grad_cam,
        "random": random_map,
    }
)
"""The kinds of maps by name."""


def usable_maps(model: Network) -> tuple[str, ...]:
    """The kinds of maps that a network has the parts for."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *model.config.image_shape, device=parameter.device, dtype=parameter.dtype)
    first = torch.zeros(1, dtype=torch.long, device=parameter.device)

    def usable(kind: str) -> bool:
        try:
            explain(model, image, first, "gradient" if kind == "smoothgrad" else kind)  # which is 25 gradients
        except ModelError:
            return False
        return True

    return tuple(filter(usable, MAPS))


def _input_gradient(model: Network, images: Tensor, classes: Tensor) -> Tensor:
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(_log_odds(model(inputs).lengths, classes).sum(), inputs)
    return slopes


def _log_odds(lengths: Tensor, classes: Tensor) -> Tensor:
    """The log-odds of the class's score: unlike a length or a softmax they have a gradient where it is close to 1."""
    return torch.logit(_of_class(lengths, classes), eps=1e-6)


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """The values [batch, classes, …] of one class of each image."""
    return values[torch.arange(len(classes), device=classes.device), classes]


def _over_image(model: Network, values: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch height width"]:
    """A map of the grid, interpolated to the images' size; zero around a crop."""
    height, width = model.config.image_shape[1:]
    rows, columns = model.config.input_shape[1:]
    found = nn.functional.interpolate(values.unsqueeze(1), (rows, columns), mode="bilinear", align_corners=False)
    top, left = (height - rows) // 2, (width - columns) // 2
    return nn.functional.pad(found, (left, width - columns - left, top, height - rows - top)).squeeze(1)
