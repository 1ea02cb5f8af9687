"""`dualcaps explain`: a page, or a table of scores."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from .messages import assert_one_line


def entries(file: Path) -> list[list[str]]:
    """The names of the images of each run on a page."""
    found = re.search(r'id="data">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return [[entry["name"] for entry in run["entries"]] for run in json.loads(found[1])["runs"]]


def test_a_page_shows_a_test_image_of_each_class_or_the_files_named(run_cli: Callable, run_copy: Path, shapes: Path):
    said = run_cli("explain", run_copy)
    assert said.code == 0, said.err
    assert said.out == f"{run_copy / 'explanation.html'}\n"
    (names,) = entries(run_copy / "explanation.html")
    assert [name.partition(": ")[2] for name in names] == sorted(path.name for path in shapes.iterdir())
    files = sorted(shapes.rglob("*.png"))[:2]
    said = run_cli("explain", run_copy, *files, "--compare", run_copy, "--out", "page.html")
    assert said.code == 0, said.err
    assert [len(names) for names in entries(Path("page.html"))] == [2, 2]


def test_without_the_runs_images_named_files_are_still_explained(run_cli: Callable, run_copy: Path, shapes: Path):
    config = run_copy / "config.json"
    config.write_text(config.read_text().replace(str(shapes), str(shapes) + "-moved"))
    file = next(shapes.rglob("*.png"))
    said = run_cli("explain", run_copy, file)
    assert said.code == 0, said.err
    assert "sliders reach 0.25 to both sides" in said.err
    assert_one_line(run_cli("explain", run_copy), "-moved")


def test_scores_are_a_table_or_json(run_cli: Callable, run: Path):
    said = run_cli("explain", run, "--score", "--count", 4)
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines() if " ± " in line][:2] == ["credit", "pixel-credit"]
    assert "means over 4 images" in said.out
    found = json.loads(run_cli("explain", run, "--score", "--count", 4, "--json").out)
    assert set(found["credit"]) == {"deletion", "insertion", "road", "randomised_weights"}
    assert found["random"]["deletion"]["images"] == 4


def test_mistakes_are_one_line(run_cli: Callable, run: Path, shapes: Path, tmp_path: Path):
    assert_one_line(run_cli("explain", run, "--score", "--count", 0), "--count must be at least 1")
    assert_one_line(run_cli("explain", run, "--score", "--out", "x.html"), "leave --out and --compare out")
    assert_one_line(run_cli("explain", run, "--score", shapes, shapes), "--score takes one data set")
    assert_one_line(run_cli("explain", run, tmp_path / "none.png"), "none.png")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(31):
        shutil.copy(next(shapes.rglob("*.png")), many / f"{number}.png")
    assert_one_line(run_cli("explain", run, many), "31 images are too many for a page")


def test_poses_are_drawn_and_probes_need_viewpoints(run_cli: Callable, run_copy: Path, shapes: Path):
    said = run_cli("explain", run_copy, "--poses", shapes)
    assert said.code == 0, said.err
    assert said.out == f"{run_copy / 'poses.png'}\n"
    assert (run_copy / "poses.png").read_bytes().startswith(b"\x89PNG")
    assert_one_line(run_cli("explain", run_copy, "--probe"), "no viewpoints to probe")
    assert_one_line(run_cli("explain", run_copy, "--probe", "--score"), "--score and --probe: choose one")
    assert_one_line(run_cli("explain", run_copy, "--json"), "--count and --json belong to")
    assert_one_line(run_cli("explain", run_copy, "--poses", "--compare", run_copy), "leave --compare out")
