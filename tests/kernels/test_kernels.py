"""The kernels for the CPU: the same numbers as torch's operations, forward and backward."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dualcaps import TrainConfig, create_model, fit, kernels, load_data, predict
from dualcaps.config import Precision

BUILDS = sys.platform == "linux" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
ALL = ("conv2d", "max_pool2d", "route")
ROUNDED = ("max_pool2d", "route")  # in bfloat16
pytestmark = pytest.mark.skipif(not BUILDS, reason="needs Linux and AVX2")


def random_layer(
    *, images: int = 2, inputs: int = 16, outputs: int = 8, rows: int = 9, columns: int = 9, kernel: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, filters and a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((images, inputs, rows, columns), (outputs, inputs, kernel, kernel), (outputs,))
    input, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return input, weight / (inputs * kernel**2) ** 0.5, bias


def gradients(output: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a sum of the outputs with fixed random weights."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((output * weights).sum(), leaves)


def assert_convolves(
    convolve: Callable[[Tensor, Tensor, Tensor | None, int], Tensor],
    layer: dict[str, int],
    padding: int,
    *,
    with_bias: bool,
    channels_last: bool,
) -> None:
    """Compare values and gradients of a random layer with those of torch in float64."""
    input, weight, bias = random_layer(**layer)
    if channels_last:
        input, weight = (values.contiguous(memory_format=torch.channels_last) for values in (input, weight))
    leaves = [values.requires_grad_() for values in (input, weight, *([bias] if with_bias else []))]
    exact = [values.detach().double().requires_grad_() for values in leaves]
    expected = nn.functional.conv2d(*exact, padding=padding)
    found = convolve(input, weight, bias if with_bias else None, padding)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)
    for ours, theirs in zip(gradients(found.double(), *leaves), gradients(expected, *exact), strict=True):
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5 * largest, rtol=0)


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels in the order of their calls from now on."""
    calls: list[str] = []

    def record(name: str) -> None:
        original = getattr(kernels, name)

        def recorded(*given: Any, **more: Any) -> Any:
            calls.append(name)
            return original(*given, **more)

        monkeypatch.setattr(kernels, name, recorded)

    for name in (*ALL, "few_channels_conv2d"):
        record(name)
    return calls


