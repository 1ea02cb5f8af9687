"""Kernels for the CPU, in C++, compiled once for each version of torch; used by compiled and deterministic training
and, once compiled, by prediction.

- Convolutions by Winograd's minimal filtering (Lavin & Gray 2016, arXiv:1509.09308), of stride 1, take a quarter of the
  multiplications with 3x3 filters and 40 % of them with 2x2 filters; the error is about twice that of the direct sum.
  In float32 only.
- Convolutions of images with few channels, whose gradient by the filters oneDNN computes slowly in float32.
- Max pooling of 2x2 windows, whose gradient torch's compiler writes number by number; float32 or bfloat16.
- Dynamic routing, which reads the votes once in each iteration; float32 or bfloat16 votes, summed in float32.
"""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import platformdirs
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from dualcaps.config import Update
from dualcaps.runs.files import write_bytes

FEWEST_IMAGES = 16  # of a batch in eager code, which transforms the filters each time
_LANES = 8  # channels are computed together
_DIMS = (8, 16, 24, 32)  # of the votes
_TYPES = (torch.float32, torch.bfloat16)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_FEWEST = 16  # channels on either side; with fewer there is little to gain or a loss
_FEW = 4  # channels of images at most
_NAME = "dualcaps_cpu"
_FOLDER = Path(__file__).parent
_lock = threading.Lock()
_loaded = False
_in_eager_code = ContextVar("in_eager_code", default=False)
# torch 2.6 does not have it, and is compiled with on the CPU only to export.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def load(*, compile: bool = True) -> None:
    """Load the compiled kernels.

    Args:
        compile: whether to compile them (about 15 s) if this machine has not done so.

    Raises:
        OSError: not on Linux with AVX2, not compiled, or the compiler is missing or failed.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            raise OSError("not on Linux with a processor that has AVX2")
        library = platformdirs.user_cache_path("dualcaps") / "kernels" / f"cpu-{_digest()}.so"
        if not library.is_file():
            if not compile:
                raise OSError(f"no file {library}")
            _compile(library)
        torch.ops.load_library(str(library))
        _register()
        _loaded = True


@contextmanager
def used_in_eager_code() -> Iterator[None]:
    """Let code that is not compiled use the kernels, if they are loaded, in the with block."""
    before = _in_eager_code.set(True)
    try:
        yield
    finally:
        _in_eager_code.reset(before)


def are_used(input: Tensor) -> bool:
    """Whether operations on these images or votes may be computed by the kernels, on the CPU.

    They may be in code that is being compiled, and of at least `FEWEST_IMAGES` in `used_in_eager_code`.
    """
    if not _loaded or is_exporting() or input.device.type != "cpu" or input.dtype not in _TYPES:
        return False
    return torch.compiler.is_compiling() or (len(input) >= FEWEST_IMAGES and _in_eager_code.get())


def is_float32_on_cpu(input: Tensor) -> bool:
    """Whether the operations on this tensor are computed in float32 on the CPU and not exported."""
    return (
        not is_exporting()
        and input.device.type == "cpu"
        and input.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _has_stride_one(layer: nn.Conv2d) -> bool:
    """Whether a convolution sums every pixel under its filters, at each position, with zeros around the image."""
    plain = (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
    return plain and layer.padding_mode == "zeros"


def takes_convolution(layer: nn.Conv2d) -> bool:
    """Whether a convolution is faster by `conv2d`."""
    return (
        layer.kernel_size in ((2, 2), (3, 3))
        and layer.padding in ((0, 0), (1, 1))
        and _has_stride_one(layer)
        and layer.out_channels % _LANES == 0
        and min(layer.in_channels, layer.out_channels) >= _FEWEST
    )


def takes_few_channels(layer: nn.Conv2d) -> bool:
    """Whether the gradient of a convolution by its filters is faster by `few_channels_conv2d`."""
    return (
        layer.in_channels <= _FEW
        and layer.out_channels % 16 == 0
        and layer.kernel_size in ((2, 2), (3, 3), (5, 5))
        and layer.padding in ((0, 0), (1, 1), (2, 2))
        and _has_stride_one(layer)
    )


def few_channels_conv2d(
    input: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs rows columns"],
    bias: Float[Tensor, "outputs"] | None,
    padding: int,
) -> Float[Tensor, "batch outputs rows columns"]:
    """As `torch.nn.functional.conv2d`, float32 on the CPU, differentiable; the result lies channels last.

    Args:
        input: the images, of a few channels.
        weight: the filters; outputs are a multiple of 16.
        bias: added to the result.
        padding: rows and columns of zeros on each side.

    Raises:
        RuntimeError: in the backward pass, shapes or types that the kernel does not take.
    """
    return getattr(torch.ops, _NAME).few_channels_conv2d(input, weight, bias, padding)


def conv2d(
    input: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs kernel kernel"],
    bias: Float[Tensor, "outputs"] | None,
    padding: int,
) -> Float[Tensor, "batch outputs rows columns"]:
    """As `torch.nn.functional.conv2d`, float32 on the CPU, differentiable; the result lies channels last.

    Args:
        input: the images; channels of zeros are added up to a multiple of 8.
        weight: 2x2 or 3x3 filters; outputs are a multiple of 8.
        bias: added to the result.
        padding: rows and columns of zeros on each side.

    Raises:
        RuntimeError: shapes or types that the kernels do not take.
    """
    missing = -input.shape[1] % _LANES
    if missing:
        input, weight = (nn.functional.pad(values, (0, 0, 0, 0, 0, missing)) for values in (input, weight))
    return getattr(torch.ops, _NAME).conv2d(input, weight, bias, padding)


def max_pool2d(
    input: Float[Tensor, "batch channels height width"], *, ceil_mode: bool
) -> Float[Tensor, "batch channels rows columns"]:
    """As `torch.nn.functional.max_pool2d` of 2x2 windows on the CPU, differentiable; the result lies channels last."""
    return getattr(torch.ops, _NAME).max_pool2d(input, ceil_mode)[0]


def takes_votes(votes: Float[Tensor, "batch parents children dim"]) -> bool:
    """Whether `route` has a kernel for these votes."""
    return votes.shape[3] in _DIMS


def route(
    votes: Float[Tensor, "batch parents children dim"], iterations: int, squash_constant: float, update: Update
) -> Float[Tensor, "batch parents dim"]:
    """The parents in float32, by dynamic routing on the CPU, differentiable; see `dualcaps.route` for the arguments.

    Votes may lie in any order in memory and are not copied if those of a vote lie side by side.

    Raises:
        RuntimeError: shapes or types that the kernels do not take.
    """
    return getattr(torch.ops, _NAME).route(votes, iterations, squash_constant, update == "accumulate")[0]


@functools.cache
def _options() -> list[str]:
    """Options of the compiler."""
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    return [
        *("-std=c++20" if torch.__version__ >= "2.10" else "-std=c++17", "-O3", "-mavx2", "-mfma", "-fopenmp"),
        *(_AVX512 if torch.backends.cpu.get_cpu_capability() == "AVX512" else ()),
        *("-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        *(f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"),
        *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]


@functools.cache
def _digest() -> str:
    """Identifies the sources, the options and the version of torch."""
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".h", ".cpp"))
    parts = [path.read_bytes() for path in sources] + [text.encode() for text in (*_options(), torch.__version__)]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:32]


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, library.name)
        command = [compiler, str(_FOLDER / "cpu.cpp"), *_options(), "-o", str(draft)]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except FileNotFoundError as error:
            raise OSError(f"no compiler {compiler}: install one, or set CXX") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(f"{compiler} failed: {said[0] if said else f'exit code {error.returncode}'}") from error
        write_bytes(library, draft.read_bytes())


def _register() -> None:
    """Tell torch the shapes and gradients of the operations."""
    torch.library.register_fake(f"{_NAME}::conv2d", _shape_of_output)
    torch.library.register_fake(f"{_NAME}::conv2d_backward", _shapes_of_gradients)
    torch.library.register_autograd(f"{_NAME}::conv2d", _backward, setup_context=_save)
    torch.library.register_fake(f"{_NAME}::few_channels_conv2d", _shape_of_output)
    torch.library.register_fake(f"{_NAME}::few_channels_conv2d_backward", _shapes_of_few_channels_gradients)
    torch.library.register_autograd(f"{_NAME}::few_channels_conv2d", _few_channels_backward, setup_context=_save)
    torch.library.register_fake(f"{_NAME}::max_pool2d", _shapes_of_pooled)
    torch.library.register_fake(f"{_NAME}::max_pool2d_backward", _shape_of_unpooled)
    torch.library.register_autograd(f"{_NAME}::max_pool2d", _pool_backward, setup_context=_save_choices)
    torch.library.register_fake(f"{_NAME}::route", _shapes_of_routing)
    torch.library.register_fake(f"{_NAME}::route_backward", lambda _gradient, votes, *_: torch.empty_like(votes))
    torch.library.register_autograd(f"{_NAME}::route", _route_backward, setup_context=_save_routing)


def _shape_of_output(input: Tensor, weight: Tensor, _bias: Tensor | None, padding: int) -> Tensor:
    sides = (side + 2 * padding - kernel + 1 for side, kernel in zip(input.shape[2:], weight.shape[2:], strict=True))
    found = input.new_empty((len(input), len(weight), *sides))
    return found.contiguous(memory_format=torch.channels_last)


def _shapes_of_gradients(_gradient: Tensor, input: Tensor, weight: Tensor, _padding: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input, memory_format=torch.channels_last), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], **_output: Tensor) -> None:
    input, weight, _, ctx.padding = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    by_input, by_weight = getattr(torch.ops, _NAME).conv2d_backward(gradient, input, weight, ctx.padding)
    by_bias = gradient.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
    return by_input, by_weight, by_bias, None


def _shapes_of_few_channels_gradients(
    _gradient: Tensor, _input: Tensor, weight: Tensor, _padding: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(len(weight))


def _few_channels_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    by_input = None
    if ctx.needs_input_grad[0]:
        by_input = conv2d_input(input.shape, weight, gradient, padding=ctx.padding)
    backward = getattr(torch.ops, _NAME).few_channels_conv2d_backward
    by_weight, by_bias = backward(gradient, input, weight, ctx.padding)
    return by_input, by_weight, by_bias if ctx.needs_input_grad[2] else None, None


def _shapes_of_pooled(input: Tensor, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    sides = ((side + int(ceil_mode)) // 2 for side in input.shape[2:])
    found = input.new_empty((*input.shape[:2], *sides)).contiguous(memory_format=torch.channels_last)
    return found, torch.empty_like(found, dtype=torch.uint8)


def _shape_of_unpooled(gradient: Tensor, _chosen: Tensor, rows: int, columns: int, _ceil_mode: bool) -> Tensor:
    found = gradient.new_empty((*gradient.shape[:2], rows, columns))
    return found.contiguous(memory_format=torch.channels_last)


def _save_choices(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.ceil_mode = inputs
    ctx.sides = input.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _pool_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (chosen,) = ctx.saved_tensors
    backward = getattr(torch.ops, _NAME).max_pool2d_backward
    return backward(gradient, chosen, *ctx.sides, ctx.ceil_mode), None


def _shapes_of_routing(
    votes: Tensor, iterations: int, _squash_constant: float, _accumulate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, parents, children, dim = votes.shape
    poses = votes.new_empty((batch, iterations, parents, dim), dtype=torch.float32)
    couplings = poses.new_empty((batch, iterations - 1, children, parents))
    return poses.new_empty((batch, parents, dim)), poses, torch.empty_like(poses), couplings


def _save_routing(
    ctx: Any, inputs: tuple[Tensor, int, float, bool], output: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    votes, _, ctx.squash_constant, ctx.accumulate = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(votes, *output[1:])


def _route_backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
    backward = getattr(torch.ops, _NAME).route_backward
    return backward(gradient, *ctx.saved_tensors, ctx.squash_constant, ctx.accumulate), None, None, None
