"""Scores of maps, against cases worked by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dualcaps import CapsOutput, DataError, ModelConfig, Network, wrap_module
from dualcaps.explain.maps import explain
from dualcaps.explain.scores import (
    blurred,
    deletion,
    impute,
    insertion,
    randomised_weights,
    ranks,
    road,
    score_maps,
)

CLASSES = torch.zeros(2, dtype=torch.long)


class Weighted(Network):
    """Score of class 0: a weighted mean of four pixels; of class 1 the rest to 1."""

    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def __init__(self) -> None:
        super().__init__(ModelConfig("weighted", (1, 2, 2), 2, decoder=False))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput:
        score = (self.prepare(images).flatten(1) * self.weights).sum(dim=1)
        lengths = torch.stack([score, 1 - score], dim=1)
        return CapsOutput(lengths, lengths.unsqueeze(-1))


def test_deletion_and_insertion_of_a_weighted_mean():
    images = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]).expand(2, 1, 2, 2)
    maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]])  # the best order and its reverse
    # Replaced by the mean 0.5, the score goes 0.7, 0.5, 0.35, 0.45, 0.5; in reverse 0.7, 0.75, 0.85, 0.7, 0.5.
    found = deletion(Weighted(), images, CLASSES, maps)
    steps = [round(4 * step / 20) for step in range(21)]
    for curve, score in zip(((0.7, 0.5, 0.35, 0.45, 0.5), (0.7, 0.75, 0.85, 0.7, 0.5)), found.tolist(), strict=True):
        heights = [curve[step] for step in steps]
        expected = sum((low + high) / 2 / 20 for low, high in itertools.pairwise(heights))
        assert score == pytest.approx(expected, abs=1e-6)
    better, worse = insertion(Weighted(), images, CLASSES, maps).tolist()
    assert better > worse


def test_the_removed_pixels_are_imputed_by_their_neighbours():
    ramp = (torch.arange(8.0)[:, None] * 0.05 + torch.arange(9.0) * 0.04 + 0.1).expand(2, 8, 9)
    removed = torch.zeros(8, 9, dtype=torch.bool)
    removed[2:5, 3:7] = True
    imputed = impute(ramp, removed)
    assert torch.equal(imputed[:, ~removed], ramp[:, ~removed])
    assert (imputed - ramp).abs().max() < 0.06  # the noise has a deviation of 0.01
    assert not torch.equal(imputed, ramp)
    assert torch.equal(impute(ramp, removed & False), ramp)
    assert (impute(ramp, removed | True) - ramp.mean()).abs().max() < 0.06


class Spot(Network):
    """Class 0 where the pixel at (4, 5) is bright."""

    def __init__(self) -> None:
        super().__init__(ModelConfig("spot", (1, 10, 10), 2, decoder=False))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, intermediates: bool = False) -> CapsOutput:
        bright = self.prepare(images)[:, 0, 4, 5].clamp(0, 1)
        lengths = torch.stack([bright, 1 - bright], dim=1)
        return CapsOutput(lengths, lengths.unsqueeze(-1))


def test_road_is_0_where_the_map_marks_what_matters_and_1_where_it_marks_it_last():
    images = torch.zeros(2, 1, 10, 10)
    images[:, 0, 4, 5] = 1
    maps = images[:, 0] * torch.tensor([1.0, -1.0])[:, None, None]
    assert road(Spot(), images, CLASSES, maps).tolist() == [0, 1]


def test_a_table_of_scores_puts_a_map_of_what_matters_before_noise():
    layer = nn.Linear(64, 2)
    torch.manual_seed(0)
    layer.weight.data = torch.zeros(2, 64)
    layer.weight.data[0, [9, 27, 36]] = 4.0
    layer.bias.data = torch.tensor([0.0, 6.0])
    model = wrap_module(nn.Sequential(nn.Flatten(), layer), (1, 8, 8), 2)
    images = torch.rand(30, 1, 8, 8) * 0.3
    images.flatten(1)[:, [9, 27, 36]] = 1.0
    counted: list[int] = []
    found = score_maps(model, images, ("gradient", "random"), batch_size=20, each=counted.append)
    assert counted == [20, 20, 10, 10]
    best, noise = found["gradient"], found["random"]
    assert best.deletion.mean + best.deletion.margin < noise.deletion.mean - noise.deletion.margin
    assert best.insertion.mean > noise.insertion.mean
    assert best.road.mean < noise.road.mean
    assert noise.randomised_weights.mean == pytest.approx(1)  # noise depends on no weights
    assert {score.images for scores in found.values() for score in scores} == {30}
    classes = CLASSES.new_zeros(30)
    by_image = deletion(model, images, classes, explain(model, images, classes, "gradient"))
    assert best.deletion.mean == pytest.approx(by_image.mean().item(), abs=1e-5)
    assert best.deletion.margin == pytest.approx(1.96 * by_image.std().item() / 30**0.5, abs=1e-5)
    with pytest.raises(DataError, match="no images"):
        score_maps(model, images[:0])


def test_maps_that_ignore_the_weights_are_found_out():
    torch.manual_seed(0)
    model = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), (1, 16, 16), 3)
    images, classes = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edges = images[:, 0] - blurred(images)[:, 0]
    torch.testing.assert_close(randomised_weights(model, edges, lambda _: edges), torch.ones(4, dtype=torch.float64))
    maps = explain(model, images, classes, "gradient")
    found = randomised_weights(model, maps, lambda other: explain(other, images, classes, "gradient"))
    assert found.abs().max() < 0.3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
def test_ranks_are_an_order_of_the_pixels(height: int, width: int, levels: int, seed: int):
    maps = torch.randint(levels + 1, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()
    found = ranks(maps).flatten(1)
    assert found.sort(dim=1).values.tolist() == [list(range(height * width))] * 3
    by_rank = maps.flatten(1).gather(1, found.argsort(dim=1))
    assert (by_rank.diff(dim=1) <= 0).all()


def test_pixels_of_equal_value_are_not_ranked_by_their_place():
    assert ranks(torch.ones(1, 8, 8)).flatten().tolist() != list(range(64))


def test_blurring_keeps_a_flat_image_and_the_mean_of_another():
    torch.testing.assert_close(blurred(torch.full((1, 3, 9, 12), 0.3)), torch.full((1, 3, 9, 12), 0.3))
    spot = torch.zeros(1, 1, 20, 20)
    spot[0, 0, 10, 10] = 1
    found = blurred(spot)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert found.max() < 0.05
