"""`dualcaps export`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dualcaps.cli.display import print_notes
from dualcaps.cli.options import DataDir, PluginFiles, RunFolder
from dualcaps.errors import ConfigError, RunError, display_path

if TYPE_CHECKING:
    from dualcaps.data.dataset import ImageDataset
    from dualcaps.models import Network
    from dualcaps.runs.run import Run

_COMPARED_ON = 64  # test images


@dataclass(frozen=True)
class Export:
    """Write a trained network as ONNX, as a folder for the Hugging Face hub, or as a program of torch.export."""

    trained: RunFolder
    to: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """NAME.onnx, with the decoder beside it as NAME-decoder.onnx; NAME.pt2; any other name is a folder to make, with
    config.json, model.safetensors and a model card."""
    int8: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Quantise convolutions and matrix products of the ONNX file to 8 bits, and print the accuracy that it costs."""
    half: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Store the weights of a folder in half precision."""
    licence: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: not stated)")] = None
    """Licence of the weights, such as apache-2.0, for metadata and model card."""
    data_dir: DataDir = None
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Export, compare with the run on its test images, and print what was written."""
        kind = self.to.suffix.lower()
        if self.int8 and kind != ".onnx":
            raise ConfigError("--int8 is for ONNX: name a file that ends in .onnx, or leave it out")
        if self.half and kind in (".onnx", ".pt2"):
            raise ConfigError("--half is for folders: leave it out")
        if kind in (".onnx", ".pt2") and not self.to.absolute().parent.is_dir():
            raise ConfigError(f"--to {display_path(self.to)}: there is no folder {display_path(self.to.parent)}")

        from dualcaps.export.card import facts_of
        from dualcaps.inference import load_model, run_data
        from dualcaps.runs.run import Run

        opened = Run.open(self.trained)
        model = load_model(opened, "cpu")
        data = run_data(opened, data_dir=self.data_dir)
        facts = facts_of(opened, model, licence=self.licence)
        if opened.training.tta != "none":
            print_notes(
                [f"the accuracy of {display_path(opened.path)} was measured with test-time augmentation, not exported"]
            )
        if kind == ".onnx":
            self._write_onnx(model, data, facts)
        elif kind == ".pt2":
            from dualcaps.export.program import CAUTION, export_program

            difference = export_program(model, self.to, data.test.images[:_COMPARED_ON])
            print(f"{display_path(self.to)}: differs from the run by at most {difference:.1e}")
            print_notes([CAUTION])
        else:
            self._write_folder(opened, model, data, facts)

    def _write_onnx(self, model: "Network", data: "ImageDataset", facts: dict[str, object]) -> None:
        from dualcaps.export.onnx import accuracy_of, export_onnx

        written = export_onnx(
            model,
            self.to,
            data.test.images[:_COMPARED_ON],
            metadata=facts,
            int8=self.int8,
            calibration=data.train.images[:: max(1, len(data.train) // 200)],
        )
        for file in filter(None, (written.classifier, written.decoder)):
            print(f"{display_path(file)}: {file.stat().st_size / 1e6:.1f} MB")
        print(f"in float32 they differ from the run by at most {written.difference:.1e}")
        if self.int8:
            from dualcaps.inference import evaluate

            before, after = (
                evaluate(model, data.test).accuracy,
                accuracy_of(self.to, data.test.images, data.test.labels),
            )
            count = len(data.test)
            margin = 1.96 * math.sqrt(max(before * (1 - before), 1 / count) / count)
            print(
                f"accuracy on {count:,} test images: {100 * before:.2f} % in float32, {100 * after:.2f} % in 8 bits "
                f"(± {100 * margin:.2f})"
            )

    def _write_folder(self, opened: "Run", model: "Network", data: "ImageDataset", facts: dict[str, object]) -> None:
        from dualcaps.export.card import model_card
        from dualcaps.hub import from_pretrained, save_pretrained
        from dualcaps.inference import predict

        save_pretrained(model, self.to, card=model_card(facts), half=self.half, facts={"origin": facts})
        images = data.test.images[:_COMPARED_ON]
        difference = float(
            (predict(from_pretrained(self.to, device="cpu"), images) - predict(model, images)).abs().max()
        )
        if not self.half and difference:
            raise RunError(f"{display_path(self.to)}: differs from {display_path(opened.path)} by {difference:.1e}")
        print(f"{display_path(self.to)}: differs from the run by at most {difference:.1e}")
