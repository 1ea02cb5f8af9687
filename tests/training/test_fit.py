"""Training: it learns, it repeats itself, and it goes on after being stopped anywhere."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dualcaps import (
    Augmentation,
    ConfigError,
    ImageDataset,
    Network,
    Result,
    RunError,
    TrainConfig,
    create_model,
    fit,
    inference,
    load_data,
    load_model,
)
from dualcaps.data.batches import training_batches
from dualcaps.explain.reconstructions import reconstruction_error
from dualcaps.runs import files
from dualcaps.runs.run import Run
from dualcaps.training import step

pytestmark = pytest.mark.usefixtures("no_pictures")
TINY = TrainConfig(epochs=3, batch_size=8, precision="float32", device="cpu", deterministic=True)
GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"


@pytest.fixture
def data(shapes_folder: Path) -> ImageDataset:
    return load_data(shapes_folder)


def fresh(data: ImageDataset, name: str = "da-capsnet", seed: int = 0, **switches: Any) -> Network:
    torch.manual_seed(seed)
    return create_model(name, data.image_shape, len(data.classes), **switches)


def train(data: ImageDataset, out: Path, config: TrainConfig = TINY, *, resume: bool = False, **network: Any) -> Result:
    return fit(fresh(data, **network), data, config, out=out, resume=resume, quiet=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if "second" not in key} for line in history]


@pytest.mark.parametrize("name", ["da-capsnet", "cnn"])
def test_it_learns_three_patterns(data: ImageDataset, tmp_path: Path, name: str):
    result = train(data, tmp_path / "run", dataclasses.replace(TINY, epochs=25), name=name)
    assert result.test_accuracy == 1
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_the_run_folder_holds_what_is_promised(data: ImageDataset, tmp_path: Path):
    model = fresh(data)
    result = fit(model, data, TINY, out=tmp_path / "run", quiet=True)
    names = sorted(path.name for path in result.run.iterdir() if not path.name.startswith("."))
    assert names == [
        "calibration.json", "checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "model.safetensors",
        "provenance.json", "reconstructions.png", "result.json",
    ]  # fmt: skip
    run = Run.open(result.run)
    assert run.training == dataclasses.replace(TINY, lr=1e-3)
    assert run.classes == ("across", "down", "slanted")
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    assert run.provenance["data"]["sha256"] == data.fingerprint
    assert run.provenance["data"]["images"]["test"] == len(data.test)
    (session,) = run.provenance["sessions"]
    assert session["precision"] == "float32"
    assert run.result is not None
    assert run.result["test_accuracy"] == result.test_accuracy
    assert run.result["reconstruction_error"] == reconstruction_error(model, data.test)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights(result.run)[name])


def test_the_loss_follows_the_golden_curve(data: ImageDataset, tmp_path: Path):
    """The whole trainer, to catch a change of its arithmetic; rewrite the file only for an intended one."""
    history = train(data, tmp_path / "run").history
    golden = json.loads(GOLDEN.read_text())
    assert [line["loss"] for line in history] == pytest.approx(golden["loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: ImageDataset, tmp_path: Path):
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, tmp_path / run, dataclasses.replace(TINY, seed=seed))
    a, b, c = (weights(tmp_path / run) for run in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_long_run_in_float32_is_compiled_unless_it_has_to_repeat_itself(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
):
    monkeypatch.setattr(step, "_COMPILES_ON_CPU", "2")
    monkeypatch.setattr(step, "_USUAL_SECONDS", 0.0)
    monkeypatch.setattr(step.torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(step.kernels, "load", lambda: None)
    config = dataclasses.replace(TINY, epochs=8, deterministic=deterministic)
    result = train(data, tmp_path / "run", config, name="cnn")
    assert any(line["compiled"] for line in result.history) is not deterministic


@pytest.mark.parametrize(("deterministic", "used"), [(True, 2), (False, 1)])
def test_a_deterministic_run_is_resumed_with_its_number_of_threads(
    data: ImageDataset, tmp_path: Path, deterministic: bool, used: int
):
    config = dataclasses.replace(TINY, epochs=1, deterministic=deterministic)
    seen: list[tuple[int, bool]] = []

    def each_epoch(_: dict[str, Any]) -> None:
        seen.append((torch.get_num_threads(), torch.is_deterministic_algorithms_warn_only_enabled()))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(data, tmp_path / "run", config, name="cnn")
        torch.set_num_threads(1)
        longer = dataclasses.replace(config, epochs=2)
        model = fresh(data, "cnn")
        fit(model, data, longer, out=tmp_path / "run", resume=True, quiet=True, each_epoch=each_epoch)
        assert (torch.get_num_threads(), torch.is_deterministic_algorithms_warn_only_enabled()) == (1, False)
    finally:
        torch.set_num_threads(threads)
    assert seen == [(used, deterministic)]
    assert [session["threads"] for session in Run.open(tmp_path / "run").provenance["sessions"]] == [2, used]


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def kill_at(write: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Die at the n-th file written, just before it or just after."""
    original, seen = files.write_with, 0

    def write_with(file: Path, content: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == write and not after:
            raise KilledError
        original(file, content)
        if seen == write:
            raise KilledError

    monkeypatch.setattr(files, "write_with", write_with)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["da-capsnet", "cnn"])
