"""The networks as a user builds and calls them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcaps import (
    MODELS,
    ModelError,
    Network,
    RunError,
    count_parameters,
    create_model,
    load_model,
    route,
    wrap_module,
)
from dualcaps.models import describe

GOLDEN = json.loads((Path(__file__).parent / "golden" / "parameter_counts.json").read_text())
WITHOUT_CAPSULES = ("cnn", "resnet-r")
CAPSULE_NETWORKS = [name for name in MODELS if name not in WITHOUT_CAPSULES]


def test_every_network_has_its_golden_parameter_counts():
    assert set(GOLDEN) == set(MODELS)
    for name, shapes in GOLDEN.items():
        for text, (without, with_decoder) in shapes.items():
            height, width, channels = map(int, text.split("x"))
            shape = (channels, height, width)
            with torch.device("meta"):
                if with_decoder is None:
                    assert count_parameters(create_model(name, shape)) == without
                else:
                    assert count_parameters(create_model(name, shape, decoder=False)) == without
                    assert count_parameters(create_model(name, shape, decoder=True)) == with_decoder


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=4)
@given(
    height=st.integers(24, 40),
    width=st.integers(24, 40),
    channels=st.sampled_from([1, 2, 3]),
    classes=st.integers(2, 6),
)
def test_any_image_shape_and_class_count_works(name: str, height: int, width: int, channels: int, classes: int):
    model = create_model(name, (channels, height, width), classes).eval()
    with torch.inference_mode():
        output = model(torch.rand(2, channels, height, width))
    assert output.lengths.shape == (2, classes)
    assert output.lengths.min() >= 0
    assert output.lengths.max() <= 1
    if name in WITHOUT_CAPSULES:
        torch.testing.assert_close(output.lengths.sum(dim=1), torch.ones(2))
        assert output.poses.shape == (2, classes, 0)
    else:
        torch.testing.assert_close(output.poses.norm(dim=-1), output.lengths)
    if model.decoder is not None:
        assert model.reconstruct(output.poses).shape == (2, channels, height, width)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_too_small_is_refused_with_the_smallest_size_that_works(name: str):
    with pytest.raises(ModelError, match="too small") as caught:
        create_model(name, (1, 2, 2))
    smallest = int(str(caught.value).split("at least ")[1].split("x")[0])
    create_model(name, (1, smallest, smallest))
    with pytest.raises(ModelError, match="too small"):
        create_model(name, (1, smallest, smallest - 1))


def test_the_two_columns_of_table_3_end_in_a_10x10_grid_of_128_channels():
    for shape in ((1, 28, 28), (3, 32, 32)):
        features = create_model("capsnet", shape).trunk(torch.rand(1, *shape))
        assert features.shape == (1, 128, 10, 10)
    wide = create_model("capsnet", (3, 32, 32), extra_conv=True)
    assert wide.trunk(torch.rand(1, 3, 32, 32)).shape == (1, 256, 8, 8)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_has_the_same_output_alone_and_in_a_batch(name: str):
    torch.manual_seed(0)
    model = create_model(name).eval()
    images = torch.rand(256, 1, 28, 28)
    with torch.inference_mode():
        together = model(images).lengths
        alone = torch.cat([model(images[i : i + 1]).lengths for i in (0, 100, 255)])
    torch.testing.assert_close(alone, together[[0, 100, 255]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["none", "element", "capsule", "shared"])
def test_caps_attention_can_be_switched(kind: str):
    model = create_model("da-capsnet", (1, 12, 12), 3, caps_attention=kind)
    assert model(torch.rand(2, 1, 12, 12)).lengths.shape == (2, 3)


def test_each_switch_changes_the_answer():
    images = torch.rand(2, 1, 28, 28)

    def lengths(**switches):
        torch.manual_seed(0)
        return create_model("capsnet", **switches)(images).lengths

    plain = lengths()
    torch.testing.assert_close(lengths(decoder=False), plain)
    assert (lengths(conv_attention=True, gate="sigmoid") - lengths(conv_attention=True)).abs().max() > 1e-6
    for switches in (
        {"iterations": 1},
        {"width": 32},
        {"update": "replace"},
        {"squash_constant": 1.0},
        {"conv_attention": True},
    ):
        assert (lengths(**switches) - plain).abs().max() > 1e-6, switches


@pytest.mark.parametrize("name", ["da-capsnet", "da-capsnet-r", "resnet-r", "cnn", "sabour-capsnet"])
def test_a_network_sees_a_part_of_standardised_images(name: str):
    torch.manual_seed(0)
    model = create_model(name, (2, 40, 44), 3, crop=(28, 28), standardise=True).eval()
    images = torch.rand(4, 2, 40, 44)
    lengths = model(images).lengths
    changed = images.clone()
    changed[:, :, :6] = 0.5  # above the centre
    torch.testing.assert_close(model(changed * 0.5 + 0.2).lengths, lengths, atol=2e-5, rtol=1e-4)
    changed[:, :, 6:10] = 0.5
    assert not torch.allclose(model(changed).lengths, lengths, atol=1e-4)
    inside = create_model(name, (2, 28, 28), 3)
    if model.decoder is None:
        assert count_parameters(model) == count_parameters(inside)
    model.train()
    first, second = (model(images).lengths for _ in range(2))
    assert not torch.equal(first, second)  # other parts


@pytest.mark.parametrize("name", ["capsnet", "da-capsnet"])
def test_lengths_start_small_on_a_trunk_with_large_features(name: str):
    images = torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model: Any = create_model(name, (1, 32, 32), 10, trunk="residual", grid=4, decoder=False, width=16)
    assert model(images).lengths.mean() > 0.7
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval().initialise_from_data(images)
    assert not model.training
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in changed if "whiten" not in name} == {"votes.scale"}  # no BatchNorm's averages
    assert 0.15 < model.train()(images).lengths.mean() < 0.45


def test_width_is_the_channels_of_the_first_convolutions_and_the_others_follow():
    trunk = create_model("capsnet", (3, 32, 32), width=10, extra_conv=True).trunk
    channels = [layer.out_channels for layer in trunk.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert channels == [10, 10, 20, 20, 40]


def test_a_network_is_described_by_what_differs_from_its_name():
    assert describe(create_model("da-capsnet").config) == "da-capsnet"
    assert describe(create_model("da-capsnet", (3, 40, 40), 7).config) == "da-capsnet"
    other = create_model("capsnet", iterations=1, update="replace", extra_conv=True, decoder=False)
    assert describe(other.config) == "capsnet, with extra_conv, iterations 1, update replace, no decoder"


def test_reconstruction_uses_the_predicted_class_by_default():
    model = create_model("capsnet", (1, 12, 12), 3)
    output = model(torch.rand(4, 1, 12, 12))
    predicted = output.lengths.argmax(dim=1)
    torch.testing.assert_close(model.reconstruct(output.poses), model.reconstruct(output.poses, predicted))
    other = (predicted + 1) % 3
    assert not torch.allclose(model.reconstruct(output.poses, other), model.reconstruct(output.poses))


@pytest.mark.parametrize(
    ("arguments", "switches", "said"),
    [
        (("capsnett",), {}, "unknown model 'capsnett'"),
        (("capsnet",), {"iteration": 3}, "unknown switch of capsnet 'iteration': did you mean 'iterations'"),
        (("capsnet",), {"iterations": 0}, "iterations must be at least 1"),
        (("capsnet",), {"width": 0}, "width must be at least 1"),
        (("da-capsnet",), {"gate": "softmax"}, "gate must be one of tanh, sigmoid, additive"),
        (("cnn",), {"width": 32}, "cnn has no width"),
        (("cnn", (1, 28, 28)), {"crop": (32, 28)}, "crop must be two numbers of pixels within the images' 28 x 28"),
        (("capsnet",), {"gate": "sigmoid"}, "capsnet has no attention module that a sigmoid gate could be in"),
        (("capsnet",), {"squash_constant": -1.0}, "squash_constant must be a number above 0"),
        (("capsnet",), {"caps_attention": "both"}, "caps_attention must be one of"),
        (("capsnet",), {"update": "add"}, "update must be one of"),
        (("capsnet", (1, 28, 28), 1), {}, "num_classes must be at least 2"),
        (("capsnet", (0, 28, 28)), {}, "image_shape"),
        (("da-capsnet", (3, 512, 512), 1000), {}, "parameters and needs"),
        (("cnn",), {"caps_attention": "element"}, "cnn has no caps_attention"),
        (("cnn",), {"decoder": True}, "cnn has no decoder"),
        (("sabour-capsnet",), {"extra_conv": True}, "sabour-capsnet has no extra_conv"),
    ],
)
def test_mistakes_are_named(arguments, switches, said: str):
    with pytest.raises(ModelError, match=said):
        create_model(*arguments, **switches)


def test_images_of_another_shape_and_a_missing_decoder_are_refused():
    model = create_model("capsnet", (1, 12, 12), 3, decoder=False)
    with pytest.raises(ModelError, match="12x12 pixels with 1 channel"):
        model(torch.rand(2, 3, 12, 12))
    with pytest.raises(ModelError, match="no decoder"):
        model.reconstruct(torch.rand(2, 3, 16))


def lengths_without_gradients(model: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(images).lengths


@pytest.mark.parametrize("name", ["capsnet", "da-capsnet", "cnn"])
def test_hooks_on_every_module_are_called_and_change_the_answer(name: str):
    torch.manual_seed(0)
    model = create_model(name, (1, 20, 20), 3)
    images = torch.rand(2, 1, 20, 20)
    plain = lengths_without_gradients(model, images)
    parts = ["trunk.conv1", "trunk.relu1", "trunk.conv2", "trunk.relu2"]
    parts += ["classifier"] if name == "cnn" else ["votes", "votes.transform", "caps_attention", "routing"]
    for part in parts:
        called = []
        hook = model.get_submodule(part).register_forward_hook(lambda *_, called=called: called.append(1))
        torch.testing.assert_close(lengths_without_gradients(model, images), plain, atol=1e-5, rtol=0)
        assert called == [1], part
        hook.remove()
    zeroed = model.get_submodule("trunk.relu1").register_forward_hook(lambda module, inputs, output: 0 * output)
    assert (lengths_without_gradients(model, images) - plain).abs().max() > 1e-3
    with torch.enable_grad():
        torch.testing.assert_close(model.eval()(images).lengths.detach(), lengths_without_gradients(model, images))
    zeroed.remove()
    gradients = []
    model.get_submodule("trunk.conv1").register_full_backward_hook(lambda *arguments: gradients.append(arguments))
    model(images.requires_grad_()).lengths.sum().backward()
    assert len(gradients) == 1


class Leaky(torch.nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.leaky_relu(input, 0.5)


def test_replaced_layers_are_used_with_and_without_gradients():
    torch.manual_seed(0)
    model: Any = create_model("capsnet", (1, 20, 20), 3).eval()
    images = torch.rand(2, 1, 20, 20)
    plain = lengths_without_gradients(model, images)
    model.trunk.relu1 = Leaky()
    changed = lengths_without_gradients(model, images)
    assert (changed - plain).abs().max() > 1e-4
    torch.testing.assert_close(model(images).lengths.detach(), changed, atol=1e-5, rtol=0)
    model.votes.transform = torch.nn.Sequential(model.votes.transform, torch.nn.Tanh())
    torch.testing.assert_close(
        model(images).lengths.detach(), lengths_without_gradients(model, images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", CAPSULE_NETWORKS)
def test_intermediates_are_the_parts_that_make_the_answer(name: str):
    torch.manual_seed(0)
    model: Any = create_model(name, (1, 28, 28), 4).eval()
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    found = model(images, intermediates=True)
    plain = model(images)
    torch.testing.assert_close(found.lengths, plain.lengths, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.poses, plain.poses, atol=1e-5, rtol=1e-4)
    if model.config.conv_attention:
        gated = found.features * (1 + found.conv_gates[:, :, None, None])
        torch.testing.assert_close(found.gated_features, gated)
    else:
        assert found.conv_gates is None
    if model.config.caps_attention != "none":
        torch.testing.assert_close(found.gated_votes, found.votes * (1 + found.caps_gates))
    else:
        assert found.caps_gates is None
    config = model.config
    routed = route(
        found.gated_votes, iterations=config.iterations, squash_constant=config.squash_constant, couplings=True
    )
    torch.testing.assert_close(found.couplings, routed.couplings)
    assert [len(found.iterations), len(found.iterations[0].logits.unique())] == [config.iterations, 1]
    torch.testing.assert_close(found.iterations[-1].couplings, found.couplings)


def test_a_wrapped_module_is_a_network_and_its_output_is_checked():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    model = wrap_module(module, (1, 8, 8), 5)
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model(images).lengths, module(images / 255).softmax(dim=1))
    loss = model.loss(model(images), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(module(images / 255), torch.tensor([0, 1, 2])))
    with pytest.raises(ModelError, match=r"Sequential must return logits \[batch, classes\] = \(3, 7\), got \(3, 5\)"):
        wrap_module(module, (1, 8, 8), 7)(images)
    assert wrap_module(module, (1, 8, 8), 5, name="mine").config.name == "mine"


def test_a_network_with_the_weights_of_a_run_answers_as_the_run_does(run: Path):
    model = create_model(pretrained=run).eval()
    trained = load_model(run, "cpu")
    images = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        assert model(images).lengths.equal(trained(images).lengths)
    assert (model.config, model.classes) == (trained.config, trained.classes)


def test_layers_of_another_shape_keep_fresh_weights(run: Path):
    trained = load_model(run, "cpu").state_dict()
    torch.manual_seed(1)
    fresh = create_model("capsnet", (1, 12, 12), 5).state_dict()
    torch.manual_seed(1)
    model = create_model(pretrained=run, num_classes=5)
    assert model.config.num_classes == 5
    assert not set(model.classes) & {"across", "down", "slanted"}
    kept = 0
    for name, weights in model.state_dict().items():
        fits = weights.shape == trained[name].shape
        kept += fits
        assert weights.equal(trained[name] if fits else fresh[name]), name
    assert 0 < kept < len(trained)


def test_weights_that_do_not_fit_are_refused(run: Path):
    with pytest.raises(ModelError, match="none of its weights fit resnet-r"):
        create_model("resnet-r", pretrained=run)
    with pytest.raises(RunError, match="no such run folder"):
        create_model(pretrained="nowhere")
