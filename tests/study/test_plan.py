"""Experiments: planned in a sensible order, run once each, safe against failures and kills."""

import dataclasses
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made_records import record
from PIL import Image
from safetensors.torch import load_file

from dualcaps import ConfigError, RunError, TrainConfig, count_parameters, create_model
from dualcaps.models import describe
from dualcaps.runs import run as runs
from dualcaps.runs.run import Run
from dualcaps.study.experiments import Matched, Variant, experiments
from dualcaps.study.experiments.card import width_to_match
from dualcaps.study.plan import Failure, PlannedRun, plan_runs
from dualcaps.study.records import Epoch, read_records
from dualcaps.study.scheduler import Clock, Progress, finished_record, perform, reproduce

QUICK = TrainConfig(epochs=2, precision="float32", device="cpu")


def is_finished(run: PlannedRun, out: Path) -> bool:
    return finished_record(run, out) is not None


def test_the_most_telling_runs_come_first():
    planned, missing = plan_runs(data_sets=["digits"], seeds=3, training=QUICK)
    assert missing == []
    assert len(planned) == len(set(planned)) == len({run.folder for run in planned})
    seeds = [run.training.seed for run in planned]
    assert seeds == sorted(seeds)
    first = [run for run in planned if run.training.seed == 0]
    own = {"cnn", "capsnet", "capsnet-conv-att", "capsnet-caps-att", "da-capsnet"}
    assert {run.name.partition(" on ")[0] for run in first[:5]} == own
    assert {run.training.protocol for run in first[:5]} == {"clean"}
    assert {run.training.protocol for run in first[5:10]} == {"paper"}
    assert not {run.name.partition(" on ")[0] for run in first[10:]} & own


def test_runs_shared_by_experiments_are_run_once():
    together, _ = plan_runs(["attention", "control-routing", "control-update"], data_sets=["digits"], seeds=1)
    names = [run.name for run in together]
    # Three iterations and accumulation are what the networks have anyway.
    assert len(names) == len(set(names)) == 2 * (5 + 4 + 2)


def test_a_data_set_that_is_not_found_is_left_out_and_named():
    planned, missing = plan_runs(["table-4"], seeds=1, training=QUICK, data_sets=["svhn"])
    assert planned == []
    assert missing[0].run == "svhn"
    assert "not found" in missing[0].reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chosen": ["atention"]}, "unknown experiment 'atention': did you mean 'attention'"),
        ({"chosen": ["zzz"]}, "unknown experiment 'zzz': choose one of table-1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"protocols": ()}, "protocols: choose clean, paper or both"),
        (
            {"chosen": ["figure-14"], "data_sets": ["coil-20", "digits"]},
            "nothing to run: no chosen experiment is about digits",
        ),
    ],
)
def test_mistakes_in_a_plan_are_named(options, said: str):
    with pytest.raises(ConfigError, match=said):
        plan_runs(**options)


def test_every_experiment_can_be_built_on_the_shape_of_its_data():
    for name, experiment in experiments().items():
        assert experiment.asks
        assert experiment.printed
        for variant in experiment.networks:
            assert variant.configure((3, 32, 32), 10).name in str(variant), name


def test_the_widened_capsnet_has_the_parameters_of_da_capsnet_within_half_a_percent():
    for shape, classes in (((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 32, 32), 5), ((1, 12, 12), 3)):
        width = width_to_match("capsnet", "da-capsnet", shape, classes)
        wanted = count_parameters(create_model("da-capsnet", shape, classes))
        reached = [
            count_parameters(create_model("capsnet", shape, classes, width=w)) for w in (width - 1, width, width + 1)
        ]
        assert abs(reached[1] - wanted) == min(abs(count - wanted) for count in reached)
        assert reached[1] == pytest.approx(wanted, rel=0.005 if classes > 3 else 0.1)
        assert Matched(Variant("capsnet"), Variant("da-capsnet")).configure(shape, classes).width == width


def plan(shapes_folder: Path, networks: int = 2, **options) -> list[PlannedRun]:
    planned, _ = plan_runs(["attention"], data_sets=[str(shapes_folder)], training=QUICK, **options)
    return [run for run in planned if run.network.name in ("cnn", "capsnet", "da-capsnet")[:networks]]


