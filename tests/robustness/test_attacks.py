"""Adversarial images stay within the allowed change and change the prediction."""

import pytest
import torch

from dualcaps import ModelError, create_model, wrap_module
from dualcaps.robustness.attacks import check_gradients, fgsm, pgd


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 12, 12), 3).eval()
    images = torch.rand(16, 1, 12, 12)
    return model, images, model(images).lengths.argmax(dim=1)


def difference(model, images, labels):
    """The longest wrong length minus the true one."""
    lengths = model(images).lengths.detach()
    own = lengths.gather(1, labels[:, None])[:, 0]
    return lengths.scatter(1, labels[:, None], -1).max(dim=1).values - own


def test_attacks_stay_within_the_allowed_change(setting):
    model, images, labels = setting
    for attacked in (fgsm(model, images, labels, 0.1), pgd(model, images, labels, 0.1, steps=5)):
        assert not attacked.requires_grad
        assert (attacked - images).abs().max() <= 0.1 + 1e-6
        assert 0 <= attacked.min() <= attacked.max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_steps_change_more_predictions_than_one_and_noise(setting):
    model, images, labels = setting
    noise = (images + 0.1 * torch.sign(torch.randn_like(images))).clamp(0, 1)
    mean = {
        name: difference(model, attacked, labels).mean()
        for name, attacked in (
            ("none", images),
            ("noise", noise),
            ("fgsm", fgsm(model, images, labels, 0.1)),
            ("pgd", pgd(model, images, labels, 0.1)),
        )
    }
    assert mean["pgd"] > mean["fgsm"] > max(mean["none"], mean["noise"])
    assert (model(pgd(model, images, labels, 0.2)).lengths.argmax(dim=1) != labels).float().mean() > 0.8


def test_a_weight_keeps_the_reconstruction_close(setting):
    model, images, labels = setting

    def error(attacked):
        output = model(attacked)
        wrong = output.lengths.scatter(1, labels[:, None], -1).argmax(dim=1)
        return (model.reconstruct(output.poses, wrong) - attacked).square().mean().item()

    assert error(pgd(model, images, labels, 0.2, reconstruction_weight=1.0)) < error(pgd(model, images, labels, 0.2))
    with pytest.raises(ModelError, match="no decoder"):
        pgd(create_model("cnn", (1, 12, 12), 3), images, labels, 0.1, reconstruction_weight=1.0)


@pytest.mark.parametrize("name", ["capsnet", "cnn"])
def test_gradients_are_not_masked(name):
    torch.manual_seed(0)
    model = create_model(name, (1, 12, 12), 3).eval()
    images = torch.rand(16, 1, 12, 12)
    check = check_gradients(model, images, model(images).lengths.argmax(dim=1))
    assert check.signs() == []
    assert check.finite_difference < 0.05
    assert check.unbounded_accuracy == 0 < check.noise_accuracy


class Rounded(torch.nn.Module):
    """Logits that hide the gradient: of images rounded to a few grey levels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(144, 3)

    def forward(self, images):
        return self.layer((4 * images).round().flatten(1) / 4)


def test_masked_gradients_are_noticed():
    torch.manual_seed(0)
    model = wrap_module(Rounded(), (1, 12, 12), 3)
    images = torch.rand(16, 1, 12, 12)
    signs = check_gradients(model, images, model(images).lengths.argmax(dim=1)).signs()
    assert any("no gradient" in sign for sign in signs)
    assert any("without a bound" in sign for sign in signs)


def test_a_saturated_softmax_is_attacked_by_its_logits():
    model = wrap_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2), 2)
    with torch.no_grad():
        layer = model.get_submodule("module.1")
        layer.weight.copy_(torch.tensor([[60.0, 0, 0, 0], [0, 0, 0, 0]]))
        layer.bias.copy_(torch.tensor([0.0, 20.0]))
    images = torch.full((3, 1, 2, 2), 0.9)
    labels = torch.zeros(3, dtype=torch.int64)
    assert (model(images).lengths[:, 0] == 1).all()
    attacked = pgd(model, images, labels, 0.6)
    torch.testing.assert_close(attacked[:, 0, 0, 0], torch.full((3,), 0.3))
    assert (model(attacked).lengths.argmax(dim=1) == 1).all()
