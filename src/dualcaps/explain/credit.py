"""Credit: what each child capsule adds to the length of each class's capsule, exactly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.errors import ModelError
from dualcaps.models import Intermediates, Network
from dualcaps.nn import CapsAttention, ConvAttention, training_mode

_ALIGNED = 1e-3  # how far the cosine of a pose and its sum of votes may be from 1


class Credit(NamedTuple):
    """Shares of child capsules in the lengths of the classes' capsules.

    shares: c_ij (û_ij · s_j / ‖s_j‖); negative where a vote points away. Their sum over the children is `lengths`.
    lengths: ‖s_j‖, the length of the coupled sum of votes, before the squash.
    """

    shares: Float[Tensor, "batch classes children"]
    lengths: Float[Tensor, "batch classes"]


def credit(model: Network, images: Tensor) -> Credit:
    """The share of each child capsule in the length of each class's capsule, before the squash.

    A parent is the squash of s_j = Σ_i c_ij û_ij and has its direction, so ‖s_j‖ = Σ_i c_ij (û_ij · s_j / ‖s_j‖): the
    shares are additive and complete, without an approximation.

    Args:
        model: a capsule network whose routing sums coupled votes.
        images: as the network takes them, on its device.

    Raises:
        ModelError: the network has no capsules, or its routing does not sum coupled votes.
    """
    return credit_of(model, capsule_parts(model, images))


def credit_of(model: Network, found: Intermediates) -> Credit:
    """The credit from a network's intermediate results; see `credit`."""
    assert found.gated_votes is not None
    assert found.couplings is not None
    couplings, votes = found.couplings, found.gated_votes.to(found.couplings.dtype)
    sums = (couplings.unsqueeze(-1) * votes).sum(dim=2)
    cosines = torch.cosine_similarity(sums, found.poses.to(sums.dtype), dim=-1)
    present = (sums.norm(dim=-1) > 1e-6) & (found.poses.norm(dim=-1) > 1e-6)
    if (cosines[present] < 1 - _ALIGNED).any():
        raise ModelError(f"routing {model.config.routing} does not sum coupled votes: credit is not defined for it")
    directions = nn.functional.normalize(sums, dim=-1)
    shares = couplings * (votes * directions.unsqueeze(2)).sum(dim=-1)
    return Credit(shares, sums.norm(dim=-1))


def capsule_parts(model: Network, images: Tensor) -> Intermediates:
    """The intermediate results of a network in evaluation mode.

    Raises:
        ModelError: the network has no capsules.
    """
    with training_mode(model, False):
        found = model(images, intermediates=True)
    if found.gated_votes is None or found.couplings is None:
        raise ModelError(f"{model.config.name} has no capsules with couplings to explain it by")
    return found


def on_grid(
    values: Float[Tensor, "batch classes children"], features: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, "batch classes rows columns"]:
    """Values of child capsules, summed over the capsules at each position of the feature map."""
    rows, columns = features.shape[2:]
    return values.unflatten(2, (rows, columns, -1)).sum(dim=-1)


@contextmanager
def constant_gates(model: Network) -> Iterator[None]:
    """Attention gates pass no gradient in the with block, so that gradients do not explain the gates themselves."""
    modules: list[Any] = [module for module in model.modules() if isinstance(module, ConvAttention | CapsAttention)]

    def constant(module: Any) -> Any:
        return lambda inputs: type(module).gate(module, inputs).detach()

    for module in modules:
        module.gate = constant(module)
    try:
        yield
    finally:
        for module in modules:
            del module.gate
