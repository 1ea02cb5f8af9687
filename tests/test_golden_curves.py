"""The loss curves of all six networks in float32, as recorded before the redesign."""

import json
from pathlib import Path

import pytest
import torch
from support import write_shapes

from dualcaps import TrainConfig, create_model, fit, load_data

GOLDEN = json.loads((Path(__file__).parent / "golden" / "loss_curves.json").read_text())


@pytest.mark.usefixtures("no_pictures", "one_thread")
@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_the_losses_are_those_recorded(name: str, tmp_path: Path):
    if name in ("cnn", "sabour-capsnet") and torch.__version__ < "2.9":
        pytest.skip("older versions draw other random numbers for dropout and truncated normal weights")
    data = load_data(write_shapes(tmp_path / "shapes", (20, 20)))
    torch.manual_seed(0)
    model = create_model(name, data.image_shape, 3)
    config = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu")
    losses = [line["loss"] for line in fit(model, data, config, out=tmp_path / "run", quiet=True).history]
    # Equal to the bit on the processor that is named in the file; other instruction sets round differently.
    assert losses == pytest.approx([float.fromhex(loss) for loss in GOLDEN["losses"][name]], rel=2e-3)
