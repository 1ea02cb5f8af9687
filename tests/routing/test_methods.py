"""Invariants of every registered routing method, and agreement of the field's methods with loops."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_references import REFERENCES
from torch import Tensor

from dualcaps import ImageDataset, ModelError, create_model, load_data, route
from dualcaps.registry import ROUTING_METHODS
from dualcaps.routing import RoutingLayer, iterates

METHODS = sorted(ROUTING_METHODS)
OPTIONS = {"em": {"inverse_temperature": 1.0}}  # steeper than the default
PER_CHILD = {"self-attention", "self-routing"}  # their parameters are [parents, children, …]


def layer(method: str, votes: Tensor, iterations: int = 3, seed: int = 0) -> RoutingLayer:
    """A layer for these votes whose parameters are random and far from their initial values."""
    made = RoutingLayer(method, *votes.shape[1:], iterations=iterations, options=OPTIONS.get(method, {})).to(
        votes.dtype
    )
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=votes.dtype) / 2)
    return made


@st.composite
def votes_strategy(draw: st.DrawFn, largest: tuple[int, ...] = (3, 5, 6, 5)) -> Tensor:
    sizes = [draw(st.integers(1, most)) for most in largest]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return draw(st.sampled_from([0.05, 1.0, 3.0])) * torch.randn(sizes, generator=random, dtype=torch.float64)


def test_the_methods_of_the_field_are_registered():
    assert {"dynamic", *REFERENCES} <= set(METHODS)


@pytest.mark.parametrize("method", sorted(REFERENCES))
@settings(max_examples=15)
@given(votes=votes_strategy((2, 4, 5, 4)), iterations=st.integers(1, 3), seed=st.integers(0, 99))
def test_poses_couplings_and_gradients_agree_with_loops(method: str, votes: Tensor, iterations: int, seed: int):
    def outcome(run: Any, parameters: list[Tensor], leaf: Tensor) -> list[Tensor]:
        poses, couplings = run(leaf)
        weights = torch.linspace(-1, 1, poses.numel(), dtype=poses.dtype)
        objective = (poses.flatten() * weights).sum() + couplings.square().sum()
        gradients = torch.autograd.grad(objective, [leaf, *parameters], allow_unused=True)
        return [
            poses,
            couplings,
            *(g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, [leaf, *parameters], strict=True)),
        ]

    made = layer(method, votes, iterations, seed)
    named = {name.removeprefix("module."): parameter for name, parameter in made.named_parameters()}

    def loops(leaf: Tensor) -> tuple[Tensor, Tensor]:
        routed = [REFERENCES[method](sample, named, iterations) for sample in leaf]
        return torch.stack([poses for poses, _ in routed]), torch.stack([couplings for _, couplings in routed])

    found = outcome(lambda leaf: made(leaf, couplings=True), list(named.values()), votes.clone().requires_grad_())
    wanted = outcome(loops, list(named.values()), votes.clone().requires_grad_())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8 * other.detach().abs().max().clamp_min(1).item(), rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method: str):
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    made = layer(method, votes)

    def run(votes: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip((name for name, _ in made.named_parameters()), parameters, strict=True))
        found = torch.func.functional_call(made, state, (votes,), {"couplings": True})
        return found.parents, found.couplings

    assert torch.autograd.gradcheck(run, (votes, *made.parameters()))


@pytest.mark.parametrize("method", METHODS)
@given(votes=votes_strategy())
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(method: str, votes: Tensor):
    made = layer(method, votes)
    together = made(votes, couplings=True)
    for i in range(len(votes)):
        alone = made(votes[i : i + 1], couplings=True)
        torch.testing.assert_close(alone.parents[0], together.parents[i], atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(alone.couplings[0], together.couplings[i], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@given(votes=votes_strategy(), seed=st.integers(0, 99))
def test_permuted_children_leave_the_parents_and_permuted_parents_permute_them(method: str, votes: Tensor, seed: int):
    random = torch.Generator().manual_seed(seed)
    parent_order = torch.randperm(votes.shape[1], generator=random)
    child_order = torch.randperm(votes.shape[2], generator=random)
    made = layer(method, votes)
    straight = made(votes, couplings=True)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.shape[0] == votes.shape[1] and (method in PER_CHILD or method == "em"):
                parameter.copy_(parameter[parent_order])
            if method in PER_CHILD:
                parameter.copy_(parameter[:, child_order])
    permuted = made(votes[:, parent_order][:, :, child_order], couplings=True)
    torch.testing.assert_close(permuted.parents, straight.parents[:, parent_order], atol=1e-10, rtol=1e-8)
    wanted = straight.couplings[:, parent_order][:, :, child_order]
    torch.testing.assert_close(permuted.couplings, wanted, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@given(votes=votes_strategy())
def test_couplings_sum_to_one_over_the_parents_and_lengths_are_below_one(method: str, votes: Tensor):
    found = layer(method, votes)(votes, couplings=True)
    assert found.couplings.min() >= 0
    torch.testing.assert_close(found.couplings.sum(dim=1), torch.ones_like(found.couplings[:, 0]))
    assert found.parents.norm(dim=-1).max() <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_votes_of_zero_have_finite_poses_and_gradients(method: str, dtype: torch.dtype):
    votes = torch.zeros(2, 4, 9, 5, dtype=dtype, requires_grad=True)
    made = RoutingLayer(method, 4, 9, 5, iterations=3, options={}).to(dtype)
    found = made(votes, couplings=True)
    (found.parents.sum() + found.couplings.square().sum()).backward()
    for tensor in (found.parents, found.couplings, votes.grad, *(p.grad for p in made.parameters())):
        assert tensor is None or tensor.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_float32_and_couplings_come_when_asked_for(method: str):
    votes = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = route(votes, method=method)
    assert found.parents.dtype == torch.float32
    assert found.couplings is None
    torch.manual_seed(0)
    whole = route(votes.float(), method=method, couplings=True)
    torch.manual_seed(0)
    torch.testing.assert_close(route(votes, method=method, couplings=True).parents, whole.parents)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_traced_iteration_is_the_result(method: str):
    votes = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    made = layer(method, votes)
    trace = []
    found = made(votes, couplings=True, trace=trace)
    registered = ROUTING_METHODS[method].value
    if "trace" not in inspect.signature(getattr(registered, "forward", registered)).parameters:
        assert not trace
        return
    assert len(trace) == (3 if iterates(method) else 1)
    torch.testing.assert_close(trace[-1].parents, found.parents)
    torch.testing.assert_close(trace[-1].couplings, found.couplings)
    for iteration in trace:
        torch.testing.assert_close(iteration.logits.softmax(dim=1), iteration.couplings)


@pytest.mark.parametrize("method", [name for name in METHODS if not iterates(name)])
def test_iterations_of_a_method_that_has_none_are_refused(method: str):
    with pytest.raises(ModelError, match=f"routing {method} has no iterations: leave that option out"):
        create_model("capsnet", routing=method, iterations=5)


def test_em_with_one_gaussian_has_its_mean_and_variance():
    """By hand: one parent is given all votes, so its mean is theirs and its cost their log standard deviation."""
    votes = torch.tensor([[1.0, 3.0], [3.0, 7.0]], dtype=torch.float64)[None, None]  # mean (2, 5), variance (1, 4)
    made = RoutingLayer("em", 1, 2, 2, iterations=1, options={"inverse_temperature": 2.0}).double()
    activation = 1 / (1 + math.exp(2 * 0.05 * math.log(2)))
    direction = torch.tensor([2.0, 5.0], dtype=torch.float64) / 29**0.5
    torch.testing.assert_close(made(votes).parents[0, 0], activation * direction)


def test_agreeing_votes_win_by_em():
    random = torch.Generator().manual_seed(0)
    votes = torch.randn(1, 2, 20, 4, generator=random)
    votes[0, 1] = torch.tensor([1.0, -1.0, 0.5, 2.0]) + 0.05 * torch.randn(20, 4, generator=random)
    lengths = route(votes, method="em", inverse_temperature=1.0).parents.norm(dim=-1)
    assert lengths[0, 1] > 0.9 > 0.6 > lengths[0, 0]


def test_wrong_options_are_refused():
    votes = torch.randn(1, 2, 3, 4)
    with pytest.raises(ModelError, match=r"option of routing uniform.*squash_constant"):
        route(votes, method="uniform", squash_constnt=1.0)
    with pytest.raises(ModelError, match="self-routing has no options"):
        route(votes, method="self-routing", squash_constant=1.0)
    with pytest.raises(ModelError, match="inverse_temperature must be above 0"):
        create_model("capsnet", routing="em", inverse_temperature=0.0)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_data("digits", image_size=(20, 20))


@pytest.mark.slow  # all methods together
@pytest.mark.parametrize("method", METHODS)
def test_a_network_of_each_method_learns_digits(method: str, digits: ImageDataset):
    """Four epochs, far above the tenth of chance."""
    images, labels = digits.train.images, digits.train.labels
    torch.manual_seed(0)
    model = create_model("capsnet", tuple(images.shape[1:]), 10, routing=method, width=16, decoder=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(4):
        for chosen in torch.randperm(len(images)).split(32):
            loss = model.loss(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = model.eval()(digits.test.images).lengths.argmax(dim=1) == digits.test.labels
    assert right.float().mean() > 0.4
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
