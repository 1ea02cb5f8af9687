"""The routing kernel agrees with the loops of the reference, forward and backward, however the votes lie in memory."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualcaps import kernels
from dualcaps.config import Update
from dualcaps.routing.dynamic import route_dynamic
from dualcaps.routing.dynamic.eager import route_eager
from dualcaps.routing.dynamic.reference import route_reference

pytestmark = pytest.mark.usefixtures("folder")
NUMBER_TYPES = st.sampled_from([torch.float32, torch.bfloat16])
LAYOUTS = {
    "batch parents children dim": (0, 1, 2, 3),
    "batch children parents dim": (0, 2, 1, 3),
    "children batch parents dim": (2, 0, 1, 3),
    "batch parents dim children": (0, 1, 3, 2),
}


def random_votes(batch: int, parents: int, children: int, dim: int, layout: str, scale: float = 1.0) -> Tensor:
    """Votes whose axes lie in memory in the order of the layout."""
    order = LAYOUTS[layout]
    votes = scale * torch.randn((batch, parents, children, dim), generator=torch.Generator().manual_seed(0))
    return votes.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])


def check_agreement(votes: Tensor, iterations: int, squash_constant: float, update: Update, truth: str) -> None:
    exact, leaf = (values.detach().requires_grad_() for values in (votes.double(), votes))
    function = route_reference if truth == "reference" else route_eager
    expected, _ = function(exact, iterations, squash_constant, update)
    found = kernels.route(leaf, iterations, squash_constant, update)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), exact)
    (ours,) = torch.autograd.grad((found * weights).sum(), leaf)
    assert ours.dtype == votes.dtype
    rounded = 2**-8 if votes.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3 + rounded)


@settings(max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.just(8)),
    layout=st.sampled_from(list(LAYOUTS)),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
    iterations=st.integers(1, 4),
    squash_constant=st.sampled_from([0.5, 1.0]),
    update=st.sampled_from(get_args(Update)),
    number_type=NUMBER_TYPES,
)
def test_it_agrees_with_the_reference(
    sizes: tuple[int, int, int, int],
    layout: str,
    scale: float,
    iterations: int,
    squash_constant: float,
    update: Update,
    number_type: torch.dtype,
):
    votes = random_votes(*sizes, layout, scale).to(number_type)
    check_agreement(votes, iterations, squash_constant, update, "reference")


@settings(max_examples=60)
@given(
    # More images than are routed together, and parents beyond one and two vectors of eight.
    sizes=st.tuples(st.integers(0, 18), st.integers(1, 18), st.integers(1, 40), st.sampled_from([8, 16, 24, 32])),
    layout=st.sampled_from(list(LAYOUTS)),
    scale=st.sampled_from([0.1, 1.0]),
    iterations=st.integers(1, 5),
    update=st.sampled_from(get_args(Update)),
    number_type=NUMBER_TYPES,
)
def test_it_agrees_with_tensor_operations_at_larger_sizes(
    sizes: tuple[int, int, int, int],
    layout: str,
    scale: float,
    iterations: int,
    update: Update,
    number_type: torch.dtype,
):
    if not sizes[0]:
        assert kernels.route(random_votes(*sizes, layout), iterations, 0.5, update).shape == (0, sizes[1], sizes[3])
        return
    votes = random_votes(*sizes, layout, scale).to(number_type)
    check_agreement(votes, iterations, 0.5, update, "eager")


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(3, 9)])
def test_votes_that_are_part_of_a_larger_tensor(part: slice):
    whole = random_votes(3, 4, 12, 16, "batch parents children dim")
    check_agreement(whole[:, :, part], 3, 0.5, "accumulate", "eager")


def test_votes_of_zero_and_large_logits_stay_finite():
    for votes in (torch.zeros(2, 3, 4, 8), 1e3 * random_votes(2, 3, 4, 8, "batch parents children dim")):
        leaf = votes.requires_grad_()
        found = kernels.route(leaf, 3, 0.5, "accumulate")
        torch.testing.assert_close(found, route_eager(votes, 3, 0.5, "accumulate")[0], atol=1e-5, rtol=1e-4)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("number_type", [torch.float32, torch.bfloat16])
def test_votes_that_are_no_numbers_are_not_hidden(number_type: torch.dtype):
    votes = random_votes(2, 3, 4, 8, "batch parents children dim").to(number_type)
    votes[0, 1, 2, 3] = torch.nan
    found = kernels.route(votes.requires_grad_(), 3, 0.5, "accumulate")
    assert found[0, 1].isnan().any()
    assert found[1].isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), votes)
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


def test_the_number_of_threads_changes_nothing():
    votes = random_votes(19, 10, 30, 16, "children batch parents dim").requires_grad_()
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            poses = kernels.route(votes, 3, 0.5, "accumulate")
            outcomes.append((poses, *torch.autograd.grad(poses.square().sum(), votes)))
    finally:
        torch.set_num_threads(before)
    for outcome in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], outcome))


@pytest.mark.parametrize("number_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_can_trace_it(layout: str, number_type: torch.dtype):
    votes = random_votes(2, 3, 5, 8, layout).to(number_type).requires_grad_()
    torch.library.opcheck(torch.ops.dualcaps_cpu.route.default, (votes, 2, 0.5, True))


def test_votes_that_it_does_not_take_are_refused():
    assert not kernels.takes_votes(torch.zeros(1, 1, 1, 12))
    for votes, reason in (
        (torch.zeros(1, 1, 1, 12), "8, 16, 24 or 32"),
        (torch.zeros(1, 1, 8), "four dimensions"),
        (torch.zeros(1, 1, 1, 8, dtype=torch.float64), "float32"),
        (torch.zeros(1, 0, 1, 8), "at least one parent"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            kernels.route(votes, 3, 0.5, "accumulate")


def test_compiled_code_routes_by_it_unless_couplings_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    original = kernels.route
    monkeypatch.setattr(kernels, "route", lambda *arguments: (calls.append(1), original(*arguments))[1])
    votes = random_votes(2, 3, 5, 16, "batch parents children dim")
    expected = route_dynamic(votes)
    assert not calls
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert route_dynamic(votes, couplings=True).couplings is not None
    route_dynamic(votes.double(), couplings=False)
    route_dynamic(votes[..., :12], couplings=False)
    assert not calls
    found = route_dynamic(votes, couplings=False)
    torch.testing.assert_close(found.parents, expected.parents, atol=1e-6, rtol=1e-5)
    assert calls