@pytest.mark.parametrize("after", [False, True])
def test_stopped_at_any_write_it_resumes_to_the_same_weights(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
):
    network: dict[str, Any] = {"name": name} | ({} if name == "cnn" else {"caps_attention": "shared", "width": 16})
    whole = train(data, tmp_path / "whole", **network)
    stops = 0
    while True:
        stops += 1
        run = tmp_path / f"stopped-{stops}"
        with monkeypatch.context() as patch:
            kill_at(stops, patch, after=after)
            try:
                train(data, run, **network)
                break  # fewer writes than that: every one has been tried
            except KilledError:
                pass
        before = len(Run.open(run).provenance["sessions"]) if run.exists() else 0
        finished = run.exists() and Run.open(run).finished
        resumed = train(data, run, resume=True, **network)
        assert len(Run.open(run).provenance["sessions"]) == before + (not finished)
        assert without_times(resumed.history) == without_times(whole.history)
        assert resumed.test_accuracy == whole.test_accuracy
        expected = weights(whole.run)
        for key, tensor in weights(run).items():
            assert torch.equal(tensor, expected[key]), (stops, key)
        assert not list(run.glob(".*.draft"))
    assert stops > 12


def test_a_finished_run_is_only_read(data: ImageDataset, tmp_path: Path):
    first = train(data, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in first.run.glob("[!.]*")}
    model = fresh(data, seed=5)
    again = fit(model, data, TINY, out=first.run, resume=True, quiet=True)
    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in first.run.glob("[!.]*")}
    assert all(torch.equal(tensor, weights(first.run)[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 9}, "batch_size was 8, now 9"),
        ({"batch_size": 9, "epochs": 9}, "batch_size was 8, now 9"),
        ({"seed": 1}, "seed was 0"),
    ],
)
def test_resuming_with_another_configuration_is_refused(data: ImageDataset, tmp_path: Path, change, said: str):
    train(data, tmp_path / "run")
    with pytest.raises(RunError, match=said):
        train(data, tmp_path / "run", dataclasses.replace(TINY, **change), resume=True)


def test_resuming_with_another_network_or_other_images_is_refused(
    data: ImageDataset, tmp_path: Path, shapes_folder: Path
):
    train(data, tmp_path / "run")
    with pytest.raises(RunError, match="iterations was 3, now 2"):
        train(data, tmp_path / "run", resume=True, iterations=2)
    (shapes_folder / "down" / "00.png").unlink()
    with pytest.raises(RunError, match="images of shapes are not those"):
        train(load_data(shapes_folder), tmp_path / "run", resume=True)


def test_an_existing_folder_is_not_trained_into(data: ImageDataset, tmp_path: Path):
    train(data, tmp_path / "run")
    with pytest.raises(RunError, match="exists already: continue with --resume"):
        train(data, tmp_path / "run")


