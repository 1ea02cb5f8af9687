"""Configurations: what they refuse, that they survive JSON, and that their hash is their identity."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dualcaps import ConfigError, DataConfig, DataError, DualcapsError, ModelConfig, ModelError, TrainConfig
from dualcaps.config import AUGMENTATIONS, config_hash, from_json, to_json

Config = ModelConfig | DataConfig | TrainConfig


def numbers(low: float, high: float, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, **options)


NAMES = st.text(min_size=1, max_size=8)
SIZES = st.integers(1, 300)
SHARES = numbers(0, 1, exclude_min=True, exclude_max=True)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), numbers(-9, 9), NAMES)

FIELDS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    ModelConfig: {
        "name": NAMES, "image_shape": st.tuples(SIZES, SIZES, SIZES), "num_classes": st.integers(2, 99),
        "crop": st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)), "standardise": st.booleans(),
        "conv_attention": st.booleans(), "caps_attention": st.sampled_from(["none", "element", "capsule", "shared"]),
        "gate": st.sampled_from(["tanh", "sigmoid", "additive"]), "width": SIZES, "extra_conv": st.booleans(),
        "iterations": SIZES, "squash_constant": numbers(0, 9, exclude_min=True),
        "update": st.sampled_from(["accumulate", "replace"]), "decoder": st.booleans(), "trunk": NAMES,
        "trunk_weights": st.none() | NAMES, "votes": st.sampled_from(["grid", "position"]), "routing": NAMES,
        "options": st.dictionaries(NAMES, VALUES | st.tuples(VALUES, VALUES), max_size=3).map(
            lambda options: tuple(sorted(options.items(), key=lambda pair: pair[0]))
        ),
    },
    DataConfig: {
        "source": NAMES, "data_dir": st.none() | NAMES,
        "image_size": st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
        "channels": st.sampled_from([None, 1, 3]), "validation": SHARES, "test": st.none() | SHARES,
        "split_seed": st.integers(0, 99),
        "split": st.sampled_from([None, "official", "random", "views", "azimuth", "elevation"]),
        "camera": st.sampled_from([None, "left", "right", "both", "stereo"]),
        "objects": st.sampled_from([None, 10, 20]),
        "extra": st.booleans(), "skip_damaged": st.booleans(),
        "value_range": st.none() | st.tuples(numbers(-9, 0), numbers(1, 9)),
    },
    TrainConfig: {
        "epochs": SIZES, "batch_size": st.none() | SIZES, "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "lr": st.none() | numbers(1e-9, 9), "schedule": st.sampled_from(["constant", "cosine", "one-cycle", "step"]),
        "warmup_epochs": numbers(0, 9), "weight_decay": numbers(0, 9), "momentum": numbers(0, 1, exclude_max=True),
        "beta1": numbers(0, 1, exclude_max=True), "beta2": numbers(0, 1, exclude_max=True),
        "epsilon": numbers(1e-12, 1), "grad_clip": st.none() | numbers(1e-9, 9),
        "label_smoothing": numbers(0, 1, exclude_max=True),
        "class_weight": st.sampled_from([None, "balanced"])
        | st.lists(numbers(0, 9), min_size=2, max_size=4).map(tuple),
        "ema": st.none() | numbers(0, 1, exclude_max=True), "reconstruction_weight": numbers(0, 9),
        "augment": st.sampled_from(["policy", "paper-literal", "none"])
        | st.lists(st.sampled_from([*AUGMENTATIONS, "shift=0.15"]), min_size=1, max_size=3, unique=True)
        .filter(lambda names: not {"mixup", "overlap"} <= set(names))
        .map(",".join),
        "tta": st.sampled_from(["none", "policy", "flip", "shift", "flip-shift"]),
        "protocol": st.sampled_from(["clean", "paper", "last"]), "patience": st.none() | SIZES,
        "init_from": st.none() | NAMES,
        "precision": st.sampled_from(["auto", "float32", "bfloat16"]), "device": NAMES,
        "compile": st.sampled_from(["auto", "always", "never"]), "deterministic": st.booleans(),
        "checkpoint_minutes": numbers(1e-3, 99), "seed": st.integers(0, 2**32 - 1),
    },
}  # fmt: skip


def draw_config(data: st.DataObject, kind: type[Config]) -> Config:
    return attempt(lambda: kind(**{name: data.draw(strategy, name) for name, strategy in FIELDS[kind].items()}))


def attempt(build: Callable[[], Config]) -> Config:
    """A configuration, unless it has a gate without attention, patience without selection or too large a crop."""
    try:
        return build()
    except (ModelError, ConfigError) as error:
        assume(not any(text in str(error) for text in ("no attention module", "patience needs", "crop must be")))
        raise


kinds = pytest.mark.parametrize("kind", list(FIELDS))


@kinds
def test_the_tests_know_every_field(kind: type):
    assert list(FIELDS[kind]) == [field.name for field in dataclasses.fields(kind)]


@kinds
@given(data=st.data())
def test_a_configuration_survives_json(kind: type, data: st.DataObject):
    config = draw_config(data, kind)
    written = json.loads(json.dumps(to_json(config)))
    again = from_json(kind, written)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert pickle.loads(pickle.dumps(config)) == config
    assert list(written) == list(FIELDS[kind])


@kinds
@given(data=st.data())
def test_a_changed_field_changes_the_hash_unless_it_is_left_out(kind: type, data: st.DataObject):
    config = draw_config(data, kind)
    name = data.draw(st.sampled_from(list(FIELDS[kind])))
    other = attempt(lambda: dataclasses.replace(config, **{name: data.draw(FIELDS[kind][name])}))
    assert (config_hash(other) == config_hash(config)) == (to_json(other) == to_json(config))
    assert config_hash(other, leave_out=(name,)) == config_hash(config, leave_out=(name,))


@kinds
def test_each_field_alone_is_part_of_the_hash(kind: type):
    given_, changed = ({"name": "x"} if kind is ModelConfig else {}), {
        "name": "y", "image_shape": (3, 9, 9), "num_classes": 3, "crop": (5, 5),
        "standardise": True, "conv_attention": True, "caps_attention": "element",
        "width": 3, "extra_conv": True, "iterations": 4, "squash_constant": 1.0, "update": "replace", "decoder": False,
        "trunk": "t", "trunk_weights": "w", "votes": "position", "routing": "em", "options": (("a", 1),),
        "source": "s", "data_dir": "d", "image_size": (9, 9), "channels": 3, "validation": 0.5, "test": 0.5,
        "split_seed": 1, "split": "views", "camera": "both", "objects": 20, "extra": True, "skip_damaged": True,
        "value_range": (0, 9), "epochs": 1, "batch_size": 1, "optimizer": "sgd", "lr": 1, "schedule": "step",
        "warmup_epochs": 1, "weight_decay": 1, "momentum": 0, "beta1": 0, "beta2": 0, "epsilon": 1, "grad_clip": 1,
        "label_smoothing": 0.5, "class_weight": "balanced", "ema": 0.5, "reconstruction_weight": 1, "augment": "flip",
        "tta": "policy", "protocol": "paper", "patience": 1, "init_from": "run", "precision": "float32",
        "device": "cpu", "compile": "never", "deterministic": True, "checkpoint_minutes": 5.0, "seed": 1,
    }  # fmt: skip
    hashes = {config_hash(kind(**given_))}
    for field in dataclasses.fields(kind):
        if field.name != "gate":  # which needs another field
            hashes.add(config_hash(kind(**{**given_, field.name: changed[field.name]})))
    assert len(hashes) == 1 + len(dataclasses.fields(kind)) - (kind is ModelConfig)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TrainConfig(lr=1, grad_clip=2, weight_decay=0), TrainConfig(lr=1.0, grad_clip=2.0, weight_decay=0.0)),
        (TrainConfig(class_weight=[1, 2]), TrainConfig(class_weight=(1.0, 2.0))),
        (TrainConfig(epochs=np.int64(3), lr=np.float64(0.5)), TrainConfig(epochs=3, lr=0.5)),
        (DataConfig(value_range=[0, 255]), DataConfig(value_range=(0.0, 255.0))),
        (DataConfig(image_size=np.array([8, 9]).tolist(), data_dir=Path("x")), DataConfig("digits", "x", (8, 9))),
        (ModelConfig("x", [1, 8, 8], squash_constant=1), ModelConfig("x", (1, 8, 8), squash_constant=1.0)),
    ],
    ids=str,
)
def test_equal_configurations_have_equal_hashes_however_their_values_are_written(one: Config, other: Config):
    assert one == other
    assert hash(one) == hash(other)
    assert config_hash(one) == config_hash(other)
    assert repr(one) == repr(other)


def test_the_hash_of_several_tells_them_and_their_order():
    first, second = TrainConfig(), TrainConfig(seed=1)
    assert config_hash(first, second) != config_hash(second, first) != config_hash(first)
    assert config_hash(DataConfig()) != config_hash(TrainConfig())


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: ModelConfig(3), ModelError, "name must be a text, got 3"),
        (lambda: ModelConfig("x", (1, 28)), ModelError, r"image_shape must be 3 of: a whole number, got \(1, 28\)"),
        (lambda: ModelConfig("x", (1, 0, 28)), ModelError, "image_shape must be channels, height and width of at"),
        (lambda: ModelConfig("x", 28), ModelError, "image_shape must be 3 of: a whole number, got 28"),
        (lambda: ModelConfig("x", num_classes=1), ModelError, "num_classes must be at least 2, got 1"),
        (lambda: ModelConfig("x", num_classes=True), ModelError, "num_classes must be a whole number, got True"),
        (lambda: ModelConfig("x", iterations=0), ModelError, "iterations must be at least 1, got 0"),
        (lambda: ModelConfig("x", iterations=2.0), ModelError, "iterations must be a whole number, got 2.0"),
        (lambda: ModelConfig("x", width=-1), ModelError, "width must be at least 1, got -1"),
        (lambda: ModelConfig("x", squash_constant=0), ModelError, "squash_constant must be a number above 0, got 0"),
        (lambda: ModelConfig("x", squash_constant=float("inf")), ModelError, "squash_constant .* got inf"),
        (lambda: ModelConfig("x", decoder=1), ModelError, "decoder must be true or false, got 1"),
        (lambda: ModelConfig("x", caps_attention="each"), ModelError, "caps_attention must be one of none, element, "),
        (lambda: ModelConfig("x", gate="sigmoid"), ModelError, "x has no attention module that a sigmoid gate"),
        (lambda: ModelConfig("x", options={"a": 1}), ModelError, "options must be several of"),
        (lambda: DataConfig(source=None), DataError, "source must be a text, got None"),
        (lambda: DataConfig(validation=0), DataError, "validation must be above 0 and below 1, got 0"),
        (lambda: DataConfig(test=1.0), DataError, "test must be above 0 and below 1, got 1.0"),
        (lambda: DataConfig(validation="a tenth"), DataError, "validation must be a number, got 'a tenth'"),
        (lambda: DataConfig(split_seed=-1), DataError, "split_seed must be at least 0, got -1"),
        (lambda: DataConfig(image_size=(32,)), DataError, r"image_size must be 2 of: a whole number, got \(32,\)"),
        (lambda: DataConfig(image_size=(5000, 1)), DataError, "image_size must be two numbers of pixels from 1 to"),
        (lambda: DataConfig(channels=4), DataError, "channels must be one of 1, 3, got 4"),
        (lambda: DataConfig(channels=True), DataError, "channels must be one of 1, 3, got True"),
        (lambda: DataConfig(camera="above"), DataError, "camera must be one of left, right, both, stereo, got 'above'"),
        (lambda: DataConfig(value_range=(1, 1)), DataError, "value_range must be two increasing numbers"),
        (lambda: DataConfig(value_range=(0, float("inf"))), DataError, "value_range must be two increasing numbers"),
        (lambda: DataConfig(value_range=(float("nan"), 1)), DataError, "value_range must be two increasing numbers"),
        (lambda: TrainConfig(epochs=None), ConfigError, "epochs must be a whole number, got None"),
        (lambda: TrainConfig(epochs="3"), ConfigError, "epochs must be a whole number, got '3'"),
        (lambda: TrainConfig(patience=0), ConfigError, "patience must be at least 1, got 0"),
        (lambda: TrainConfig(optimizer="adm"), ConfigError, "optimizer must be one of adam, adamw, sgd, got 'adm'"),
        (lambda: TrainConfig(schedule="linear"), ConfigError, "schedule must be one of constant, cosine, one-cycle"),
        (lambda: TrainConfig(grad_clip=0), ConfigError, "grad_clip must be above 0, got 0"),
        (lambda: TrainConfig(epsilon=float("nan")), ConfigError, "epsilon must be above 0, got nan"),
        (lambda: TrainConfig(label_smoothing=1.0), ConfigError, "label_smoothing must be at least 0 and below 1, got"),
        (lambda: TrainConfig(ema=-0.1), ConfigError, "ema must be at least 0 and below 1, got -0.1"),
        (lambda: TrainConfig(warmup_epochs=-1), ConfigError, "warmup_epochs must be at least 0, got -1"),
        (lambda: TrainConfig(weight_decay=float("inf")), ConfigError, "weight_decay must be at least 0, got inf"),
        (lambda: TrainConfig(class_weight="even"), ConfigError, "class_weight must be one of balanced or several of"),
        (lambda: TrainConfig(class_weight=(1.0, -1)), ConfigError, "class_weight must be weights of at least 0"),
        (lambda: TrainConfig(seed=2**32), ConfigError, "seed must be from 0 to 4294967295"),
        (lambda: TrainConfig(augment="shift,flp"), ConfigError, "augment: 'flp' is not one of policy, .* shift, crop"),
        (lambda: TrainConfig(augment=""), ConfigError, "augment: '' is not one of policy"),
        (lambda: TrainConfig(augment="none,flip"), ConfigError, "augment: 'none' is not one of"),
        (lambda: TrainConfig(device="c\nuda", lr="a\nb"), ConfigError, "lr must be a number, got"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_in_one_line(build: Callable[[], Any], error: type[Exception], said: str):
    with pytest.raises(error, match=f"^{said}") as caught:
        build()
    assert isinstance(caught.value, DualcapsError)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_fields_are_named_and_those_with_defaults_may_be_missing():
    assert from_json(TrainConfig, {"epochs": 3}) == TrainConfig(epochs=3)
    assert from_json(ModelConfig, {"name": "x", "options": {"b": [1, [2]], "a": 1}}).options == (
        ("a", 1), ("b", (1, (2,)))
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"fields of ModelConfig are missing or unknown: name$"):
        from_json(ModelConfig, {})
    with pytest.raises(ValueError, match=r"fields of TrainConfig are missing or unknown: epoch, lrate$"):
        from_json(TrainConfig, {"epoch": 3, "lrate": 1})
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        from_json(TrainConfig, {"epochs": 0})


def test_a_configuration_cannot_be_changed_afterwards():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
