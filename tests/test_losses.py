"""Losses against their formulas, written as loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import cross_entropy, margin_loss, reconstruction_loss


@given(st.data())
def test_margin_loss_is_the_formula(data: st.DataObject):
    batch, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    lengths = torch.tensor(
        data.draw(
            st.lists(st.lists(st.floats(0, 1), min_size=classes, max_size=classes), min_size=batch, max_size=batch)
        ),
        dtype=torch.float64,
    )
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)))
    total = 0.0
    for b in range(batch):
        for j in range(classes):
            length = lengths[b, j].item()
            total += max(0, 0.9 - length) ** 2 if labels[b] == j else 0.5 * max(0, length - 0.1) ** 2
    torch.testing.assert_close(margin_loss(lengths, labels).item(), total / batch)


def test_reconstruction_loss_sums_over_the_image_and_averages_over_the_batch():
    drawn, images = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1.0, 2], [0, 0]]], [[[0, 0], [0, 3.0]]]])
    assert reconstruction_loss(drawn, images).item() == (1 + 4 + 9) / 2


def test_cross_entropy_is_the_mean_negative_log_likelihood_and_finite_at_zero():
    probabilities = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    loss = cross_entropy(probabilities, torch.tensor([1, 1])).item()
    expected = -(torch.tensor(0.75).log() + torch.tensor(1e-7).log()).item() / 2
    torch.testing.assert_close(loss, expected)
