"""Options derive from the configurations."""

import dataclasses

import pytest

from dualcaps import ConfigError
from dualcaps.cli import options
from dualcaps.config import DataConfig, ModelConfig, TrainConfig


@pytest.mark.parametrize("config", [DataConfig, ModelConfig, TrainConfig])
def test_every_field_is_documented(config: type):
    docs = options.attribute_docs(config)
    assert list(docs) == [field.name for field in dataclasses.fields(config)]
    assert all(doc.endswith((".", "…")) and "\n" not in doc for doc in docs.values())


def test_every_field_has_an_option_with_its_default():
    assert DataConfig(**vars(options.DataOptions())) == DataConfig()
    assert [field.name for field in dataclasses.fields(options.TrainingOptions)] == [
        field.name for field in dataclasses.fields(TrainConfig)
    ]
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {field.name for field in dataclasses.fields(options.NetworkOptions)} == fields - {
        *("name", "image_shape", "num_classes", "options")
    }


def test_a_new_field_becomes_an_option():
    @dataclasses.dataclass(frozen=True)
    class Config:
        """A configuration.

        Attributes:
            size: How large it is, in
                several lines.
            fast: Hurry.
        """

        size: int = 3
        fast: bool = True

    derived = options._options_of("Derived", Config, description="")
    assert vars(derived()) == {"size": 3, "fast": True}
    assert options.attribute_docs(Config)["size"] == "How large it is, in several lines."


def test_options_that_were_not_given_are_left_to_the_network_or_the_recipe():
    assert options.given_options(options.TrainingOptions()) == {}
    assert options.given_options(options.NetworkOptions()) == {}
    given = options.NetworkOptions(decoder=False, conv_attention=True, width=64)
    assert options.given_options(given) == {"decoder": False, "conv_attention": True, "width": 64}


def test_further_options_are_json_or_text():
    pairs = ["heads=4", "pool-size=[1, 2]", "mode=soft", "bias=false", "note=a=b", "empty="]
    assert options.parse_options(pairs) == {
        "heads": 4, "pool_size": [1, 2], "mode": "soft", "bias": False, "note": "a=b", "empty": "",
    }  # fmt: skip
    for pairs, wanted in ((["heads"], "--options heads: write NAME=VALUE"), (["a=1", "a=2"], "--options a: is given")):
        with pytest.raises(ConfigError, match=wanted):
            options.parse_options(pairs)
