"""What routing returns, and in what precision it computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class RoutingIteration(NamedTuple):
    """One iteration of routing.

    logits: b, before the couplings of this iteration are computed from them; zero in the first. For
        methods without logits, the logarithm of the couplings.
    couplings: c, how much of child i goes to parent j.
    parents: the poses that follow from them.
    """

    logits: Float[Tensor, "batch parents children"]
    couplings: Float[Tensor, "batch parents children"]
    parents: Float[Tensor, "batch parents dim"]


class Routing(NamedTuple):
    """Result of routing.

    parents: the poses of the parent capsules; the length of each, in [0, 1], is how sure it is to be present.
    couplings: how much of child i went to parent j in the last iteration, in [0, 1]. None where they
        were not asked for.
    """

    parents: Float[Tensor, "batch parents dim"]
    couplings: Float[Tensor, "batch parents children"] | None = None


def safe_length(vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 1"]:
    """Lengths over the last axis, 1e-6 at least, with a finite gradient at zero."""
    return (vectors.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()


def scale_to_length(
    vectors: Float[Tensor, "*batch dim"], lengths: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch dim"]:
    """Vectors of the same direction with the given lengths; zero vectors stay zero."""
    return vectors * (lengths / safe_length(vectors))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Computation in the tensor's own type: autocast would round the sums over the children to bfloat16."""
    if tensor.device.type == "meta":  # which has no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
