"""`dualcaps report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dualcaps.cli.display import print_left_out
from dualcaps.cli.options import PluginFiles
from dualcaps.errors import display_path


@dataclass(frozen=True)
class Report:
    """Write the results of runs, beside the paper's numbers where it has them: a page, Markdown, CSV."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUNS…]")] = (
        Path("runs/reproduce"),
    )
    """Run folders, folders of them, or folders that a report was written into before."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("report")
    """Folder to write into."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Write and print the page's file name."""
        from dualcaps.study.report import write_report

        page, left_out = write_report(self.runs, self.out)
        print_left_out(left_out)
        print(display_path(page))
