"""Configurations: types and ranges are checked, JSON keeps them, and their hash identifies them."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualcaps import ConfigError, DataConfig, DataError, ModelConfig, ModelError, TrainConfig
from dualcaps.config import config_hash, from_json, to_json

CHANGES: dict[str, Any] = {
    "epochs": 7, "batch_size": 32, "optimizer": "sgd", "lr": 0.1, "schedule": "cosine", "warmup_epochs": 2.0,
    "weight_decay": 0.1, "momentum": 0.5, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3, "grad_clip": 1.0,
    "label_smoothing": 0.1, "class_weight": (1.0, 2.0), "ema": 0.9, "reconstruction_weight": 0.0,
    "augment": "flip,erase", "protocol": "paper", "patience": 3, "init_from": "run", "precision": "float32",
    "device": "cpu", "compile": "never", "seed": 5,
}  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(CHANGES)), st.just(0)))
def test_a_training_configuration_survives_json(chosen: dict[str, int]):
    config = TrainConfig(**{name: CHANGES[name] for name in chosen})
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    assert (config_hash(config) == config_hash(TrainConfig())) == (config == TrainConfig())


def test_every_field_changes_the_hash():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    hashes = [config_hash(TrainConfig(**{name: value})) for name, value in CHANGES.items()]
    assert len({config_hash(TrainConfig()), *hashes}) == len(CHANGES) + 1
    assert config_hash(TrainConfig(device="cpu"), leave_out=("device",)) == config_hash(
        TrainConfig(), leave_out=("device",)
    )


def test_options_of_a_network_survive_json():
    config = ModelConfig("mine", (1, 8, 8), 2, options=(("depth", 3), ("sizes", (1, 2))))
    assert from_json(ModelConfig, json.loads(json.dumps(to_json(config)))) == config


def test_numbers_of_numpy_and_lists_are_converted():
    config = TrainConfig(epochs=np.int64(3), lr=np.float32(0.5), class_weight=[np.float64(1), 2])
    assert (config.epochs, config.lr, config.class_weight) == (3, 0.5, (1.0, 2))
    assert type(config.epochs) is int
    assert DataConfig(image_size=[20, 30]).image_size == (20, 30)


@pytest.mark.parametrize(
    ("cls", "values", "error", "said"),
    [
        (TrainConfig, {"epochs": "ten"}, ConfigError, "epochs must be a whole number, got 'ten'"),
        (TrainConfig, {"epochs": True}, ConfigError, "epochs must be a whole number, got True"),
        (TrainConfig, {"epochs": 1.5}, ConfigError, "epochs must be a whole number, got 1.5"),
        (TrainConfig, {"lr": "fast"}, ConfigError, "lr must be a number"),
        (TrainConfig, {"optimizer": "adamm"}, ConfigError, "optimizer must be one of adam, adamw, sgd"),
        (TrainConfig, {"class_weight": (1, -1)}, ConfigError, "class_weight must be weights of at least 0"),
        (TrainConfig, {"augment": "flip,spin"}, ConfigError, "augment: 'spin' is not one of policy"),
        (TrainConfig, {"ema": 1.0}, ConfigError, "ema must be at least 0 and below 1"),
        (TrainConfig, {"patience": 0}, ConfigError, "patience must be at least 1"),
        (DataConfig, {"image_size": (0, 5)}, DataError, "image_size must be two numbers of pixels"),
        (DataConfig, {"channels": 2}, DataError, "channels must be one of 1, 3, got 2"),
        (DataConfig, {"validation": 1.0}, DataError, "validation must be above 0 and below 1"),
        (DataConfig, {"value_range": (5, 5)}, DataError, "value_range must be two increasing numbers"),
        (ModelConfig, {"name": "x", "num_classes": 1}, ModelError, "num_classes must be at least 2"),
        (ModelConfig, {"name": "x", "image_shape": (1, 28)}, ModelError, "image_shape must be 3 of: a whole number"),
        (ModelConfig, {"name": "x", "gate": "sigmoid"}, ModelError, "x has no attention module"),
    ],
)
def test_wrong_types_and_values_are_named(cls: Any, values: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error) as caught:
        cls(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="missing or unknown: depth"):
        from_json(TrainConfig, {"depth": 3})
    with pytest.raises(ValueError, match="missing or unknown: name"):
        from_json(ModelConfig, {"width": 8})
