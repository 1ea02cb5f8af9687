"""What the capsules see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dualcaps import ImageSplit, ModelError, create_model, load_data
from dualcaps.explain.contact_sheet import contact_sheet
from dualcaps.explain.reconstructions import reconstruction_error, reconstruction_figure
from dualcaps.nn import to_unit_range as to_float


def test_one_image_a_class_is_reconstructed_from_its_predicted_pose():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 12, 12), 4)
    model.classes = ("a", "b", "c", "d")
    part = ImageSplit(torch.randint(256, (20, 1, 12, 12), dtype=torch.uint8), torch.tensor([2, 0, 2, 1] * 5))
    figure = reconstruction_figure(model, part)
    first = part.images[[1, 3, 0]]
    with torch.inference_mode():
        output = model(to_float(first))
        drawn = model.reconstruct(output.poses)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_allclose(np.stack(shown[:3]), first[:, 0] / 255, rtol=1e-6)
    np.testing.assert_allclose(np.stack(shown[3:]), drawn[:, 0], rtol=1e-4)
    for axes, truth, guess in zip(figure.axes, (0, 1, 2), output.lengths.argmax(dim=1).tolist(), strict=False):
        title = model.classes[truth]
        assert axes.get_title() == (title if truth == guess else f"{title}\n(predicted {model.classes[guess]})")


def test_the_error_is_the_mean_square_over_all_images_for_any_batch_size(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = create_model("da-capsnet", (1, 12, 12), 4)
    part = ImageSplit(torch.randint(256, (20, 1, 12, 12), dtype=torch.uint8), torch.arange(20) % 4)
    with torch.inference_mode():
        images = to_float(part.images)
        expected = (model.eval().reconstruct(model(images).poses) - images).square().mean().item()
    assert reconstruction_error(model, part) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr("dualcaps.inference.choose_batch_size", lambda device, image_shape: 3)
    assert reconstruction_error(model, part) == pytest.approx(expected, rel=1e-4)


def test_a_contact_sheet_shows_each_class_plain_and_augmented(shapes_folder: Path):
    data = load_data(shapes_folder)
    figure = contact_sheet(data, columns=2, most=2)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["plain", "plain", "augmented", "augmented"]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["across", "down"]
    of_class = data.train.images[data.train.labels == 1][:, 0] / 255
    for axes in figure.axes[4:6]:
        shown = torch.as_tensor(np.asarray(axes.images[0].get_array()))
        assert any(torch.allclose(shown, image) for image in of_class)


def test_a_network_without_decoder_is_refused():
    model = create_model("capsnet", (1, 12, 12), 4, decoder=False)
    with pytest.raises(ModelError, match="no decoder"):
        reconstruction_figure(model, ImageSplit(torch.zeros(4, 1, 12, 12, dtype=torch.uint8), torch.arange(4)))
    with pytest.raises(ModelError, match="no decoder"):
        reconstruction_error(model, ImageSplit(torch.zeros(4, 1, 12, 12, dtype=torch.uint8), torch.arange(4)))
