"""The run folder: nothing half written, nothing half read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualcaps import DataConfig, ModelConfig, RunError, TrainConfig
from dualcaps.runs import run as runs
from dualcaps.runs.run import Run

CLASSES = ("a", "b")
MODEL = ModelConfig("capsnet", (1, 12, 12), 2)


def make_run(path: Path) -> Run:
    provenance = {"data": {"sha256": "0"}, "sessions": []}
    runs.create_run(path, MODEL, TrainConfig(epochs=3), DataConfig("x"), CLASSES, provenance)
    return Run.open(path)


def test_a_run_folder_is_created_once_and_read_back(tmp_path: Path):
    run = make_run(tmp_path / "deep" / "runs" / "a")
    assert (run.model, run.training, run.data) == (MODEL, TrainConfig(epochs=3), DataConfig("x"))
    assert run.classes == CLASSES
    assert run.provenance == {"data": {"sha256": "0"}, "sessions": []}
    assert (run.history, run.result, run.finished) == ([], None, False)
    runs.add_session(run.path, {"device": "cpu"})
    assert Run.open(run.path).provenance["sessions"] == [{"device": "cpu"}]
    with pytest.raises(RunError, match="exists already"):
        make_run(run.path)


def test_a_full_disk_leaves_no_half_made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(file: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        make_run(tmp_path / "new" / "c")
    assert not (tmp_path / "new").exists()


def test_names_are_numbered_and_the_last_is_found(tmp_path: Path):
    assert runs.latest_run_path("a", tmp_path) == tmp_path / "a"
    for expected in ("a", "a-2", "a-3"):
        path = runs.free_run_path("a", tmp_path)
        assert path == tmp_path / expected
        path.mkdir()
        assert runs.latest_run_path("a", tmp_path) == path


def test_a_checkpoint_comes_back(tmp_path: Path):
    assert runs.read_checkpoint(tmp_path) is None
    history = [{"epoch": 1, "loss": 0.1}]
    runs.write_checkpoint(tmp_path, runs.Checkpoint(history, {"a": torch.arange(4.0).view(2, 2)}))
    checkpoint = runs.read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.history == history
    assert torch.equal(checkpoint.tensors["a"], torch.tensor([[0.0, 1], [2, 3]]))
    for damaged in (b"", b"nonsense", (tmp_path / runs.CHECKPOINT).read_bytes()[:-1]):
        (tmp_path / runs.CHECKPOINT).write_bytes(damaged)
        with pytest.raises(RunError, match=r"checkpoint\.safetensors: damaged"):
            runs.read_checkpoint(tmp_path)


def test_metrics_and_weights_come_back_or_are_named(tmp_path: Path):
    runs.write_metrics(tmp_path, [{"epoch": 1}, {"epoch": 2}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert runs.read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    (tmp_path / "metrics.jsonl").write_text('{"epo')
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged"):
        runs.read_metrics(tmp_path)
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        runs.read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        runs.read_weights(tmp_path)


def test_folders_that_are_no_run_of_this_version_are_named(tmp_path: Path):
    with pytest.raises(RunError, match="no such run folder"):
        Run.open(tmp_path / "a")
    with pytest.raises(RunError, match=r"incomplete run folder \(config\.json is missing\)"):
        Run.open(tmp_path)
    for content, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 99}', "run format"),
        ("{}", "run format"),
        ('{"format": 1, "model": null}', "'model' is missing"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match=message):
            Run.open(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(tmp_path)


def test_damaged_files_of_a_run_are_named(tmp_path: Path):
    run = make_run(tmp_path / "run")
    result = {"selected_epoch": 2, "test_accuracy": 0.5, "precision": "float32"}
    runs.write_metrics(run.path, [{"epoch": 1}])
    (run.path / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged \(epochs are missing\)"):
        Run.open(run.path)
    (run.path / "result.json").write_text(json.dumps(result | {"test_accuracy": "high"}))
    with pytest.raises(RunError, match="'test_accuracy' is missing or of the wrong type"):
        Run.open(run.path)


def test_a_section_must_have_the_fields_that_this_version_knows(tmp_path: Path):
    run = make_run(tmp_path / "run")
    config = json.loads((run.path / "config.json").read_text())

    def with_model(section: object) -> Run:
        (run.path / "config.json").write_text(json.dumps(config | {"model": section}))
        return Run.open(run.path)

    before_widths_could_be_chosen = {name: value for name, value in config["model"].items() if name != "width"}
    assert with_model(before_widths_could_be_chosen).model.width == 64
    for wrong in (config["model"] | {"more": 1}, {"width": 64}):
        with pytest.raises(RunError, match="not of this version"):
            with_model(wrong)
    with pytest.raises(RunError, match="'model' is missing"):
        with_model(None)
    (run.path / "config.json").write_text(json.dumps(config | {"training": config["training"] | {"epochs": 0}}))
    with pytest.raises(RunError, match="epochs must be at least 1"):
        Run.open(run.path)


def test_a_run_of_format_1_is_converted():
    run = Run.open(Path(__file__).parents[1] / "golden" / "format-1" / "finished")
    assert run.finished
    assert (run.model.trunk, run.model.routing, run.model.votes) == ("paper", "dynamic", "grid")
    assert run.training.optimizer == "adam"
    assert run.provenance["data"]["sha256_format_1"].startswith("8b8df838")
    assert "sha256" not in run.provenance["data"]
    sabour = {"model": {"name": "sabour-capsnet"}, "training": {}, "data": {}}
    converted, _ = runs.from_format_1(sabour, {"data": {}, "sessions": []})
    assert converted["model"] == {"name": "sabour-capsnet", "trunk": "sabour", "votes": "position"}


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path):
    script = """
import sys
from pathlib import Path
from dualcaps.errors import RunError
from dualcaps.runs.run import locked
try:
    with locked(Path(sys.argv[1])):
        print("locked")
except RunError as error:
    print(error)
"""

    def other_process() -> str:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    with runs.locked(tmp_path):
        assert "another process is training" in other_process()
    assert other_process() == "locked\n"


def test_the_environment_names_versions_and_machine():
    environment = runs.environment(torch.device("cpu"), "float32")
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert "cores" in environment["processor"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("fma avx2", "A 1 with AVX2, "),
        ("avx2 avx512f", "A 1 with AVX-512, "),
        ("avx2 avx512f avx512_bf16", "A 1 with AVX-512 and its bfloat16, "),
        ("avx2 amx_bf16 avx512f avx512_bf16", "A 1 with AMX, "),
        ("asimd", "A 1, "),
    ],
)
def test_processors_of_one_name_differ_by_their_instructions(flags: str, said: str, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name\t: A 1\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert runs._processor(tmp_path / "cpuinfo").startswith(said)
