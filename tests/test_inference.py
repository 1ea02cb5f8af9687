"""Predictions and how they are counted, from the Python side."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from dualcaps import (
    ConfigError,
    DataError,
    Evaluation,
    ImageSplit,
    RunError,
    TrainConfig,
    create_model,
    evaluate,
    fit,
    inference,
    load_data,
    load_model,
    predict,
)
from dualcaps.inference import (
    choose_batch_size,
    choose_device,
    choose_precision,
    evaluate_run,
    predict_files,
    run_batches,
)
from dualcaps.registry import ROUTING_METHODS


def answers(truth, guess, classes: int) -> Evaluation:
    """An evaluation of these predictions."""
    return Evaluation(np.eye(classes)[np.asarray(guess)], np.asarray(truth), tuple("abcdefgh"[:classes]))


def test_evaluation_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 4, (2, 200))
    evaluation = answers(truth, guess, 4)
    np.testing.assert_array_equal(evaluation.confusion, sklearn.metrics.confusion_matrix(truth, guess))
    assert evaluation.balanced_accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, guess))
    assert evaluation.accuracy == sklearn.metrics.accuracy_score(truth, guess)
    np.testing.assert_allclose(evaluation.recall, sklearn.metrics.recall_score(truth, guess, average=None))
    np.testing.assert_allclose(evaluation.precision, sklearn.metrics.precision_score(truth, guess, average=None))


def test_classes_without_images_or_predictions_have_no_ratio():
    evaluation = answers([0, 0, 1], [0, 0, 0], 3)
    np.testing.assert_array_equal(evaluation.recall, [1, 0, np.nan])
    np.testing.assert_array_equal(evaluation.precision, [2 / 3, np.nan, np.nan])


def test_evaluate_counts_what_predict_answers():
    model = create_model("capsnet", (1, 12, 12), 3)
    part = ImageSplit(torch.randint(256, (50, 1, 12, 12), dtype=torch.uint8), torch.arange(50) % 3)
    guess = predict(model, part.images).argmax(dim=1)
    evaluation = evaluate(model, part, batch_size=7)
    np.testing.assert_array_equal(evaluation.confusion, sklearn.metrics.confusion_matrix(part.labels, guess))


def test_the_batch_size_does_not_change_a_prediction():
    model = create_model("da-capsnet", (1, 12, 12), 3)
    images = torch.randint(256, (30, 1, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(predict(model, images, batch_size=1), predict(model, images), atol=1e-5, rtol=0)


def test_batches_of_large_images_are_smaller():
    cpu = torch.device("cpu")
    sizes = [choose_batch_size(cpu, (3, side, side)) for side in (28, 64, 96, 224, 4000)]
    assert sizes == [128, 128, 32, 16, 16]


def test_test_time_augmentation_averages_over_the_changed_images():
    model = create_model("da-capsnet", (1, 12, 12), 3)
    images = torch.randint(256, (30, 1, 12, 12), dtype=torch.uint8)
    mean = (predict(model, images) + predict(model, images.flip(3))) / 2
    torch.testing.assert_close(predict(model, images, tta="flip", batch_size=1), mean, atol=1e-5, rtol=0)
    assert not torch.equal(predict(model, images), mean)


def test_predict_turns_dropout_off_and_refuses_other_shapes():
    model = create_model("cnn", (1, 12, 12), 3).train()
    images = torch.randint(256, (5, 1, 12, 12), dtype=torch.uint8)
    assert torch.equal(predict(model, images), predict(model, images))
    with pytest.raises(DataError, match=r"do not fit the network, which takes \[N, 1, 12, 12\]"):
        predict(model, images[:, :, 1:])


@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_in_bfloat16_is_evaluated_in_float32_where_bfloat16_is_slow(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
):
    data = load_data(shapes_folder)
    model = create_model("cnn", data.image_shape, len(data.classes))
    config = TrainConfig(epochs=1, batch_size=8, precision="bfloat16", device="cpu")
    run = fit(model, data, config, out=tmp_path / "run", quiet=True, pictures=False).run
    used: list[str] = []

    def recorded(*given: Any, precision: str, **options: Any) -> Evaluation:
        used.append(precision)
        return evaluate(*given, precision=precision, **options)

    monkeypatch.setattr(inference, "evaluate", recorded)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    notes = evaluate_run(run, device="cpu").notes
    assert used == [precision]
    assert ("evaluated in float32" in " ".join(notes)) is not fast


def test_a_trained_network_is_loaded_with_its_classes(run: Path, shapes_folder: Path):
    model = load_model(run)
    assert model.classes == ("across", "down", "slanted")
    assert not model.training
    result = json.loads((run / "result.json").read_text())
    assert evaluate(model, load_data(shapes_folder).test).accuracy == result["test_accuracy"]


def test_files_of_any_size_are_predicted_like_their_pixels(run: Path, shapes_folder: Path, tmp_path: Path):
    model = load_model(run)
    file = shapes_folder / "down" / "03.png"
    large = tmp_path / "large.png"
    Image.open(file).convert("RGB").resize((36, 36), Image.Resampling.NEAREST).save(large)
    pixels = torch.from_numpy(np.asarray(Image.open(file)).copy())[None, None]
    expected = predict(model, pixels).expand(3, -1)
    torch.testing.assert_close(predict_files(model, [file, large, file], batch_size=2), expected, atol=1e-5, rtol=0)


def test_a_damaged_file_among_many_is_named(run: Path, shapes_folder: Path, tmp_path: Path):
    (tmp_path / "cut.png").write_bytes((shapes_folder / "down" / "03.png").read_bytes()[:60])
    files = sorted(shapes_folder.rglob("*.png"))
    with pytest.raises(DataError, match=r"cut\.png: cannot be read"):
        predict_files(load_model(run), [*files, tmp_path / "cut.png", *files], batch_size=4)


def test_damaged_files_can_be_collected_without_stopping(run: Path, shapes_folder: Path, tmp_path: Path):
    model, files = load_model(run), sorted(shapes_folder.rglob("*.png"))[:9]
    whole = predict_files(model, files)
    unread: dict[int, str] = {}
    mixed = predict_files(model, [tmp_path / "none.png", *files, tmp_path], batch_size=4, unread=unread)
    assert list(unread) == [0, 10]
    assert unread[0].startswith(f"{tmp_path / 'none.png'}: no such file")
    assert mixed[[0, 10]].isnan().all()
    torch.testing.assert_close(mixed[1:10], whole)
    assert predict_files(model, files, unread=(nothing := {})).isfinite().all()
    assert nothing == {}


@pytest.mark.parametrize("method", sorted(ROUTING_METHODS))
def test_routing_is_computed_in_float32_whatever_the_precision(method: str):
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 20, 20), 3, routing=method, width=16)
    for parameter in model.get_submodule("routing").parameters():
        torch.nn.init.normal_(parameter, 1.0)
    images = torch.randint(256, (20, 1, 20, 20), dtype=torch.uint8)
    exact, near = predict(model, images), predict(model, images, precision="bfloat16")
    torch.testing.assert_close(near, exact, atol=0.03, rtol=0)
    assert {output.poses.dtype for _, output in run_batches(model, images, precision="bfloat16")} == {torch.float32}


@pytest.mark.parametrize("name", ["capsnet", "da-capsnet", "cnn", "sabour-capsnet"])
def test_bfloat16_predictions_are_near_and_leave_the_network_as_it_was(name: str):
    torch.manual_seed(0)
    model = create_model(name, (1, 28, 28), 3)
    images = torch.randint(256, (70, 1, 28, 28), dtype=torch.uint8)
    exact = predict(model, images)
    torch.testing.assert_close(predict(model, images, precision="bfloat16"), exact, atol=0.01, rtol=0)
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(model.train()(images / 255).lengths, exact, atol=1e-4, rtol=0) if name != "cnn" else None


@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_evaluated_on_its_own_test_part_or_another_folder(shapes_folder: Path, tmp_path: Path):
    data = load_data(shapes_folder)
    config = TrainConfig(epochs=1, precision="float32", device="cpu")
    run = fit(create_model("capsnet", data.image_shape, 3), data, config, out=tmp_path / "run", quiet=True).run
    evaluated = evaluate_run(run)
    own = evaluated.evaluation
    assert own.confusion.sum() == len(load_data(shapes_folder).test)
    assert evaluated.official is None
    assert evaluate_run(run, str(shapes_folder)).evaluation.confusion.tolist() == own.confusion.tolist()
    (tmp_path / "link").symlink_to(shapes_folder)
    for same in (tmp_path / "cwd" / ".." / "shapes", tmp_path / "link"):
        assert evaluate_run(run, str(same)).evaluation.confusion.sum() == own.confusion.sum()
    shutil.copytree(shapes_folder / "down", tmp_path / "other" / "down")
    other = evaluate_run(run, str(tmp_path / "other")).evaluation
    assert other.confusion.sum(axis=1).tolist() == [0, 12, 0]
    with pytest.raises(DataError, match="classes are not the run's"):
        evaluate_run(run, "digits")
    (shapes_folder / "down" / "03.png").unlink()
    with pytest.raises(DataError, match=r"changed since .* was trained on it"):
        evaluate_run(run)


def test_damaged_runs_are_named(run_copy: Path):
    config = json.loads((run_copy / "config.json").read_text())

    def with_config(change) -> None:
        (run_copy / "config.json").write_text(json.dumps(config | change))

    with_config({"model": config["model"] | {"decoder": False}})
    with pytest.raises(RunError, match=r"model\.safetensors: not the weights"):
        load_model(run_copy)
    with_config({"model": config["model"] | {"depth": 4}})
    with pytest.raises(RunError, match=r"not of this version .*depth"):
        load_model(run_copy)
    with_config({"classes": ["only one"]})
    with pytest.raises(RunError, match="class names"):
        load_model(run_copy)
    with_config({})
    (run_copy / "result.json").unlink()
    with pytest.warns(UserWarning, match="is not finished: these are the weights of epoch"):
        load_model(run_copy)
    (run_copy / "model.safetensors").unlink()
    with pytest.raises(RunError, match="no epoch is finished yet"):
        load_model(run_copy)


def test_devices_and_precisions_are_chosen_or_named():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    assert choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert choose_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")
    assert choose_precision("auto", torch.device("meta")) == "float32"
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(ConfigError, match=f"--device {name}"):
            choose_device(name)
