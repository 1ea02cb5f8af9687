"""Pictures of a report, and the strips of reconstructions that they are made of."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dualcaps.errors import RunError
from dualcaps.runs import run as runs
from dualcaps.runs.files import write_bytes
from dualcaps.study.experiments.card import CAPSNET, DA_CAPSNET, DataKey, Variant
from dualcaps.study.records import Record, Records
from dualcaps.study.report.tables import PROTOCOLS
from dualcaps.study.statistics import Cells

EARLY = DataKey("fashion-mnist")
EARLY_FIGURES = (("Fig. 8", CAPSNET), ("Fig. 9", DA_CAPSNET))


@dataclass(frozen=True)
class Picture:
    """A file of the report and what it shows."""

    name: str
    content: bytes
    caption: str


def image(picture: Picture) -> str:
    """A picture in Markdown."""
    return f"![{picture.caption}](figures/{picture.name})\n\n*{picture.caption}*"


def drawn(records: Records, table: Cells, data: DataKey, network: Variant) -> Record | None:
    """The run whose reconstructions are shown: the first seed's, of the paper's protocol if there is one."""
    for protocol in PROTOCOLS:
        if cell := table.get((data, network, protocol)):
            for record in cell.records:
                if (folder := records.strips.get(record.run)) and (folder / "selected.png").is_file():
                    return record
    return None


def drawn_alike(records: Records, table: Cells, data: DataKey) -> dict[Variant, Record]:
    """The runs of `capsnet` and `da-capsnet` whose reconstructions are shown together, which are of the same images."""
    found = {n: r for n in (CAPSNET, DA_CAPSNET) if (r := drawn(records, table, data, n))}
    first = next(iter(found.values()), None)
    return {n: r for n, r in found.items() if first and (r.protocol, r.seed) == (first.protocol, first.seed)}


def which(record: Record) -> str:
    """Which run a picture is of."""
    return f"protocol {record.protocol}, {record.epochs} epochs, seed {record.seed}"


def read_strips(files: dict[str, Path]) -> dict[str, np.ndarray]:
    """Strips of images, uint8 [height, width, 3]."""
    strips = {}
    for name, file in files.items():
        try:
            strips[name] = np.asarray(Image.open(file).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise RunError(f"{file}: cannot be read ({error}): remove the run's folder and train it again") from error
    return strips


def keep_strips(records: Records, table: Cells, out: Path) -> None:
    """Copy the reconstructions that the report shows next to the records, and drop those that one showed before."""
    shown = {r.run for data, _, _ in table for r in drawn_alike(records, table, data).values()}
    early = [drawn(records, table, EARLY, network) for _, network in EARLY_FIGURES]
    shown |= {record.run for record in early if record}
    for run in sorted(shown):
        target = out / runs.STRIPS / run
        if records.strips[run].resolve() != target.resolve():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(records.strips[run].glob("*.png")):
                write_bytes(target / file.name, file.read_bytes())
    if (out / runs.STRIPS).is_dir():
        for old in (out / runs.STRIPS).iterdir():
            if old.name not in shown and old.is_dir() and re.fullmatch(r"[0-9a-f]{12}", old.name):
                shutil.rmtree(old)