def test_without_a_folder_runs_are_numbered(data: ImageDataset):
    config = dataclasses.replace(TINY, epochs=1)
    runs_made = [fit(fresh(data), data, config, quiet=True).run for _ in range(2)]
    assert runs_made == [Path("runs/shapes-da-capsnet-seed0"), Path("runs/shapes-da-capsnet-seed0-2")]


def test_protocol_clean_reads_the_test_images_once_and_paper_selects_on_them(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[int] = []
    evaluate = inference.evaluate

    def counting(model: Network, part, **options):
        read.append(len(part))
        return evaluate(model, part, **options)

    monkeypatch.setattr("dualcaps.training.callbacks.evaluate", counting)
    monkeypatch.setattr("dualcaps.training.fit.evaluate", counting)
    assert len({len(data.train), len(data.validation), len(data.test)}) == 3
    train(data, tmp_path / "clean")
    assert read == [len(data.validation)] * 3 + [len(data.test)]
    read.clear()
    paper = train(data, tmp_path / "paper", dataclasses.replace(TINY, protocol="paper"))
    assert read == [len(data.test)] * 3
    assert paper.test_accuracy == paper.selection_accuracy == max(line["test_accuracy"] for line in paper.history)


def test_protocol_last_keeps_the_last_epoch_though_another_was_better(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    accuracies = iter([0.5, 0.9, 0.4])
    evaluate = inference.evaluate
    seen: list[dict[str, torch.Tensor]] = []

    def forged(model: Network, part, **options):
        assert len(part) == len(data.test)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        evaluation = evaluate(model, part, **options)
        accuracy = next(accuracies)
        return type("Forged", (), {"accuracy": accuracy, "evaluation": evaluation})

    monkeypatch.setattr("dualcaps.training.callbacks.evaluate", forged)
    config = dataclasses.replace(TINY, protocol="last")
    result = train(data, tmp_path / "run", config)
    assert (result.selected_epoch, result.test_accuracy) == (3, 0.4)
    kept = weights(result.run)
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[-1].items())
    line = result.history[0]
    assert line["images_per_second"] * line["seconds"] == pytest.approx(len(data.train) + len(data.validation))
    with pytest.raises(ConfigError, match="patience needs a protocol that selects the epoch"):
        dataclasses.replace(config, patience=2)


def test_the_test_accuracy_is_that_of_the_augmented_predictions(data: ImageDataset, tmp_path: Path):
    config = dataclasses.replace(TINY, protocol="last", tta="policy")
    result = train(data, tmp_path / "run", config)
    assert Run.open(result.run).training.tta == "shift"  # as own images are not mirrored
    model = load_model(result.run)
    assert result.test_accuracy == inference.evaluate(model, data.test, tta="shift").accuracy
    assert inference.evaluate_run(result.run).evaluation.accuracy == result.test_accuracy


def test_protocol_paper_also_trains_on_the_validation_images(data: ImageDataset, tmp_path: Path):
    config = dataclasses.replace(TINY, epochs=1, protocol="paper")
    line = train(data, tmp_path / "run", config).history[0]
    assert line["images_per_second"] * line["seconds"] == pytest.approx(len(data.train) + len(data.validation))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("augment", ["policy", "paper-literal", "none"])
def test_the_augmentation_option_is_applied(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: Any, flip: bool
):
    seen = []

    def watching(split, batch_size, augmentation, generator, classes, **resumed):
        seen.append(augmentation)
        return training_batches(split, batch_size, augmentation, generator, classes, **resumed)

    monkeypatch.setattr("dualcaps.training.fit.training_batches", watching)
    train(dataclasses.replace(data, flip=flip), tmp_path / "run", dataclasses.replace(TINY, epochs=1, augment=augment))
    expected = {"policy": Augmentation(0.1, flip), "paper-literal": Augmentation(0.1, True), "none": None}
    assert seen == [expected[augment]]


def test_the_selected_weights_are_kept_not_the_last(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, accuracies, seen = fresh(data), iter([0.5, 0.9, 0.7]), []

    class Told:
        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

    def told(model: Network, part, **options):
        if part.images.shape == data.validation.images.shape:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return Told(next(accuracies))
        return Told(0.25)

    monkeypatch.setattr("dualcaps.training.callbacks.evaluate", told)
    monkeypatch.setattr("dualcaps.training.fit.evaluate", told)
    result = fit(model, data, TINY, out=tmp_path / "run", quiet=True)
    assert (result.selected_epoch, result.selection_accuracy, result.test_accuracy) == (2, 0.9, 0.25)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, seen[1][name])


def test_random_number_generators_of_the_caller_are_preserved(data: ImageDataset, tmp_path: Path):
    model = fresh(data)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(model, data, TINY, out=tmp_path / "run", quiet=True)
    assert torch.equal(torch.rand(3), expected)


def test_bfloat16_trains_and_is_recorded(data: ImageDataset, tmp_path: Path):
    result = train(data, tmp_path / "run", dataclasses.replace(TINY, precision="bfloat16"))
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in result.history)
    assert Run.open(result.run).result["precision"] == "bfloat16"
    assert all(tensor.dtype == torch.float32 for tensor in weights(result.run).values())


