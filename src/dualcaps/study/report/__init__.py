"""What the runs show, beside what the paper printed: Markdown, one HTML page without links to the outside, CSV.

`write_report` makes everything from `Records`, so that committed records give the same files again.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dualcaps.errors import RunError
from dualcaps.runs.files import write_bytes, write_csv, write_text
from dualcaps.study import paper
from dualcaps.study.records import COPIES, RUNS, Records, read_copies, read_records, write_records
from dualcaps.study.report.figures import keep_strips
from dualcaps.study.report.page import make_page
from dualcaps.study.report.sections import FOLDED, compares_with_paper, compose
from dualcaps.study.report.tables import files_of
from dualcaps.study.statistics import cells
from dualcaps.study.verdicts import Finding, PValues, judge

FINDINGS = "findings.csv"
_DISCUSSION = "../../docs/replication.md"


class Written(NamedTuple):
    """A report.

    page: the file to open.
    left_out: runs and data sets that are not in it, and why.
    """

    page: Path
    left_out: tuple[tuple[str, str], ...]


def write_report(sources: Sequence[str | Path], out: str | Path) -> Written:
    """Write the report on some runs.

    Into `out` go `index.html`, which holds everything; `RESULTS.md` with `figures/`; `findings.csv`, a
    line for each number that the paper prints, if any was run; and the records themselves (`runs.csv`, `epochs.csv`,
    `failures.csv`, `copies.csv`, `strips/`), from which the same report can be made again.

    Args:
        sources: run folders, folders of them, or folders of records. What `out/copies.csv` says of the
            data sets' files counts too.
        out: where to write: a new or empty folder, or one of a former report or of records, which is
            replaced.

    Returns:
        The page, `out/index.html`, and what was left out of it: what failed, is not finished or damaged.

    Raises:
        RunError: no finished run, damaged records or pictures, or `out` holds something else.
        OSError: something cannot be written.
    """
    records, out = read_records(sources), Path(out)
    if not records.runs:
        found = "".join(f" ({name}: {reason})" for name, reason in records.failures[:1])
        where = ", ".join(map(str, sources))
        raise RunError(f"{where}: no finished run{found}: train with dualcaps reproduce or train first")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file: choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_file() for name in (FINDINGS, RUNS, COPIES)):
        raise RunError(f"{out}: holds something else than a report: choose a new folder with --out")
    records = dataclasses.replace(records, copies=read_copies(out) | {**records.copies})
    table = cells(records)
    findings = judge(paper.PRINTED, table, records.copies)
    text, pictures = compose(records, table, findings, _discussion(out))
    page = make_page(text, pictures, FOLDED)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    keep_strips(records, table, out)
    write_records(records, out)
    for picture in pictures:
        write_bytes(out / "figures" / picture.name, picture.content)
    made = {picture.name for picture in pictures}
    for old in (out / "figures").iterdir():
        if old.name not in made and re.fullmatch(r"(curves|fig|reconstructions)-.*\.(svg|png)", old.name):
            old.unlink()
    if compares_with_paper(findings):
        _write_findings(out / FINDINGS, findings, records)
    else:
        (out / FINDINGS).unlink(missing_ok=True)  # of a report before
    write_text(out / "RESULTS.md", text)
    write_text(out / "index.html", page)
    return Written(out / "index.html", records.failures)


def _discussion(out: Path) -> str | None:
    """The address of docs/replication.md for a report in results/ of the repository."""
    known = out.resolve().parent.parent / "docs" / "replication.md"
    return _DISCUSSION if known.is_file() else None


def _write_findings(file: Path, findings: Sequence[Finding], records: Records) -> None:
    """A line for each printed number."""
    columns = [
        *("where", "data", "files", "network", "quantity", "baseline", "printed", "protocol", "epochs", "n"),
        *("ours", "std", "difference", "low", "high", "verdict", "reason"),
        *(f"p_{test}{kind}" for kind in ("", "_adjusted") for test in PValues._fields),
    ]
    lines = []
    for finding in findings:
        printed, less = finding.printed, finding.difference
        numbers = [None] * 6
        if finding.ours is not None and less is not None:
            bounds = [None if math.isinf(bound) else bound for bound in less[:3]]
            numbers = [finding.ours.n, finding.ours.mean, finding.std, *bounds]
        files = files_of(printed.data, records)
        lines.append(
            [
                *(printed.where, str(printed.data), files, str(printed.network), printed.quantity),
                str(printed.baseline or ""),
                *(str(printed.value), finding.protocol, str(finding.epochs or "")),
                *("" if number is None else f"{number:.4f}".rstrip("0").rstrip(".") for number in numbers),
                *(finding.verdict, finding.reason),
                *(
                    "" if value is None else f"{value:.3g}"
                    for values in (finding.raw, finding.adjusted)
                    for value in values or [None] * len(PValues._fields)
                ),
            ]
        )
    write_csv(file, columns, lines)
