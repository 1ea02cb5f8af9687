"""The run folder: nothing half written, nothing half read."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from dualcaps import ModelConfig, RunError, TrainConfig, runs


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parent = tmp_path / "deep" / "runs"
    config = {"model": {}, "training": {"lr": 1}, "data": {}, "classes": ["a"]}
    provenance = {"data": {"sha256": "0"}, "sessions": []}
    take_back = runs.create_run(parent / "a", config, provenance)
    assert runs.read_config(parent / "a") == config
    assert runs.read_provenance(parent / "a") == provenance
    runs.add_session(parent / "a", {"device": "cpu"})
    assert runs.read_provenance(parent / "a")["sessions"] == [{"device": "cpu"}]
    with pytest.raises(RunError, match="exists already"):
        runs.create_run(parent / "a", {}, {})

    def full(file: Path, content: dict) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        runs.create_run(parent / "b", {}, {})
    with pytest.raises(OSError, match="No space"):
        runs.create_run(tmp_path / "new" / "c", {}, {})
    assert [path.name for path in parent.iterdir()] == ["a"]
    assert not (tmp_path / "new").exists()
    take_back()
    assert not (tmp_path / "deep").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "x.json"
    runs.write_json(file, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*x\.json"):
        runs.write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.json"]


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


def test_folders_that_are_no_finished_run_of_this_version_are_named(tmp_path: Path):
    with pytest.raises(RunError, match="no such run folder"):
        runs.read_config(tmp_path / "a")
    with pytest.raises(RunError, match=r"incomplete run folder \(config\.json is missing\)"):
        runs.read_config(tmp_path)
    for content, said in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 99}', "run format"),
        ("{}", "run format"),
        ('{"format": 1, "model": null}', "'model' is missing"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match=said):
            runs.read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="cannot be read"):
        runs.read_config(tmp_path)
    with pytest.raises(RunError, match="training is not finished"):
        runs.read_result(tmp_path)


def test_a_section_must_have_the_fields_that_this_version_knows(tmp_path: Path):
    section = {**vars(ModelConfig("cnn")), "image_shape": [3, 32, 32]}
    assert runs.parse(ModelConfig, section, tmp_path) == ModelConfig("cnn", (3, 32, 32))
    written_before_widths_could_be_chosen = {name: value for name, value in section.items() if name != "width"}
    assert runs.parse(ModelConfig, written_before_widths_could_be_chosen, tmp_path).width == 64
    for wrong in (section | {"more": 1}, {"width": 64}, None):
        with pytest.raises(RunError, match="not a ModelConfig of this version"):
            runs.parse(ModelConfig, wrong, tmp_path)
    with pytest.raises(RunError, match="epochs must be at least 1"):
        runs.parse(TrainConfig, vars(TrainConfig()) | {"epochs": 0}, tmp_path)


def try_to_lock(path: Path, answer) -> None:
    try:
        with runs.locked(path):
            answer.put("got it")
    except RunError as error:
        answer.put(str(error))


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path):
    context = multiprocessing.get_context("spawn")

    def other_process() -> str:
        answer = context.Queue()
        process = context.Process(target=try_to_lock, args=(tmp_path, answer))
        process.start()
        said = answer.get(timeout=60)
        process.join()
        return said

    with runs.locked(tmp_path):
        assert "another process is training" in other_process()
    assert other_process() == "got it"


def test_the_environment_names_versions_and_machine():
    environment = runs.environment(torch.device("cpu"), "float32")
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert "cores" in environment["processor"]
