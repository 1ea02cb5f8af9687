"""The committed results are what the committed records give."""

import re
from pathlib import Path

import pytest

from dualcaps.study.report import write_report

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("folder", ["paper", "full-length", "digits-200"])
def test_the_committed_report_is_made_of_the_committed_records(folder: str, tmp_path: Path):
    committed, again = RESULTS / folder, tmp_path / "results" / folder
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "replication.md").touch()  # which the page links to where it is there
    write_report([committed], again)
    assert {f.name for f in committed.glob("*.csv")} == {f.name for f in again.glob("*.csv")}
    for file in (*committed.glob("*.csv"), committed / "RESULTS.md"):
        assert (again / file.name).read_bytes() == file.read_bytes(), f"{file}: run make results"
    # Another matplotlib draws the same figures with other bytes.
    pages = [re.sub(r'base64,[^"]*', "", (f / "index.html").read_text()) for f in (again, committed)]
    assert pages[0] == pages[1]
    figures = [{file.name for file in (f / "figures").iterdir()} for f in (again, committed)]
    assert figures[0] == figures[1]


def test_the_committed_results_are_small_enough_to_keep():
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if file.parts[len(RESULTS.parts)] != "models") < 15e6
