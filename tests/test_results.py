"""The committed results are what the committed records give."""

import re
from pathlib import Path

from dualcaps.report import write_report

PAPER = Path(__file__).parents[1] / "results" / "paper"


def test_the_committed_report_is_made_of_the_committed_records(tmp_path: Path):
    write_report([PAPER], tmp_path / "again")
    for name in ("RESULTS.md", "findings.csv", "runs.csv", "epochs.csv", "failures.csv", "copies.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (PAPER / name).read_bytes(), f"{name}: run make results"
    # Another matplotlib draws the same figures with other bytes.
    pages = [re.sub(r'base64,[^"]*', "", (f / "index.html").read_text()) for f in (tmp_path / "again", PAPER)]
    assert pages[0] == pages[1]
    figures = [{file.name for file in (f / "figures").iterdir()} for f in (tmp_path / "again", PAPER)]
    assert figures[0] == figures[1]


def test_the_committed_results_are_small_enough_to_keep():
    assert sum(file.stat().st_size for file in PAPER.rglob("*") if file.is_file()) < 15e6