@pytest.mark.parametrize(("width", "share"), [(16, 1), (64, 1), (128, 0.5), (160, 0.4)])
def test_wider_networks_have_a_lower_learning_rate(data: ImageDataset, tmp_path: Path, width: int, share: float):
    before = {name: value.clone() for name, value in fresh(data, width=width).state_dict().items()}
    # Without the kernels of deterministic training, whose rounding of a gradient of zero epsilon would not outweigh.
    config = dataclasses.replace(
        TINY, epochs=1, batch_size=len(data.train), epsilon=1e-30, deterministic=False, compile="never"
    )
    for name, lr, rate in (("default", None, 1e-3 * share), ("asked", 5e-3, 5e-3)):
        train(data, tmp_path / name, dataclasses.replace(config, lr=lr), width=width)
        moved = [(value - before[key]).abs().max() for key, value in weights(tmp_path / name).items()]
        torch.testing.assert_close(max(moved), torch.tensor(rate), rtol=1e-3, atol=0)  # Adam's first step
        asked = json.loads((tmp_path / name / "config.json").read_text())["training"]
        assert asked["lr"] == pytest.approx(rate)


def test_a_loss_that_explodes_stops_with_advice(data: ImageDataset, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the loss is .* in epoch \d, step \d of \d, .*: lower the learning rate"):
        train(data, tmp_path / "run", dataclasses.replace(TINY, lr=1e30))
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_images_is_refused(data: ImageDataset, tmp_path: Path):
    with pytest.raises(ConfigError, match="build it for these"):
        fit(create_model("capsnet"), data, TINY, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight must be at least 0"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_options_out_of_range_are_named(change, said: str):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(TINY, **change)


def test_an_unknown_device_is_named(data: ImageDataset, tmp_path: Path):
    with pytest.raises(ConfigError, match="--device warp: not on this machine"):
        train(data, tmp_path / "run", dataclasses.replace(TINY, device="warp"))


def test_too_full_a_disk_is_refused_before_training(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("dualcaps.training.fit.shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="disk full, 1 MB free where the run needs"):
        train(data, tmp_path / "deep" / "run")
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_up_leaves_nothing_or_a_run_to_resume(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = train(data, tmp_path / "whole")
    original = files.write_with
    for good_writes in (0, 1, 2, 6):
        run, left = tmp_path / f"full-{good_writes}" / "run", good_writes

        def write_with(file: Path, content: Any) -> None:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device", str(file))
            left -= 1
            original(file, content)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_with", write_with)
            with pytest.raises(OSError, match="No space"):
                train(data, run)
        if good_writes < 3:  # no epoch is done: nothing is worth keeping
            assert not [path for path in tmp_path.iterdir() if path.name.strip(".").startswith("full")]
        else:
            train(data, run, resume=True)
            assert all(torch.equal(tensor, weights(whole.run)[name]) for name, tensor in weights(run).items())
