"""`dualcaps demo`."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dualcaps.cli.display import print_notes
from dualcaps.cli.explain import load_subject
from dualcaps.cli.options import DataDir, Device, PluginFiles, check_port
from dualcaps.errors import display_path

_RUNS = Path("runs")
_EPOCHS = 40  # of the run on digits that is trained where there is none


@dataclass(frozen=True)
class Demo:
    """Serve a page on which to draw, upload or choose an image and see what the capsules see in it."""

    trained: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")] = None
    """A run folder; by default the one in runs/ that was finished last, or a run on digits that is trained first."""
    compare: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Another run to show beside it."""
    host: str = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is reachable from this machine only, 0.0.0.0 from all that can reach it."""
    port: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the first free one from 7860)")] = None
    """The port to listen on."""
    data_dir: DataDir = None
    device: Device = "auto"
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Serve the page until interrupted."""
        if self.port is not None:
            check_port(self.port)

        from dualcaps.runs.run import Run
        from dualcaps.serve.demo import build_demo, launch, require_gradio

        require_gradio()
        first = Run.open(self.trained or last_finished(_RUNS) or _train_digits(self.device))
        runs = [first] if self.compare is None else [first, Run.open(self.compare)]
        loaded = [
            load_subject(opened, device=self.device, data_dir=self.data_dir, images_needed=False) for opened in runs
        ]
        demo = build_demo([subject for subject, _ in loaded], loaded[0][1])
        address = launch(demo, self.host, self.port)
        print(
            f"{', '.join(display_path(opened.path) for opened in runs)}: {address} (Ctrl-C ends the demo)", flush=True
        )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            demo.close(verbose=False)


def last_finished(runs: Path) -> Path | None:
    """The run in a folder that was finished last."""
    results = sorted(runs.glob("*/result.json"), key=lambda file: file.stat().st_mtime)
    return results[-1].parent if results else None


def _train_digits(device: str) -> Path:
    """Train `da-capsnet` on the digits that come with scikit-learn, and return the run folder."""
    import torch

    from dualcaps.config import TrainConfig
    from dualcaps.data.load import load_data
    from dualcaps.models import create_model
    from dualcaps.training.fit import default_path, fit

    print_notes([f"no finished run in {_RUNS}/: da-capsnet is trained on digits first, {_EPOCHS} epochs"])
    config = TrainConfig(epochs=_EPOCHS, device=device)
    data = load_data("digits")
    torch.manual_seed(config.seed)
    model = create_model("da-capsnet", data.image_shape, len(data.classes))
    path = default_path("digits", "da-capsnet", config.seed, resume=True)
    return fit(model, data, config, out=path, resume=True).run