def test_a_run_leaves_a_record_and_strips_of_its_reconstructions(shapes_folder: Path, tmp_path: Path):
    (run,) = [run for run in plan(shapes_folder, seeds=1, protocols=["paper"]) if run.network.name == "capsnet"]
    told = []
    perform(run, tmp_path / "out", on_epoch=told.append)
    assert is_finished(run, tmp_path / "out")
    assert [line["epoch"] for line in told] == [1, 2]
    folder = tmp_path / "out" / run.folder
    assert {file.name for file in (folder / "strips").iterdir()} == {
        *("input.png", "epoch-1.png", "epoch-2.png", "selected.png")
    }
    (record,) = read_records([tmp_path / "out"]).runs
    assert (str(record.network), str(record.data), record.protocol) == ("capsnet", "shapes", "paper")
    # The name in the record is the one that failures are noted under.
    assert run.name == "capsnet on shapes, paper, 2 epochs, seed 0"
    (folder / "strips" / "selected.png").unlink()  # as if killed just before it was drawn
    assert not is_finished(run, tmp_path / "out")
    perform(run, tmp_path / "out")
    assert is_finished(run, tmp_path / "out")


@pytest.mark.slow
def test_a_failing_run_is_recorded_and_the_others_continue(shapes_folder: Path, tmp_path: Path):
    planned = plan(shapes_folder, networks=1, seeds=2, protocols=["clean"])
    out = tmp_path / "out"
    broken = out / planned[0].folder
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where the run's folder should be")
    said: list[Progress] = []
    failures = reproduce(planned, out, jobs=2, on_progress=said.append)
    assert [failure.run for failure in failures] == [planned[0].name]
    assert [is_finished(run, out) for run in planned] == [False, True]
    assert sum(progress.ended for progress in said) == 2
    assert all(progress.seconds_left >= 0 for progress in said)
    records = read_records([out])
    assert records.failures == (tuple(failures[0]),)
    # Mended, it is run by the next call, and only it.
    broken.unlink()
    said.clear()
    assert reproduce(planned, out, on_progress=said.append) == []
    assert [progress.run for progress in said if progress.ended] == [planned[0]]
    assert read_records([out]).failures == ()
    assert reproduce(planned, out, on_progress=said.append) == []


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure_with_its_exit_code(shapes_folder: Path, tmp_path: Path, monkeypatch):
    (run,) = plan(shapes_folder, networks=1, seeds=1, protocols=["clean"])
    monkeypatch.setenv("PYTHONFAULTHANDLER", "0")
    killed = []

    def kill(progress: Progress) -> None:
        import multiprocessing

        if not progress.ended:
            for child in multiprocessing.active_children():
                child.kill()
                killed.append(child)

    failures = reproduce([run], tmp_path / "out", on_progress=kill)
    assert killed
    assert failures == [Failure(run.name, "its process ended with code -9")]


