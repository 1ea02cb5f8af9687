"""Routing of votes to parent capsules; `route` is the interface to every routing method.

A method is a function, or a `torch.nn.Module` class where it has parameters, registered with
`@register_routing(name)`; see `dualcaps.registry.register_routing` for its signature.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.errors import ModelError, unknown_name
from dualcaps.registry import ROUTING_METHODS, lookup
from dualcaps.routing.dynamic import route_children as route_children
from dualcaps.routing.dynamic.eager import squash as squash
from dualcaps.routing.em import EMRouting as EMRouting
from dualcaps.routing.inverted_attention import InvertedAttentionRouting as InvertedAttentionRouting
from dualcaps.routing.self_attention import SelfAttentionRouting as SelfAttentionRouting
from dualcaps.routing.self_routing import SelfRouting as SelfRouting
from dualcaps.routing.types import Routing as Routing
from dualcaps.routing.types import RoutingIteration as RoutingIteration
from dualcaps.routing.types import without_autocast
from dualcaps.routing.uniform import route_uniform as route_uniform


def route(
    votes: Float[Tensor, "batch parents children dim"],
    iterations: int = 3,
    *,
    method: str = "dynamic",
    couplings: bool = False,
    trace: list[RoutingIteration] | None = None,
    **options: Any,
) -> Routing:
    """Route votes to parent capsules.

    Args:
        votes: the prediction of each child for each parent, of any float type. Half precision is computed and
            returned in float32, other types in their own precision.
        iterations: routing iterations, at least 1; methods that do not iterate ignore it.
        method: the registered name of a routing method. One with parameters is constructed with their
            initial values; to train them, use `RoutingLayer` or a network.
        couplings: whether to return the couplings of the last iteration too, which costs memory.
        trace: a list to which logits, couplings and poses of each iteration are appended, as far as the method has
            them.
        **options: further arguments of the method, for "dynamic" see `route_dynamic`.

    Returns:
        `Routing`: parents [B, J, D] and, if requested, couplings [B, J, N].

    Raises:
        ValueError: votes that are not floats [B, J, N, D] with at least one parent, child and dimension,
            or an argument outside its range.
        ModelError: an unknown method or option.

    Example:
        >>> votes = torch.randn(2, 10, 100, 16)
        >>> routing = route(votes, iterations=3, couplings=True)
        >>> routing.parents.shape, routing.couplings.shape
        (torch.Size([2, 10, 16]), torch.Size([2, 10, 100]))
    """
    _check_votes(votes)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    found = _resolve(method)
    found.check_options(options)
    call = found.registered
    if found.has_parameters:
        call = found.registered(*votes.shape[1:], **options)
        call = call.to(votes.device, torch.promote_types(votes.dtype, torch.float32))
        options = {}
    return found.call(call, votes, iterations, options, couplings, trace)


class RoutingLayer(nn.Module):
    """A routing method with its parameters, if it has any, and its arguments.

    Args:
        method: the registered name.
        parents, children, dim: sizes of the votes.
        iterations: routing iterations, at least 1.
        options: further arguments of the method.

    Raises:
        ModelError: an unknown method, or an option that it does not have.
    """

    def __init__(
        self, method: str, parents: int, children: int, dim: int, iterations: int, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.method, self.iterations, self.options = method, iterations, dict(options)
        self._found = _resolve(method)
        self._found.check_options(options)
        self.module: nn.Module | None = None
        if self._found.has_parameters:
            self.module = self._found.registered(parents, children, dim, **options)

    def forward(
        self,
        votes: Float[Tensor, "batch parents children dim"],
        *,
        couplings: bool = False,
        trace: list[RoutingIteration] | None = None,
    ) -> Routing:
        """Route; `couplings` and `trace` as in `route`."""
        if self.module is None:
            return self._found.call(
                self._found.registered, votes, self.iterations, self.options, couplings=couplings, trace=trace
            )
        return self._found.call(self.module, votes, self.iterations, {}, couplings=couplings, trace=trace)

    def extra_repr(self) -> str:
        """The representation shown by `print`."""
        return f"{self.method}, iterations={self.iterations}"


def iterates(method: str) -> bool:
    """Whether a method has iterations; raises ModelError for an unknown one."""
    return "iterations" in _resolve(method).takes


def method_options(method: str) -> tuple[str, ...]:
    """Names of a method's own options, beside votes, iterations and what to return.

    Raises:
        ModelError: an unknown method.
    """
    return _resolve(method).options


@dataclass(frozen=True)
class _Method:
    """A registered method and what its signature accepts."""

    name: str
    registered: Any
    has_parameters: bool
    options: tuple[str, ...]
    takes: frozenset[str]

    def check_options(self, options: Mapping[str, Any]) -> None:
        for option in options:
            if option not in self.options:
                known = unknown_name(f"option of routing {self.name}", option, self.options)
                raise ModelError(known if self.options else f"routing {self.name} has no options, got {option!r}")

    def call(
        self,
        call: Any,
        votes: Tensor,
        iterations: int,
        options: Mapping[str, Any],
        couplings: bool,
        trace: list[RoutingIteration] | None,
    ) -> Routing:
        asked = {"iterations": iterations, "couplings": couplings, "trace": trace}
        asked = {name: value for name, value in asked.items() if name in self.takes}
        if self.name != "dynamic":  # which has kernels for half precision
            votes = votes.to(torch.promote_types(votes.dtype, torch.float32))
        with without_autocast(votes):
            found = call(votes, **options, **asked)
        if not isinstance(found, Routing):
            raise ModelError(f"routing {self.name} must return dualcaps.Routing, got {type(found).__name__}")
        return found if couplings else found._replace(couplings=None)


def _resolve(method: str) -> _Method:
    return _inspect(method, lookup(ROUTING_METHODS, "routing method", method).value)


@functools.cache
def _inspect(name: str, registered: Any) -> _Method:
    has_parameters = isinstance(registered, type)
    construct = inspect.signature(registered.__init__ if has_parameters else registered).parameters
    call = inspect.signature(registered.forward).parameters if has_parameters else construct
    common = {"self", "votes", "iterations", "parents", "children", "dim", "couplings", "trace"}
    return _Method(
        name,
        registered,
        has_parameters,
        tuple(option for option in construct if option not in common),
        frozenset({"iterations", "couplings", "trace"} & call.keys()),
    )


def _check_votes(votes: Tensor) -> None:
    if votes.ndim != 4 or not votes.is_floating_point():
        raise ValueError(f"votes must be a float tensor [B, J, N, D], got {votes.dtype} {tuple(votes.shape)}")
    if 0 in votes.shape[1:]:
        raise ValueError(f"votes need at least one parent, child and dimension, got {tuple(votes.shape)}")
