"""The invariants that every implementation of routing is held to."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualcaps import route as route_parents
from dualcaps import squash
from dualcaps.config import Update
from dualcaps.routing import route_children
from dualcaps.routing.dynamic import why_not_triton

route = partial(route_parents, couplings=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the kernel runs, on the CPU in Triton's interpreter

# Tracing Triton's interpreter for coverage doubles its time.
TRITON = pytest.param("triton", marks=pytest.mark.no_cover)
IMPLEMENTATIONS = ["eager", TRITON, "reference"]
# bfloat16 is computed in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5}
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 1e-3}


@st.composite
def votes_strategy(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE)) -> Tensor:
    sizes = [draw(st.integers(1, most)) for most in (3, 5, 7, 6)]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-3, 1.0, 10.0]))
    return (scale * torch.randn(sizes, generator=random, dtype=torch.float64)).to(draw(st.sampled_from(dtypes)))


def taken(votes: Tensor, implementation: str) -> Tensor:
    """The votes in a type and on a device that the implementation takes."""
    if implementation != "triton":
        return votes
    return votes.to(DEVICE, torch.float32 if votes.dtype == torch.float64 else votes.dtype)


options_strategy = st.fixed_dictionaries(
    {
        "iterations": st.integers(1, 4),
        "squash_constant": st.sampled_from([0.5, 1.0]),
        "update": st.sampled_from(get_args(Update)),
    }
)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=12)
@given(votes=votes_strategy(), options=options_strategy)
def test_couplings_sum_to_one_over_the_parents(votes: Tensor, options: dict[str, Any], implementation: str):
    couplings = route(taken(votes, implementation), **options, implementation=implementation).couplings
    assert couplings.min() >= 0
    torch.testing.assert_close(couplings.sum(dim=1), torch.ones_like(couplings[:, 0]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=12)
@given(votes=votes_strategy(), options=options_strategy)
def test_parents_are_shorter_than_one_and_at_least_float32(votes: Tensor, options: dict[str, Any], implementation: str):
    votes = taken(votes, implementation)
    parents = route(votes, **options, implementation=implementation).parents
    assert parents.dtype == torch.promote_types(votes.dtype, torch.float32)
    assert (parents.norm(dim=-1) <= 1).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=12)
@given(votes=votes_strategy(), options=options_strategy)
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(votes: Tensor, options: dict[str, Any], implementation: str):
    votes = taken(votes, implementation)
    together = route(votes, **options, implementation=implementation)
    for i in range(len(votes)):
        alone = route(votes[i : i + 1], **options, implementation=implementation)
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], atol=TOLERANCE[votes.dtype], rtol=RELATIVE[votes.dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=12)
@given(votes=votes_strategy((torch.float64,)), options=options_strategy, seed=st.integers(0, 99))
def test_children_may_be_permuted_and_parents_follow_theirs(
    votes: Tensor, options: dict[str, Any], seed: int, implementation: str
):
    random = torch.Generator().manual_seed(seed)
    parent_order = torch.randperm(votes.shape[1], generator=random)
    child_order = torch.randperm(votes.shape[2], generator=random)
    votes = taken(votes, implementation)
    straight = route(votes, **options, implementation=implementation)
    permuted = route(votes[:, parent_order][:, :, child_order], **options, implementation=implementation)
    close = partial(torch.testing.assert_close, atol=TOLERANCE[votes.dtype], rtol=RELATIVE[votes.dtype])
    close(permuted.parents, straight.parents[:, parent_order])
    close(permuted.couplings, straight.couplings[:, parent_order][:, :, child_order])


def outcome(votes: Tensor, options: dict[str, Any], implementation: str) -> tuple[Any, ...]:
    """Parents, couplings and the gradient of a function of both."""
    leaf = votes.clone().requires_grad_()
    routed = route(leaf, **options, implementation=implementation)
    weights = torch.linspace(-1, 1, routed.parents.numel(), dtype=routed.parents.dtype, device=votes.device)
    objective = (routed.parents.flatten() * weights).sum() + routed.couplings.square().sum()
    (gradient,) = torch.autograd.grad(objective, leaf)
    return *(tensor.detach().cpu() for tensor in routed), gradient.cpu()


def agree(fast: tuple[Tensor, ...], truth: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for one, other in zip(fast, truth, strict=True):
        # The gradient has the votes' type, so in bfloat16 it is rounded to 8 bits at the very end.
        relative = 2e-2 if one.dtype == torch.bfloat16 else RELATIVE[dtype]
        tolerance = TOLERANCE[dtype] * other.abs().max().clamp_min(1).item()
        torch.testing.assert_close(one, other, atol=tolerance, rtol=relative)


@pytest.mark.parametrize("implementation", ["eager", TRITON])
@settings(max_examples=20)
@given(votes=votes_strategy(), options=options_strategy)
def test_fast_versions_agree_with_the_reference_forward_and_backward(
    votes: Tensor, options: dict[str, Any], implementation: str
):
    votes = taken(votes, implementation)
    agree(outcome(votes, options, implementation), outcome(votes, options, "reference"), votes.dtype)


# On a GPU the kernel has its own tiles. Triton's interpreter takes seconds for a dozen of them, so that there the
# tiles are smaller: parents that fill one, that need several, poses longer than one; children in one and in several.
SHAPES = [
    *(
        (1, 1, 1, 1),
        (2, 1, 5, 3),
        (1, 2, 1, 1),
        (3, 3, 3, 3),
        (2, 5, 7, 11),
        (1, 6, 13, 17),
        (2, 7, 9, 5),
        (1, 9, 33, 3),
    ),
    *((2, 10, 100, 16), (1, 10, 36, 16), (1, 11, 70, 13), (1, 12, 129, 6), (1, 13, 37, 19), (2, 15, 15, 15)),
    *((1, 17, 31, 9), (1, 20, 65, 24), (1, 21, 50, 16), (1, 26, 10, 18), (1, 33, 12, 16), (1, 43, 49, 8)),
    *((1, 5, 257, 3), (1, 3, 300, 16), (1, 2, 513, 2), (1, 47, 11, 7), (1, 100, 20, 16), (1, 62, 6, 33)),
    # More parents, or longer poses, than a tile holds.
    *(
        (1, 129, 5, 16),
        (1, 200, 9, 16),
        (1, 300, 3, 10),
        (1, 70, 6, 50),
        (1, 1000, 3, 16),
        (1, 5, 4, 1000),
        (1, 3, 5, 2500),
    ),
]
SHAPES_BY_TILE = {
    2048: SHAPES if DEVICE == "cuda" else [(1, 1, 1, 1), (2, 10, 100, 16), (1, 13, 37, 19)],
    64: []
    if DEVICE == "cuda"
    else [(2, 1, 5, 3), (1, 2, 33, 2), (3, 3, 3, 3), (2, 5, 7, 7), (1, 4, 17, 3), (2, 15, 3, 2)],
    32: [] if DEVICE == "cuda" else [(1, 9, 3, 5), (1, 17, 2, 4), (2, 3, 3, 13), (1, 3, 2, 40), (1, 40, 3, 1)],
}


@pytest.mark.slow  # in the interpreter, all shapes together
@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("tile", "shape"), [(tile, shape) for tile, shapes in SHAPES_BY_TILE.items() for shape in shapes], ids=str
)
@pytest.mark.parametrize("update", get_args(Update))
def test_the_kernel_agrees_in_any_shape(
    tile: int, shape: tuple[int, ...], update: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dualcaps.routing.dynamic.triton._TILE", tile)
    random = torch.Generator().manual_seed(sum(shape))
    batch, parents, children, dim = shape
    # As a linear layer leaves them: parents beside children in memory.
    votes = torch.randn(batch, children, parents, dim, generator=random).transpose(1, 2) * (4 / dim**0.5)
    votes = taken(votes, "triton")
    options = {"iterations": 3, "update": update}
    agree(outcome(votes, options, "triton"), outcome(votes, options, "eager"), torch.float32)


def test_the_kernel_without_couplings_and_of_no_samples():
    votes = torch.randn(2, 3, 7, 5, device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(route_parents(votes, implementation="triton").parents.sum(), votes)
    (expected,) = torch.autograd.grad(route_parents(votes, implementation="eager").parents.sum(), votes)
    torch.testing.assert_close(gradient, expected)
    assert route_parents(votes).couplings is None
    assert route(votes[:0], implementation="triton").parents.shape == (0, 3, 5)


def test_why_not_triton_gives_the_reason():
    assert why_not_triton(torch.zeros(1, 1, 1, 1, device=DEVICE)) is None
    assert "float64" in str(why_not_triton(torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=DEVICE)))
    assert "4097" in str(why_not_triton(torch.zeros(1, 1, 1, 4097, device=DEVICE)))
    with pytest.raises(ValueError, match=r"triton cannot route these votes: the votes are torch\.float64"):
        route(torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=DEVICE), implementation="triton")


@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (3, 9, 5, 6, 7))),
    options=options_strategy,
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 99),
)
def test_children_are_routed_as_their_votes_would_be(
    sizes: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype, seed: int
):
    batch, count, channels, parents, dim = sizes
    random = torch.Generator().manual_seed(seed)
    children = torch.randn(batch, count, channels, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    transform = torch.randn(parents, dim, channels, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    precise = torch.promote_types(dtype, torch.float32)
    found, gradients = [], []
    for implicit in (True, False):
        if implicit:
            routed = route_children(children, transform, **options, couplings=True)
        else:
            votes = torch.einsum("jdq,bnq->bjnd", transform.to(precise), children.to(precise))
            routed = route(votes, **options, implementation="eager")
        found.append(routed)
        gradients.append(torch.autograd.grad(routed.parents.square().sum(), (children, transform)))
    # Couplings and keys are rounded to bfloat16, 8 bits, where the children are bfloat16.
    loose = {"atol": 0.05, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 50 * TOLERANCE[dtype], "rtol": 1e-3}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **loose)
    if dtype != torch.bfloat16:
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(
                one, other, atol=loose["atol"] * other.abs().max().clamp_min(1).item(), rtol=1e-3
            )


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("update", get_args(Update))
def test_gradients_are_those_of_the_function(update: str, implementation: str):
    votes = torch.randn(2, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: tuple(route(v, update=update, implementation=implementation)),
        votes,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_zero_votes_give_finite_values_and_gradients(dtype: torch.dtype, implementation: str):
    votes = taken(torch.zeros(2, 3, 4, 5, dtype=dtype), implementation).requires_grad_()
    parents, couplings = route(votes, implementation=implementation)
    (parents.norm(dim=-1).sum() + couplings.square().sum()).backward()
    assert parents.eq(0).all()
    torch.testing.assert_close(couplings, torch.full_like(couplings, 1 / 3))
    assert votes.grad is not None
    assert votes.grad.isfinite().all()


def test_one_iteration_by_hand():
    votes = torch.tensor([[[[3.0, 0.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]])
    parents, couplings = route(votes, 1, squash_constant=1.0)
    totals = torch.tensor([[[2.0, 2.0], [0.0, 1.0]]])  # half of each parent's votes
    squares = torch.tensor([[[8.0], [1.0]]])
    torch.testing.assert_close(parents, totals * squares.sqrt() / (1 + squares))
    torch.testing.assert_close(couplings, torch.full((1, 2, 2), 0.5))


def test_replacing_forgets_and_accumulating_remembers():
    votes = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    same_after_two = [route(votes, 2, update=update).couplings for update in get_args(Update)]
    torch.testing.assert_close(*same_after_two)
    differ_after_three = [route(votes, 3, update=update).couplings for update in get_args(Update)]
    assert (differ_after_three[0] - differ_after_three[1]).abs().max() > 1e-3


def test_autocast_does_not_round_the_sums():
    votes = torch.randn(2, 3, 50, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = route(votes).parents
    torch.testing.assert_close(inside, route(votes).parents, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("votes", "options", "named"),
    [
        (torch.zeros(2, 3, 4), {}, "votes"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int64), {}, "votes"),
        (torch.zeros(2, 0, 4, 5), {}, "votes"),
        (torch.zeros(2, 3, 4, 5), {"iterations": 0}, "iterations"),
        (torch.zeros(2, 3, 4, 5), {"squash_constant": 0.0}, "squash_constant"),
    ],
)
def test_arguments_out_of_range_are_named(votes: Tensor, options: dict[str, Any], named: str):
    # Called below the run-time type check of the tests, which would refuse some of these first.
    plain_route = getattr(route_parents, "__wrapped__", route_parents)
    with pytest.raises(ValueError, match=named):
        plain_route(votes, **options)


@given(votes=votes_strategy((torch.float64,)), constant=st.sampled_from([0.5, 1.0]))
def test_squash_keeps_the_direction_and_follows_equation_1(votes: Tensor, constant: float):
    squashed = squash(votes, constant)
    length = votes.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(squashed, length**2 / (constant + length**2) * votes / length)