@pytest.mark.slow
@given(
    layer=st.fixed_dictionaries(
        {
            "images": st.integers(1, 5),
            # Of one to three panels, whose last are whole, half full or narrower than a register.
            "inputs": st.sampled_from([8, 18, 24, 40, 72]),
            "outputs": st.sampled_from([8, 16, 40, 64]),
            "rows": st.integers(3, 14),
            "columns": st.integers(3, 14),
            "kernel": st.sampled_from([2, 3]),
        }
    ),
    padding=st.integers(0, 1),
    with_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_a_direct_convolution(
    folder: Path, layer: dict[str, int], padding: int, with_bias: bool, channels_last: bool
):
    assert_convolves(kernels.conv2d, layer, padding, with_bias=with_bias, channels_last=channels_last)


@pytest.mark.slow
@given(
    layer=st.fixed_dictionaries(
        {
            "images": st.integers(0, 5),
            "inputs": st.integers(1, 5),
            "outputs": st.sampled_from([16, 48, 64]),
            "rows": st.integers(5, 14),
            "columns": st.integers(5, 14),
            "kernel": st.sampled_from([2, 3, 5]),
        }
    ),
    padding=st.integers(0, 2),
    with_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_few_channels_are_convolved_as_by_torch(
    folder: Path, layer: dict[str, int], padding: int, with_bias: bool, channels_last: bool
):
    assert_convolves(kernels.few_channels_conv2d, layer, padding, with_bias=with_bias, channels_last=channels_last)


@pytest.mark.slow
@given(
    images=st.integers(0, 3),
    channels=st.integers(1, 40),
    rows=st.integers(2, 9),
    columns=st.integers(2, 9),
    ceil_mode=st.booleans(),
    channels_last=st.booleans(),
    values=st.sampled_from([1, 1000]),  # a few, so that many are equal, or many
    nan=st.booleans(),
    number_type=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pooling_is_that_of_torch_to_the_bit(
    folder: Path,
    images: int,
    channels: int,
    rows: int,
    columns: int,
    ceil_mode: bool,
    channels_last: bool,
    values: int,
    nan: bool,
    number_type: torch.dtype,
):
    generator = torch.Generator().manual_seed(0)
    input = torch.randint(-values, values + 1, (images, channels, rows, columns), generator=generator).to(number_type)
    if nan:
        input[torch.rand(input.shape, generator=generator) < 0.1] = torch.nan
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    input.requires_grad_()
    expected = nn.functional.max_pool2d(input, 2, ceil_mode=ceil_mode)
    found = kernels.max_pool2d(input, ceil_mode=ceil_mode)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)
    for ours, theirs in zip(gradients(found, input), gradients(expected, input), strict=True):
        assert torch.equal(ours, theirs)


def test_pooling_of_images_smaller_than_the_windows_is_refused(folder: Path):
    with pytest.raises(RuntimeError, match="smaller than the windows"):
        kernels.max_pool2d(torch.rand(1, 8, 1, 4), ceil_mode=False)
    assert kernels.max_pool2d(torch.rand(1, 8, 1, 3), ceil_mode=True).shape == (1, 8, 1, 2)
    chosen = torch.zeros(1, 8, 2, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="float32 or bfloat16, got Double"):
        kernels.max_pool2d(torch.rand(1, 8, 4, 4).double(), ceil_mode=False)
    with pytest.raises(RuntimeError, match="shape of the outputs"):
        torch.ops.dualcaps_cpu.max_pool2d_backward(torch.rand(1, 8, 2, 3), chosen, 4, 4, False)


def test_more_tiles_than_a_block_and_no_images(folder: Path):
    for images in (0, 3):
        input, weight, bias = random_layer(images=images, rows=40, columns=37)
        expected = nn.functional.conv2d(input, weight, bias, padding=1)
        torch.testing.assert_close(kernels.conv2d(input, weight, bias, 1), expected, atol=2e-5, rtol=0)
        ours, theirs = (
            gradients(convolve(weight.requires_grad_()).double(), weight)[0]
            for convolve in (
                lambda weight, input=input: kernels.conv2d(input, weight, None, 1),
                lambda weight, input=input: nn.functional.conv2d(input, weight, padding=1),
            )
        )
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_repeated_to_the_bit_and_outputs_independent_of_the_threads(folder: Path):
    input, weight, bias = random_layer(images=7, rows=30)
    weight.requires_grad_()
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, second = (kernels.conv2d(input, weight, bias, 1) for _ in range(2))
            assert torch.equal(*(gradients(found.double(), weight)[0] for found in (first, second)))
            outputs.append(first)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_torch_can_trace_it(folder: Path):
    input, weight, bias = (values.requires_grad_() for values in random_layer())
    for arguments in ((input, weight, bias, 1), (input, weight, None, 0)):
        torch.library.opcheck(torch.ops.dualcaps_cpu.conv2d.default, arguments)
    for channels in (1, 3):
        input, weight, bias = (values.requires_grad_() for values in random_layer(inputs=channels, outputs=16))
        for arguments in ((input, weight, bias, 1), (input.detach(), weight, None, 0)):
            torch.library.opcheck(torch.ops.dualcaps_cpu.few_channels_conv2d.default, arguments)
    input = torch.rand(2, 16, 9, 9).requires_grad_()
    for ceil_mode in (False, True):
        for values in (input, input.detach().bfloat16().requires_grad_()):
            torch.library.opcheck(torch.ops.dualcaps_cpu.max_pool2d.default, (values, ceil_mode))


def test_shapes_that_the_kernels_do_not_take_are_refused(folder: Path):
    for options, reason in (({"outputs": 12}, "multiples of 8"), ({"kernel": 5}, "2x2 or 3x3")):
        with pytest.raises(RuntimeError, match=reason):
            kernels.conv2d(*random_layer(**options), 0)
    input, weight, bias = random_layer()
    with pytest.raises(RuntimeError, match="float32"):
        kernels.conv2d(input.double(), weight.double(), bias.double(), 0)
    with pytest.raises(RuntimeError, match="smaller than the filters"):
        kernels.conv2d(input[:, :, :2], weight, bias, 0)
    few_channels_backward = torch.ops.dualcaps_cpu.few_channels_conv2d_backward
    input, weight, _ = random_layer(inputs=3, outputs=16)
    with pytest.raises(RuntimeError, match="shape of the outputs"):
        few_channels_backward(torch.rand(2, 16, 7, 8), input, weight, 0)
    with pytest.raises(RuntimeError, match="float32"):
        few_channels_backward(torch.rand(2, 16, 7, 7), input.bfloat16(), weight, 0)
    with pytest.raises(RuntimeError, match="multiple of"):
        few_channels_backward(torch.rand(2, 12, 7, 7), input, weight[:12], 0)


def test_layers_that_gain_are_taken():
    assert kernels.takes_convolution(nn.Conv2d(64, 64, 3))
    assert kernels.takes_convolution(nn.Conv2d(24, 64, 3, padding=1, bias=False))
    assert kernels.takes_convolution(nn.Conv2d(64, 128, 2))
    assert kernels.takes_convolution(nn.Conv2d(18, 16, 3))
    for layer in (
        nn.Conv2d(12, 64, 3),
        nn.Conv2d(64, 8, 3),
        nn.Conv2d(64, 65, 3),
        nn.Conv2d(64, 64, 3, stride=2),
        nn.Conv2d(64, 64, 3, dilation=2),
        nn.Conv2d(64, 64, 3, groups=2),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, (3, 2)),
        nn.Conv2d(64, 64, 5),
    ):
        assert not kernels.takes_convolution(layer), layer
    assert kernels.takes_few_channels(nn.Conv2d(3, 64, 3))
    assert kernels.takes_few_channels(nn.Conv2d(1, 16, 5, padding=2, bias=False))
    for layer in (
        nn.Conv2d(5, 64, 3),
        nn.Conv2d(3, 24, 3),
        nn.Conv2d(1, 64, 9),
        nn.Conv2d(3, 64, 3, stride=2),
        nn.Conv2d(3, 64, 3, padding="same"),
        nn.Conv2d(3, 64, 3, padding=(0, 1)),
        nn.Conv2d(3, 64, 3, padding=1, padding_mode="reflect"),
    ):
        assert not kernels.takes_few_channels(layer), layer


@pytest.mark.parametrize(
    ("compiler", "message"), [("missing-c++", "no compiler missing-c++: install one"), ("false", "false failed")]
)
def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, compiler: str, message: str):
    monkeypatch.setattr(kernels, "_loaded", False)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(OSError, match=message.replace("+", r"\+")):
        kernels.load()


