"""The loss curves of all six networks in float32, as recorded before the redesign."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_shape
from PIL import Image

from dualcaps import TrainConfig, create_model, fit, load_data

GOLDEN = json.loads((Path(__file__).parent / "golden" / "loss_curves.json").read_text())


@pytest.fixture
def one_thread():
    """Sums of one thread are added in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_the_losses_are_those_recorded(name: str, tmp_path: Path, one_thread: None):
    random = np.random.default_rng(0)
    for kind, label in enumerate(("across", "down", "slanted")):
        (tmp_path / "shapes" / label).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(draw_shape(kind, (20, 20), random))
            picture.save(tmp_path / "shapes" / label / f"{number:02}.png")
    data = load_data(tmp_path / "shapes")
    torch.manual_seed(0)
    model = create_model(name, data.image_shape, 3)
    config = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu")
    losses = [line["loss"] for line in fit(model, data, config, out=tmp_path / "run", quiet=True).history]
    # Equal to the bit on the processor that is named in the file; other instruction sets round differently.
    assert losses == pytest.approx([float.fromhex(loss) for loss in GOLDEN["losses"][name]], rel=2e-3)
