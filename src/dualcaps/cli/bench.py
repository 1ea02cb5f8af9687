"""`dualcaps bench`."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dualcaps.cli.display import print_json
from dualcaps.cli.options import Device, PluginFiles
from dualcaps.errors import ConfigError


@dataclass(frozen=True)
class Bench:
    """Measure how fast this machine trains and predicts, beside plain PyTorch; a minute or two."""

    model: Literal["capsnet", "da-capsnet"] = "da-capsnet"
    """The network."""
    batch_size: int = 128
    """Images per step."""
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print JSON."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Measure and print, line by line."""
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")

        from dualcaps.bench import run_short

        lines = []
        for line in run_short(self.device, model=self.model, batch_size=self.batch_size):
            lines.append(line)
            if not self.json:
                spread = (
                    "" if line.slowest == line.fastest else f"  ({line.slowest:,.0f} to {line.fastest:,.0f}, n = 5)"
                )
                number = f"{line.value:,.2f}" if line.unit == "times" else f"{line.value:,.0f}"
                print(f"{line.what:<58}{number:>9} {line.unit}{spread}", flush=True)
        if self.json:
            print_json([dataclasses.asdict(line) for line in lines])