@pytest.mark.slow
def test_the_compiled_library_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("CXX", "missing-c++")
    code = "from dualcaps import kernels; kernels.load()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_permission_to_compile_it_needs_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "_loaded", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"no file .*\.so"):
        kernels.load(compile=False)


def test_prediction_of_many_images_uses_them_unless_it_has_to_repeat_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = recorded_calls(monkeypatch)
    torch.manual_seed(0)
    model = create_model("da-capsnet-r", (1, 20, 20), 3, width=16)
    images = torch.randint(256, (16, 1, 20, 20), dtype=torch.uint8)
    expected, rounded = predict(model, images), predict(model, images, precision="bfloat16")
    assert not calls
    torch.use_deterministic_algorithms(False)
    try:
        predict(model, images[1:])
        predict(model, images[1:], precision="bfloat16")
        model(images)
        assert not calls
        torch.testing.assert_close(predict(model, images, precision="bfloat16"), rounded, atol=1e-3, rtol=0)
        assert set(calls) == set(ROUNDED)
        torch.testing.assert_close(predict(model, images), expected, atol=1e-5, rtol=0)
        assert set(calls) == set(ALL)
    finally:
        torch.use_deterministic_algorithms(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "precision", "used"),
    [
        ("da-capsnet-r", "float32", ALL),
        ("da-capsnet-r", "bfloat16", ROUNDED),
        ("capsnet", "float32", ("conv2d", "few_channels_conv2d")),
    ],
)
def test_deterministic_training_uses_them_and_repeats_to_the_bit(
    folder: Path,
    shapes_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    precision: Precision,
    used: tuple[str, ...],
):
    calls = recorded_calls(monkeypatch)
    data = load_data(shapes_folder)
    config = TrainConfig(epochs=3, batch_size=16, precision=precision, device="cpu", deterministic=True)

    def train(name: str, epochs: int, *, resume: bool = False, deterministic: bool = True) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = create_model(network, data.image_shape, len(data.classes), width=16)
        options = dataclasses.replace(config, epochs=epochs, deterministic=deterministic)
        fit(model, data, options, out=tmp_path / name, resume=resume, quiet=True, pictures=False)
        return model.state_dict()

    train("eager", 1, deterministic=False)
    assert not calls
    once = train("once", 3)
    assert set(calls) == set(used)
    train("twice", 2)
    twice = train("twice", 3, resume=True)
    assert all(torch.equal(once[name], twice[name]) for name in once)
