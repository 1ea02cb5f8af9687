"""The report as its readers find it: complete, self-contained, the same each time."""

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_records import record
from PIL import Image

from dualcaps import RunError
from dualcaps.study import paper
from dualcaps.study.records import Records, write_records
from dualcaps.study.report import write_report
from dualcaps.study.report.tables import points
from dualcaps.study.statistics import Interval

VOID = ("meta", "link", "img", "br")
FOUR = ("capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet")


def write_folder(folder: Path, members, copies: str = "", failures=()) -> Path:
    """A folder of records with reconstructions of all capsule networks."""
    folder.mkdir(parents=True)
    write_records(Records(tuple(members), tuple(failures), {}, {}), folder)
    if copies:
        (folder / "copies.csv").write_text(f"data,copy,same_pixels\n{copies}\n")
    for member in members:
        if str(member.network) != "cnn":
            strips = folder / "strips" / member.run
            strips.mkdir(parents=True)
            for name in ("input", "selected", *(f"epoch-{number}" for number in range(1, 8))):
                pixels = np.random.default_rng(len(name)).integers(0, 255, (28, 280), np.uint8)
                Image.fromarray(pixels).save(strips / f"{name}.png")
    return folder


def grid(data: str, protocol: str, **options):
    return [
        record(network, data, protocol, seed, [80 + seed + 2 * place, 90 + seed + place], **options)
        for place, network in enumerate(("cnn", *FOUR, "capsnet, width 300", "da-capsnet, iterations 1"))
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def reported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of four grids, not to be changed."""
    folder = tmp_path_factory.mktemp("reported")
    members = [
        *grid("fashion-mnist", "paper", epochs=100),
        *grid("fashion-mnist", "clean", epochs=100),
        *grid("cifar-10", "paper", official=False),
        *grid("mnist", "paper", epochs=12),
    ]
    failures = [("svhn", "svhn: files not found <anywhere>")]
    records = write_folder(folder / "records", members, "cifar-10,JPEG copy,no", failures)
    write_report([records], folder / "report")
    return folder / "report"


@pytest.fixture
def reported(reported_once: Path, tmp_path: Path) -> Path:
    """A copy of that report that may be changed."""
    return shutil.copytree(reported_once, tmp_path / "report")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(reported: Path):
    text = (reported / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    sources = [a.get("src") or a.get("href") for tag, a in page.tags if tag in ("img", "script", "link", "a")]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {source[1:] for source in sources if source.startswith("#")} == anchors
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert "&lt;anywhere&gt;" in text


def test_every_printed_number_has_a_verdict_and_every_section_something_to_say(reported: Path):
    text = (reported / "RESULTS.md").read_text()
    for title in (
        *("Accuracy", "Does dual attention help?", "The rule", "Table 1", "Table 2", "Table 4", "Fig. 10"),
        *(
            *("Conclusions", "Figs. 8 and 9", "Figs. 11 to 13", "Fig. 14"),
            "Controls",
            "What selecting on the test set is worth",
            "Accuracy, size and time",
        ),
        *("Data, machines, failures", "Decisions where the paper is silent", "Contradictions in print"),
    ):
        assert re.search(rf"^## .*{re.escape(title)}", text, re.MULTILINE), title
    with (reported / "findings.csv").open() as file:
        findings = list(csv.DictReader(file))
    assert len(findings) == len(paper.PRINTED)
    verdicts = {"exceeds", "direction only", "inconclusive", "not run"}
    assert {line["verdict"] for line in findings} == verdicts
    assert all(line["files"] == "JPEG copy" for line in findings if line["data"] == "cifar-10")
    accuracies = {(line["data"], line["network"]): line for line in findings if line["quantity"] == "accuracy"}
    assert accuracies["fashion-mnist", "da-capsnet"]["ours"] == "95"
    assert accuracies["fashion-mnist", "da-capsnet"]["std"] == "1"
    assert accuracies["svhn", "capsnet"]["verdict"] == "not run"
    assert accuracies["cifar-10", "da-capsnet"]["reason"] == "not the official images"
    assert "| fashion-mnist | da-capsnet | 93.98 | 95.00 ± 1.00 (n = 3) | 95.00 ± 1.00 (n = 3) |" in text
    assert "Fig. 13 (svhn): not run." in text
    assert "cifar-10, JPEG copy" in text


def test_gains_are_in_bold_only_where_the_interval_leaves_zero_out(tmp_path: Path):
    members = [
        record(network, "fashion-mnist", "clean", seed, [base + seed])
        for network, base in (("capsnet", 80), ("da-capsnet", 82))
        for seed in range(3)
    ]
    members += [record("capsnet-conv-att", "fashion-mnist", "clean", seed, [a]) for seed, a in enumerate((70, 90, 84))]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "**+2.00 (all alike, n = 3)**" in text
    assert re.search(r"\| \+0\.33 \(−\d", text)


def test_a_report_made_from_a_report_is_the_same_to_the_byte(reported: Path, tmp_path: Path):
    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    before = files(reported)
    assert {"index.html", "RESULTS.md", "findings.csv", "runs.csv", "epochs.csv", "copies.csv"} < set(before)
    write_report([reported], tmp_path / "again")
    assert files(tmp_path / "again") == before
    write_report([reported], reported)
    assert files(reported) == before


def test_only_what_is_shown_of_the_reconstructions_is_kept(reported: Path):
    kept = {folder.name for folder in (reported / "strips").iterdir()}
    assert kept == {
        record(network, data, "paper", 0, [0.0], epochs=epochs).run
        for network in ("capsnet", "da-capsnet")
        for data, epochs in (("fashion-mnist", 100), ("cifar-10", 2), ("mnist", 12))
    }


def test_files_that_are_not_of_a_report_are_preserved(reported: Path, tmp_path: Path):
    for folder, name in (("figures", "my-photo.png"), ("strips", "notes.txt"), ("strips/mine", "a.txt")):
        (reported / folder).mkdir(exist_ok=True)
        (reported / folder / name).write_text("mine")
    (reported / "figures" / "curves-of-old.svg").write_text("left by a former report")
    write_report([reported], reported)
    assert (reported / "figures" / "my-photo.png").read_text() == "mine"
    assert (reported / "strips" / "notes.txt").exists()
    assert (reported / "strips" / "mine" / "a.txt").exists()
    assert not (reported / "figures" / "curves-of-old.svg").exists()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "index.html").write_text("mine")
    with pytest.raises(RunError, match="holds something else than a report"):
        write_report([reported], tmp_path / "project")
    assert (tmp_path / "project" / "index.html").read_text() == "mine"


def test_names_of_own_data_stay_what_they_are(tmp_path: Path):
    names = [
        "猫",
        "犬",
        "R&amp;D",
        "my data",
        "my-data",
        "a](http://evil.example/x.png)",
        "un]balanced",
        "**b**",
        "<i>x",
        "a|b",
    ]
    members = [
        record(network, name, seed=0, accuracies=[50, 60 + number])
        for number, name in enumerate(names)
        for network in ("capsnet", "da-capsnet")
    ]
    out = tmp_path / "out"
    text = write_report([write_folder(tmp_path / "records", members)], out).page.read_text()
    page = Page()
    page.feed(text)
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(sources) == len(list((out / "figures").iterdir())) == 2 * len(names)  # curves and reconstructions
    assert len({source for source in sources if source.startswith("data:image/svg")}) == len(names)
    assert all(source.startswith("data:image/") for source in sources)
    shown = "".join(page.text)
    for name in names:
        assert f"{name}, accuracy on the test set" in shown, name


def test_all_controls_for_the_parameters_stand_beside_the_gain(tmp_path: Path):
    members = [
        record(network, protocol="clean", seed=seed, accuracies=[accuracy + seed], parameters=parameters)
        for network, accuracy, parameters in (
            ("capsnet", 80, 100),
            ("da-capsnet", 90, 1000),
            ("capsnet, width 32", 50, 30),
            ("capsnet, width 397", 89, 1003),
            ("da-capsnet, gate additive", 88, 1000),
            ("da-capsnet, caps_attention shared", 85, 102),
        )
        for seed in range(3)
    ]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    line = next(
        li for li in (tmp_path / "out" / "RESULTS.md").read_text().splitlines() if li.startswith("|") and "+10.00" in li
    )
    gains = ("+10.00", "+1.00", "+2.00", "+5.00")
    assert line.endswith("".join(f" **{gain} (all alike, n = 3)** |" for gain in gains))


def test_runs_that_never_left_chance_are_named(tmp_path: Path):
    members = [
        record("cnn", seed=0, accuracies=[10.0, 11.9, 10.0]),
        record("cnn", seed=1, accuracies=[10.0, 60.0, 10.0]),
        record("cnn", seed=2, accuracies=[10.0, 12.1, 10.0]),
    ]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "chance count like all others: cnn on fashion-mnist, paper, 3 epochs, seed 0 (11.90 %).\n" in text


def test_a_zero_difference_has_no_minus_sign(tmp_path: Path):
    members = [record("capsnet", protocol="clean", seed=seed, accuracies=[80.004]) for seed in range(3)]
    members += [record("da-capsnet", protocol="clean", seed=seed, accuracies=[80.0 + seed * 2e-3]) for seed in range(3)]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "+0.00 (−0.01 to +0.00, n = 3)" in text  # a bound's sign tells on which side of zero it is


def test_a_control_is_compared_with_runs_of_the_same_seeds(tmp_path: Path):
    members = [record("capsnet", protocol="clean", seed=seed, accuracies=[80 + seed]) for seed in range(5)]
    rounded = 1e-4  # as records round accuracies of few images
    members += [
        record("capsnet, iterations 1", protocol="clean", seed=seed, accuracies=[85 + seed + rounded * (seed == 2)])
        for seed in (1, 2)
    ]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "| 86.50 ± 0.71 (n = 2) | capsnet 81.50 ± 0.71 (n = 2) | +5.00 (all alike, n = 2) |" in text


def test_copies_csv_of_the_output_folder_is_used(tmp_path: Path):
    members = [record(data="svhn", seed=seed, official=seed == 0, epochs=1 + seed) for seed in (0, 1)]
    out = tmp_path / "out"
    out.mkdir()
    (out / "copies.csv").write_text("data,copy,same_pixels\nsvhn,copy from a mirror,no\n")
    write_report([write_folder(tmp_path / "records", members)], out)
    assert "svhn, official files and copy from a mirror" in (out / "RESULTS.md").read_text()
    assert "copy from a mirror" in (out / "copies.csv").read_text()


def test_reconstructions_side_by_side_are_of_the_same_images(tmp_path: Path):
    members = [
        *(record("capsnet", data) for data in ("mnist", "fashion-mnist", "svhn")),
        *(record("da-capsnet", data, seed=seed) for data, seed in (("mnist", 1), ("fashion-mnist", 1), ("svhn", 0))),
    ]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    figures = tmp_path / "out" / "figures"
    heights = []
    for data in ("mnist", "fashion-mnist", "svhn"):
        with Image.open(figures / f"reconstructions-{data}.png") as picture:
            heights.append(picture.height)
    assert heights[2] > 1.3 * heights[1] == 1.3 * heights[0]  # three rows, and two: the images and capsnet's
    kept = {folder.name for folder in (tmp_path / "out" / "strips").iterdir()}
    # Fig. 9 shows da-capsnet on Fashion-MNIST alone, with whatever seed it has.
    assert kept == {
        member.run for member in members if (str(member.network), str(member.data)) != ("da-capsnet", "mnist")
    }


def test_protocols_are_compared_under_one_condition_only(tmp_path: Path):
    members = [record(protocol="paper", seed=seed, lr=0.1) for seed in range(3)]
    members += [record(protocol="clean", seed=seed) for seed in range(3)]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    assert "What selecting on the test set is worth" not in (tmp_path / "out" / "RESULTS.md").read_text()


def test_a_report_on_own_images_has_no_section_of_the_paper_and_none_without_content(tmp_path: Path):
    members = [
        record(network, "pets", "clean", seed, [70 + seed], place="1111") for network in FOUR for seed in range(3)
    ]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("Accuracy", "Does dual attention help?", "Epochs to thresholds", "Accuracy against epoch"),
        *("Reconstructions", "Accuracy, size and time", "Data, machines, failures"),
    ]
    assert "Fig" not in text.replace("figures/", "")
    assert "printed" not in text
    assert not (tmp_path / "out" / "findings.csv").exists()
    page = Page()
    page.feed((tmp_path / "out" / "index.html").read_text())
    assert page.open == []


def test_reconstructions_are_compared_in_grey_levels_where_their_error_is_known(tmp_path: Path):
    errors = {"capsnet": 0.04, "capsnet-conv-att": None, "da-capsnet": 0.01}
    members = [record(network, seed=seed, error=error) for network, error in errors.items() for seed in range(3)]
    members += [record("cnn", seed=seed, error=None) for seed in range(3)]
    write_report([write_folder(tmp_path / "records", members)], tmp_path / "out")
    (line,) = [li for li in (tmp_path / "out" / "RESULTS.md").read_text().splitlines() if "51.00 ±" in li]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [
        *("51.00 ± 0.00 (n = 3)", "not run", "not run", "25.50 ± 0.00 (n = 3)"),
        "**−25.50 (all alike, n = 3)**",
    ]


def test_nothing_to_report_is_said(tmp_path: Path):
    with pytest.raises(RunError, match="no finished run: train"):
        write_report([tmp_path], tmp_path / "out")
    (tmp_path / "failures.jsonl").write_text('{"run": "cnn on shapes", "reason": "too small"}\n')
    with pytest.raises(RunError, match=r"no finished run \(cnn on shapes: too small\): train"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_into_a_file_is_refused(reported: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is a file: choose a folder"):
        write_report([reported], tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_own_images_have_a_report_of_their_own(tmp_path: Path):
    members = [record(network, "pets", seed=seed, accuracies=[70.0]) for network in FOUR[:2] for seed in (0, 1)]
    folder = write_folder(tmp_path / "records", members, failures=[("svhn", "not found")])
    written = write_report([folder], tmp_path / "out")
    assert written.left_out == (("svhn", "not found"),)
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert text.startswith("# Networks compared\n")
    assert "<title>Networks compared</title>" in written.page.read_text()
    first_table = next(part for part in text.split("\n\n") if part.startswith("|"))
    assert first_table.splitlines()[0] == "| data | protocol | epochs | capsnet | capsnet-conv-att |"
    assert first_table.splitlines()[2] == "| pets | paper | 1 | 70.00 ± 0.00 (n = 2) | 70.00 ± 0.00 (n = 2) |"


def test_a_damaged_picture_is_named(reported: Path, tmp_path: Path):
    for picture in (reported / "strips").rglob("input.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"input\.png: cannot be read"):
        write_report([reported], tmp_path / "again")


def test_an_interval_wider_than_the_scale_is_left_out():
    assert points(Interval(3.0, -60.0, 66.0, 2)) == "+3.00 (n too small, n = 2)"
    assert points(Interval(3.0, -40.0, 46.0, 3)) == "+3.00 (−40.00 to +46.00, n = 3)"


def test_the_page_tells_each_number_by_its_column_and_folds_what_is_long(reported: Path):
    page = Page()
    page.feed((reported / "index.html").read_text())
    labels = [attributes.get("data-label") for tag, attributes in page.tags if tag == "td"]
    assert all(label is not None for label in labels)
    assert {"verdict", "ours, paper", "p, equal"} <= {*labels}
    assert [tag for tag, _ in page.tags].count("details") == 5
    text = "".join(page.text)
    assert text.index("Conclusions") < text.index("Table 1") < text.index("Figs. 8 and 9") < text.index("Fig. 10")
    assert text.index("Fig. 10") < text.index("Figs. 11 to 13") < text.index("Fig. 14")


def test_conclusions_name_the_numbers_with_a_verdict(reported: Path):
    text = (reported / "RESULTS.md").read_text()
    conclusions = text[text.index("## Conclusions") : text.index("## Accuracy")]
    with (reported / "findings.csv").open() as file:
        verdicts = [line["verdict"] for line in csv.DictReader(file)]
    for verdict in ("exceeds", "direction only"):
        assert conclusions.count(f"**{verdict}**") == verdicts.count(verdict) > 0
    assert f"{verdicts.count('inconclusive')} numbers are inconclusive" in conclusions
    assert "discussion" not in conclusions  # there is none beside this report