class Hours:
    """A clock that jumps by an hour, so that a budget is spent when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        monotonic = time.monotonic
        monkeypatch.setattr("dualcaps.study.scheduler.time.monotonic", lambda: monotonic() + self.passed)

    def jump(self) -> None:
        self.passed += 3600


@pytest.mark.slow
def test_a_budget_stops_runs_in_progress_and_the_next_call_resumes_them(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, hours = tmp_path / "out", Hours(monkeypatch)
    training = TrainConfig(epochs=100_000, precision="float32", device="cpu")
    planned, _ = plan_runs(["attention"], data_sets=[str(shapes_folder)], training=training, seeds=1)
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.line and len([one for one in seen if one.line]) == 3:
            hours.jump()

    # Nothing could end in time: the first is begun all the same, and stopped when the budget is spent.
    assert reproduce(planned, out, budget=30, on_progress=watch) == []
    assert not any(progress.ended for progress in seen)
    (run,) = {progress.run for progress in seen}
    kept = len(Run.open(out / run.folder).history)
    assert kept >= max(progress.line["epoch"] for progress in seen if progress.line) - 1 > 0
    seen.clear()
    last_first = [*(other for other in planned if other != run), run]
    reproduce(last_first, out, budget=30, on_progress=watch)
    assert {progress.run for progress in seen} == {run}
    assert min(progress.line["epoch"] for progress in seen if progress.line) >= kept


def test_the_clock_learns_from_epochs_and_knows_how_many_run_at_once(shapes_folder: Path):
    planned = plan(shapes_folder, seeds=2, protocols=["clean"])
    clock = Clock(planned, {}, jobs=2)
    before = clock.seconds(planned[1])
    clock.learn(planned[0], 50.0)
    assert clock.seconds(planned[0]) == pytest.approx(103.0)
    assert clock.seconds(planned[0], epochs_done=1) == pytest.approx(53.0)
    assert clock.seconds(planned[1]) != before  # what nobody has trained yet is guessed from what was
    assert clock.left({planned[0]: 0, planned[2]: 0}) == pytest.approx(103.0)  # the same network, another seed
    assert clock.left({planned[0]: 1}) == pytest.approx(53.0)  # one run cannot be shared
    assert clock.left({}) == 0


def test_the_clock_forgets_epochs_of_a_loaded_moment(shapes_folder: Path):
    planned = plan(shapes_folder, seeds=2, protocols=["clean"])
    slow = [Epoch(1, 0.5, 0.5, 0.5, 900.0, 1.0), Epoch(2, 0.5, 0.5, 0.5, 50.0, 1.0)]
    slower = [Epoch(1, 0.5, 0.5, 0.5, 700.0, 1.0), Epoch(2, 0.5, 0.5, 0.5, 800.0, 1.0)]
    same = [run for run in planned if run.network == planned[0].network]
    records = [dataclasses.replace(record("capsnet"), history=tuple(history)) for history in (slow, slower)]
    clock = Clock(planned, dict(zip(same, records, strict=True)))
    assert clock.seconds(planned[0]) == pytest.approx(103.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        *(({"budget": minutes}, "budget must be a number of minutes above 0") for minutes in (0, math.inf, math.nan)),
    ],
)
def test_limits_outside_their_range_are_refused(shapes_folder: Path, tmp_path: Path, options, said: str):
    with pytest.raises(ConfigError, match=said):
        reproduce(plan(shapes_folder, seeds=1), tmp_path, on_progress=lambda _: None, **options)


def test_two_grids_in_one_folder_are_refused(shapes_folder: Path, tmp_path: Path):
    with runs.locked(tmp_path), pytest.raises(RunError, match="another process"):
        reproduce(plan(shapes_folder, seeds=1), tmp_path, on_progress=lambda _: None)


def test_folders_of_the_same_name_are_distinguished(shapes_folder: Path, tmp_path: Path, monkeypatch):
    for place in ("x", "y"):
        shutil.copytree(shapes_folder, tmp_path / place / "pets.v1")
    options = {"seeds": 1, "protocols": ["clean"], "training": QUICK}
    first, second = (
        plan_runs(["control-gates"], data_sets=[str(tmp_path / place / "pets.v1")], **options)[0] for place in "xy"
    )
    assert {str(run.where) for run in [*first, *second]} == {"pets.v1"}
    assert not {run.folder for run in first} & {run.folder for run in second}
    monkeypatch.chdir(tmp_path / "x" / "pets.v1" / "down")
    (relative, *_), _ = plan_runs(["control-gates"], data_sets=[".."], **options)
    assert relative == first[0]
    assert ".." not in relative.folder.parts
    (other, *_), _ = plan_runs(["control-gates"], data_sets=[".."], **{**options, "training": TrainConfig(2, lr=0.1)})
    assert "lr-0.1" in str(other.folder)


def test_changed_own_images_need_a_new_run(shapes_folder: Path, tmp_path: Path):
    images = tmp_path / "images"
    shutil.copytree(shapes_folder, images)
    run, *_ = plan(images, seeds=1, protocols=["clean"])
    perform(run, tmp_path / "out")
    assert is_finished(run, tmp_path / "out")
    picture = next(images.rglob("*.png"))
    shutil.copy(picture, picture.with_name("one-more.png"))
    again, *_ = plan(images, seeds=1, protocols=["clean"])
    assert not is_finished(again, tmp_path / "out")
    assert is_finished(run, tmp_path / "out")


def test_a_network_that_cannot_be_built_for_the_images_is_left_out(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (5, 5), 40 * number).save(tmp_path / "tiny" / name / f"{number}.png")
    planned, missing = plan_runs(["attention"], data_sets=[str(tmp_path / "tiny"), "digits"], seeds=1)
    assert "digits" in {str(run.where) for run in planned}
    assert ("capsnet on tiny", True) in [(failure.run, "too small" in failure.reason) for failure in missing]


def test_a_control_named_first_does_not_push_the_networks_back():
    planned, _ = plan_runs(["control-gates", "attention"], data_sets=["digits"], seeds=1, protocols=["clean"])
    assert [describe(run.network) for run in planned][-2:] == [
        "da-capsnet, gate sigmoid",
        "da-capsnet, gate additive",
    ]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("file", ["config.json", "provenance.json", "metrics.jsonl", "result.json"])
def test_a_damaged_run_is_named_until_its_folder_is_removed(shapes_folder: Path, tmp_path: Path, file: str):
    (run,) = plan(shapes_folder, networks=1, seeds=1, protocols=["clean"])
    out = tmp_path / "out"
    perform(run, out)
    (out / run.folder / file).write_text("no json")
    assert not is_finished(run, out)
    with pytest.raises(RunError, match=f"{file}: damaged.*remove the run's folder and train again"):
        perform(run, out)
    assert read_records([out]).runs == ()
    shutil.rmtree(out / run.folder)
    perform(run, out)
    assert is_finished(run, out)


@pytest.mark.slow
def test_a_damaged_run_does_not_stop_the_others(shapes_folder: Path, tmp_path: Path):
    planned = plan(shapes_folder, networks=1, seeds=2, protocols=["clean"])
    out = tmp_path / "out"
    (out / planned[0].folder).mkdir(parents=True)
    (out / planned[0].folder / "config.json").write_text("no json")
    failures = dict(reproduce(planned, out, on_progress=lambda _: None))
    assert list(failures) == [planned[0].name]
    assert "config.json: damaged" in failures[planned[0].name]
    assert [is_finished(run, out) for run in planned] == [False, True]
    assert [record.seed for record in read_records([out]).runs] == [1]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_grid_killed_twice_ends_with_the_weights_of_one_that_was_not(shapes_folder: Path, tmp_path: Path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    command = [
        *(sys.executable, "-m", "dualcaps", "reproduce", "control-gates", "--datasets", str(shapes_folder)),
        *("--seeds", "1", "--epochs", "8", "--precision", "float32", "--protocols", "clean", "--out", str(out)),
    ]

    def epochs_kept() -> int:
        return sum(file.read_text().count("\n") for file in out.rglob("metrics.jsonl"))

    for kill in range(1, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = epochs_kept()
        while epochs_kept() < max(before + 2, 5 * kill):
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)  # the process alone, not its workers
        process.wait()
        assert list(out.rglob("checkpoint.safetensors")), "nothing was under way"
    subprocess.run(command, check=True, capture_output=True)
    training = dataclasses.replace(QUICK, epochs=8)
    options = {"data_sets": [str(shapes_folder)], "training": training, "seeds": 1, "protocols": ["clean"]}
    for run in plan_runs(["control-gates"], **options)[0]:
        perform(run, whole)
    expected, killed = (read_records([place]).runs for place in (whole, out))
    assert len(expected) == len(killed) == 3
    for one, other in zip(expected, killed, strict=True):
        assert (one.test_accuracy, one.selected_epoch) == (other.test_accuracy, other.selected_epoch)
        assert [epoch[:4] for epoch in one.history] == [epoch[:4] for epoch in other.history]
    files = sorted(whole.rglob("model.safetensors"))
    assert len(files) == 3
    for file in files:
        twin = load_file(out / file.relative_to(whole))
        for name, weights in load_file(file).items():
            assert torch.equal(weights, twin[name]), (file, name)
    assert read_records([out]).failures == ()
