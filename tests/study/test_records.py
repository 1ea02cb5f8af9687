"""Records from run folders and from CSV files: the same, complete, and refused where damaged."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from made_records import record
from support import skip_pictures, write_shapes

from dualcaps import RunError, TrainConfig, create_model, fit, load_data
from dualcaps.runs.run import Run
from dualcaps.study.experiments.card import data_key
from dualcaps.study.records import Copy, Records, copy_of, read_records, record_of, write_records


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two finished runs, one that is not, and a list of failures; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    grid = folder / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        skip_pictures(patch)
        data = load_data(write_shapes(folder / "shapes"))
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = create_model("da-capsnet", data.image_shape, 3, gate="sigmoid")
            config = TrainConfig(epochs=2, seed=seed, precision="float32")
            fit(model, data, config, out=grid / f"seed-{seed}", quiet=True)
    unfinished = grid / "seed-1" / "copy"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((grid / "seed-1" / "config.json").read_text())
    failures = [
        {"run": "da-capsnet, gate sigmoid on shapes, clean, 2 epochs, seed 0", "reason": "disk full"},
        {"run": "cnn on shapes, clean, 2 epochs, seed 0", "reason": "too small"},
    ]
    (grid / "failures.jsonl").write_text("".join(json.dumps(failure) + "\n" for failure in failures))
    return grid


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of these runs that may be changed."""
    return shutil.copytree(trained_once, tmp_path / "grid")


def test_a_record_tells_what_the_run_folder_holds(trained: Path):
    records = read_records([trained])
    first, second = records.runs
    result = json.loads((trained / "seed-0" / "result.json").read_text())
    metrics = [json.loads(line) for line in (trained / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert (str(first.data), str(first.network)) == ("shapes", "da-capsnet, gate sigmoid")
    assert (first.seed, second.seed) == (0, 1)
    assert first.test_accuracy == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert first.parameters == result["parameters"]
    assert first.reconstruction_error == pytest.approx(result["reconstruction_error"], abs=1e-8)
    assert first.reconstruction_error > 0
    assert [epoch.accuracy for epoch in first.history] == pytest.approx(
        [line["validation_accuracy"] for line in metrics], abs=1e-6
    )
    assert (first.training_images, first.validation_images, first.test_images) == (27, 3, 6)
    assert first.condition == second.condition
    assert first.run != second.run
    # The failure of the run that was finished since is forgotten, as is the copy of a finished run's folder.
    assert records.failures == (("cnn on shapes, clean, 2 epochs, seed 0", "too small"),)
    assert str(trained.parent) not in first.settings  # where the files lay is nobody's business


def test_csv_files_give_the_same_records(trained: Path, tmp_path: Path):
    records = read_records([trained])
    (tmp_path / "out").mkdir()
    write_records(records, tmp_path / "out")
    again = read_records([tmp_path / "out"])
    assert again.runs == records.runs
    assert again.failures == records.failures
    assert read_records([tmp_path / "out", trained]).runs == records.runs  # merged, not doubled


def test_an_unfinished_run_is_named_and_other_files_are_ignored(trained: Path):
    (trained / "seed-1" / "result.json").unlink()
    (trained / "seed-1" / "copy" / "config.json").write_text("{}")
    half_made = trained / ".seed-2.abcd"
    half_made.mkdir()
    (half_made / "config.json").write_text((trained / "seed-0" / "config.json").read_text())
    with (trained / "failures.jsonl").open("a") as file:
        file.write('{"run": "torn by a k')
    records = read_records([trained])
    assert [record.seed for record in records.runs] == [0]
    assert records.failures == (
        ("cnn on shapes, clean, 2 epochs, seed 0", "too small"),
        ("da-capsnet, gate sigmoid on shapes, clean, 2 epochs, seed 1", "not finished"),
    )


@pytest.mark.parametrize("official", [True, False, None])
def test_every_field_survives_the_way_through_csv(tmp_path: Path, official):
    members = tuple(
        record("capsnet, width 397", 'odd, "name"', seed=seed, official=official, accuracies=[1 / 3, 99.999999])
        for seed in (0, 1)
    )
    copies = {("cifar-10", ""): Copy("JPEG copy", False), ("cifar-10", "00ff"): Copy("nearly all", True)}
    write_records(Records(members, (("a, b", 'because "c"\nd'),), copies, {}), tmp_path)
    again = read_records([tmp_path])
    assert again.runs == members
    assert again.failures == (("a, b", 'because "c"\nd'),)
    assert again.copies == copies


def test_a_record_says_how_it_came_about(trained: Path):
    folder = trained / "seed-0"
    provenance = json.loads((folder / "provenance.json").read_text())
    first = provenance["sessions"][0]
    provenance["sessions"] = [{**first, "commit": "aa"}, {**first, "commit": None}, {**first, "commit": "bb"}]
    (folder / "provenance.json").write_text(json.dumps(provenance))
    found = record_of(Run.open(folder))
    assert found.commits == "aa - bb"
    assert found.commit == "bb"
    assert found.images_sha256 == provenance["data"]["source_sha256"] != found.sha256
    assert found.preparation == "12x12, 1 channel"
    assert found.compiled == "never"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    cases = (((True, True), "from epoch 1"), ((False, True), "from epoch 2"), ((True, False), "in epochs 1"))
    for compiled, words in cases:
        changed = [{**line, "compiled": flag} for line, flag in zip(lines, compiled, strict=True)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        assert record_of(Run.open(folder)).compiled == words
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "compiled"}) + "\n" for line in lines)
    )
    assert record_of(Run.open(folder)).compiled == ""


