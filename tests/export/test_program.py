"""Programs of `torch.export` answer as the network does."""

from pathlib import Path

import torch
from support import needs_exporter

from dualcaps import create_model, predict
from dualcaps.export.program import export_program


@needs_exporter
def test_a_program_answers_the_same_without_the_package(tmp_path: Path):
    torch.manual_seed(0)
    model = create_model("da-capsnet", (1, 12, 12), 3, width=8).eval()
    images = torch.randint(256, (7, 1, 12, 12), dtype=torch.uint8)
    assert export_program(model, tmp_path / "x.pt2", images) <= 1e-4
    lengths, poses = torch.export.load(tmp_path / "x.pt2").module()(images)
    torch.testing.assert_close(lengths, predict(model, images), atol=1e-4, rtol=0)
    assert poses.shape == (7, 3, 16)
    assert [path.name for path in tmp_path.glob("*.*")] == ["x.pt2"]
