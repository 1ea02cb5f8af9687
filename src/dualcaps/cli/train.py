"""`dualcaps train`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dualcaps.cli.display import print_notes
from dualcaps.cli.options import (
    DataOptions,
    NetworkOptions,
    PluginFiles,
    TrainingOptions,
    network_switches,
    parse_options,
)
from dualcaps.config import TrainConfig
from dualcaps.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dualcaps.training.callbacks import Callback


@dataclass(frozen=True)
class Train:
    """Train a network and keep the run in a folder."""

    data: tyro.conf.OmitArgPrefixes[DataOptions] = dataclasses.field(default_factory=DataOptions)
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "da-capsnet"
    """The network; `dualcaps models` lists them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Run folder, by default runs/<data>-<model>-seed<seed>, numbered if that exists."""
    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Go on with the run in --out, or the last of that name, where it stopped; with more --epochs a finished run is
    trained longer."""
    logger: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)"),
    ] = ()
    """Also log each epoch with tensorboard or trackio."""
    plugin: PluginFiles = ()
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = dataclasses.field(default_factory=NetworkOptions)
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE…", help_behavior_hint="")] = ()
    """Further options of the network, its trunk or its routing method; values are JSON, otherwise text."""
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = dataclasses.field(default_factory=TrainingOptions)

    def run(self) -> None:
        """Load the images, build the network, train it, print the result."""
        config = TrainConfig(**vars(self.training))
        switches = network_switches(self.network) | parse_options(self.options)

        import torch

        from dualcaps.data.load import load_data
        from dualcaps.models import create_model
        from dualcaps.training.fit import fit

        callbacks = _loggers(self.logger)
        data = load_data(**vars(self.data))
        print_notes(data.notes)
        torch.manual_seed(config.seed)
        model = create_model(self.model, data.image_shape, len(data.classes), **switches)
        result = fit(model, data, config, out=self.out, resume=self.resume, callbacks=callbacks)
        evaluated_on = "validation" if config.protocol == "clean" else "test"
        epochs = len(result.history)
        for name, value in (
            ("test accuracy", f"{100 * result.test_accuracy:.2f} % of {len(data.test):,} images"),
            ("selected", f"epoch {result.selected_epoch}, {evaluated_on} {100 * result.selection_accuracy:.2f} %"),
            ("trained", f"{epochs} epoch{'s' * (epochs > 1)}, {sum(line['seconds'] for line in result.history):.0f} s"),
            ("run", str(result.run)),
            ("pictures", ", ".join(path.name for path in sorted(result.run.glob("*.png")))),
        ):
            print(f"{name:<15}{value}")


def _loggers(names: Sequence[str]) -> "list[Callback]":
    """Callbacks by name, each text one name or several joined by commas; raises ConfigError for an unknown one."""
    from dualcaps.training.callbacks import LOGGERS

    wanted = dict.fromkeys(name.strip() for text in names for name in text.split(","))
    for name in wanted:
        if name not in LOGGERS:
            raise ConfigError(f"--logger: {unknown_name('logger', name, LOGGERS)}")
    return [LOGGERS[name]() for name in wanted]