def test_records_of_before_lack_what_was_not_recorded(tmp_path: Path):
    write_records(Records((record(),), (), {}, {}), tmp_path)
    file = tmp_path / "runs.csv"
    with file.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    columns = [name for name in lines[0] if name not in ("images_sha256", "preparation", "compiled", "commits")]
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    assert read_records([tmp_path]).runs == (record(),)


def test_runs_on_other_copies_of_a_data_set_are_not_averaged():
    copies = [
        dataclasses.replace(record("capsnet", "cifar-10", seed=seed, official=False), images_sha256=images)
        for seed, images in ((0, ""), (1, "00ff"), (2, "11ff"))
    ]
    assert len({one.condition for one in copies}) == 3
    official = [dataclasses.replace(one, official=True) for one in copies]
    assert len({one.condition for one in official}) == 1
    known = {("cifar-10", ""): Copy("JPEG copy", False), ("cifar-10", "00ff"): Copy("nearly all", True)}
    assert [copy_of(one, known) for one in copies] == [known["cifar-10", key] for key in ("", "00ff", "")]


def test_damaged_records_are_refused_with_the_file_named(tmp_path: Path):
    with pytest.raises(RunError, match="no such folder"):
        read_records([tmp_path / "nowhere"])
    write_records(Records((record(),), (), {}, {}), tmp_path)
    whole = {name: (tmp_path / name).read_text() for name in ("runs.csv", "epochs.csv")}
    for name, old, new, said in (
        ("runs.csv", "protocol,", "", "no column protocol"),
        ("runs.csv", ",2,", ",two,", r"runs\.csv: damaged"),
        ("epochs.csv", "0.9", "high", r"epochs\.csv: damaged"),
        ("epochs.csv", "0.9", "nan", "a number that is not finite"),
        ("epochs.csv", "1,0.1", "2,0.1", "1 of 1 epochs"),
        ("runs.csv", ",paper,", ",papyrus,", "unknown protocol"),
        ("runs.csv", ",yes,", ",maybe,", "damaged"),
        ("runs.csv", "training", "straining", "damaged"),
        ("runs.csv", "{", "<", "damaged"),
        ("runs.csv", "abc", "abc,more", "different lengths"),
    ):
        (tmp_path / name).write_text(whole[name].replace(old, new, 1))
        with pytest.raises(RunError, match=said):
            read_records([tmp_path])
        (tmp_path / name).write_text(whole[name])
    (tmp_path / "runs.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"runs\.csv"):
        read_records([tmp_path])


def test_own_images_are_taken_for_no_data_set_and_not_for_others_of_their_name(tmp_path: Path):
    assert str(data_key(str(tmp_path / "mnist"), None, "1234")) == "mnist (own)"
    assert str(data_key(str(tmp_path / "pets.v1"), None, "1234")) == "pets.v1"
    assert str(data_key(str(tmp_path / "pets.npz"), None, "1234")) == "pets"
    pets = [record(data="pets", place=place) for place in ("11111111", "22222222")]
    for folder in ("records", "again"):
        (tmp_path / folder).mkdir()
    write_records(Records((*pets, record(data="birds", place="33333333")), (), {}, {}), tmp_path / "records")
    again = read_records([tmp_path / "records"])
    assert [again.labels[run.data] for run in again.runs] == ["birds", "pets [11111111]", "pets [22222222]"]
    write_records(again, tmp_path / "again")
    assert read_records([tmp_path / "again"]).runs == again.runs


def test_the_reason_of_a_failure_takes_precedence_over_not_finished(trained: Path):
    (trained / "seed-1" / "result.json").unlink()
    name = "da-capsnet, gate sigmoid on shapes, clean, 2 epochs, seed 1"
    with (trained / "failures.jsonl").open("a") as file:
        file.write(json.dumps({"run": name, "reason": "No space left on device"}) + "\n")
    assert dict(read_records([trained]).failures)[name] == "No space left on device"


@pytest.mark.parametrize(
    ("file", "content", "name", "reason"),
    [
        ("result.json", '{"selected_epoch": 1, "test_accuracy": 0.5, "precision": "x"}', "", "seed-0: damaged"),
        ("result.json", '{"selected_epoch"', "", "seed-0/result.json: damaged"),
        ("metrics.jsonl", "no lines", "", "seed-0/metrics.jsonl: damaged"),
        ("metrics.jsonl", None, "", "seed-0: incomplete run folder (metrics.jsonl is missing)"),
        ("provenance.json", "[]", "", "seed-0/provenance.json: damaged"),
        ("config.json", "{", "seed-0", "seed-0/config.json: damaged"),
        ("config.json", None, "seed-0", "seed-0: incomplete run folder (config.json is missing)"),
    ],
)
def test_a_damaged_run_is_named_and_does_not_affect_others(trained: Path, file: str, content: str | None, name, reason):
    (trained / "seed-0" / file).unlink()
    if content is not None:
        (trained / "seed-0" / file).write_text(content)
    records = read_records([trained])
    assert [record.seed for record in records.runs] == [1]
    name = name or "da-capsnet, gate sigmoid on shapes, clean, 2 epochs, seed 0"
    assert dict(records.failures)[name].startswith(reason)
    assert dict(records.failures)[name].endswith(": remove the run's folder and train again")


def test_damaged_lines_of_the_list_of_failures_are_reported(trained: Path):
    with (trained / "failures.jsonl").open("a") as file:
        file.write('not json\n[]\n{"run": "capsnet on shapes", "reason": "odd"}\n')
    failures = dict(read_records([trained]).failures)
    assert failures["capsnet on shapes"] == "odd"
    assert failures["cnn on shapes, clean, 2 epochs, seed 0"] == "too small"
    assert failures["failures.jsonl"] == "damaged: what failed cannot be read in 2 of its lines"
