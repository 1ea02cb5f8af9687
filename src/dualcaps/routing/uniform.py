"""Uniform routing: every child has the same weight; there are no iterations."""

from jaxtyping import Float
from torch import Tensor

from dualcaps.registry import register_routing
from dualcaps.routing.dynamic.eager import route_eager
from dualcaps.routing.types import Routing


@register_routing("uniform")
def route_uniform(votes: Float[Tensor, "batch parents children dim"], *, squash_constant: float = 0.5) -> Routing:
    """Couple every child equally to all parents: `c_ij = 1 / J`, `v_j = squash(sum_i c_ij u_j|i)`.

    This is dynamic routing with one iteration. Paik, Kwak & Kim 2019 (arXiv:1907.13327) and Gu & Tresp 2020
    (arXiv:1911.07968) find that dynamic routing is no better, so that it is a necessary control.

    Args:
        votes: see `dualcaps.route`.
        squash_constant: k > 0 of the squash.
    """
    return Routing(*route_eager(votes, 1, squash_constant, "accumulate"))
