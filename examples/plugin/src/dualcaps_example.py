"""Routing by the median vote, registered when dualcaps imports this module through its entry point."""

from torch import Tensor

from dualcaps import Routing, register_routing, squash


@register_routing("median")
def route_by_median(votes: Tensor) -> Routing:
    """Squash the median over the children of each number of the votes [B, parents, children, dim]."""
    return Routing(squash(votes.median(dim=2).values))
