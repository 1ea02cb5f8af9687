"""One training step: forward, loss, backward, optimizer; compiled during a run if that saves time."""

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import platformdirs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualcaps import kernels
from dualcaps.config import Compile, to_json
from dualcaps.data.augment import Overlap
from dualcaps.errors import first_line
from dualcaps.losses import reconstruction_loss
from dualcaps.models import CapsNet, Network
from dualcaps.nn import Conv2d, MaxPool2d, to_unit_range
from dualcaps.robustness.overlap import both_found
from dualcaps.runs.files import write_bytes

_WARM_UP, _TIMED = 3, 10
# The share of time that compiling saves, in bfloat16 and in float32, and its duration, as long as this machine has not
# measured them.
_USUAL_GAIN, _USUAL_GAIN_FLOAT32, _USUAL_SECONDS = 0.2, 0.25, 25.0
_COMPILES_ON_CPU = "2.9"  # with torch 2.6 and 2.7, compiled routing after Caps-Attention aborts the process


class Outcome(NamedTuple):
    """Results of a step, on the device and not synchronised with the host.

    loss: the mean over the batch.
    correct: number of correctly predicted images; with overlap, of those whose two classes are the two longest.
    """

    loss: Float[Tensor, ""]
    correct: Int[Tensor, ""]


@dataclass(frozen=True)
class Measured:
    """Duration in seconds of compiling, and of a step before and after it."""

    compiling: float
    eager: float
    compiled: float


class _Computation(nn.Module):
    """A network's loss as a module, whose backward pass DistributedDataParallel can follow."""

    def __init__(self, model: Network, compute: Callable[[Tensor, Tensor, Overlap | None], Outcome]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, images: Tensor, labels: Tensor, overlap: Overlap | None) -> Outcome:
        return self.compute(images, labels, overlap)


class TrainingStep:
    """Updates a network's weights from one batch, each time it is called.

    It starts with eager operations. With compile="auto" it times the first steps and compiles forward and
    backward if the remaining steps will save more time than compiling takes, judged by earlier measurements of
    the same network on this machine, otherwise by a conservative estimate. Then compiled and eager steps take turns,
    so that other work on the machine slows both alike; if the compiled ones are slower, or compiling fails, it returns
    to eager operations. Smaller batches, such as an epoch's last, are never compiled. On CUDA the compiled step is
    replayed as a CUDA graph.

    Args:
        model: on its device.
        optimizer: of its parameters.
        batch_size: images in a full batch.
        steps: remaining full batches.
        reconstruction_weight, label_smoothing, class_weight: see `Network.loss`.
        grad_clip: largest norm of the gradient; None does not clip.
        schedule: the learning rate of each step, counted over the whole training; None keeps it constant.
        first_step: the number of the first step.
        parallel: whether gradients are averaged over the processes of torch.distributed.
        eager_kernels: whether eager steps, too, are computed by `dualcaps.kernels`, which are compiled for it.
        bfloat16: whether the layers compute in bfloat16.
        compile: see `TrainConfig.compile`.
        log: called with one line when compiling begins, ends or fails.

    Attributes:
        compiled: whether full batches are currently compiled.
    """

    def __init__(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        steps: int,
        reconstruction_weight: float,
        bfloat16: bool,
        compile: Compile,
        log: Callable[[str], None],
        label_smoothing: float = 0.0,
        class_weight: Float[Tensor, "classes"] | None = None,
        grad_clip: float | None = None,
        schedule: Callable[[int], float] | None = None,
        first_step: int = 0,
        parallel: bool = False,
        eager_kernels: bool = False,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._grad_clip, self._schedule, self._number = grad_clip, schedule, first_step
        self._batch_size, self._steps_left, self._log = batch_size, steps, log
        self._device = next(model.parameters()).device
        self._eager_times: list[float] = []
        self._compiled_times: list[float] = []
        if compile != "never" and self._device.type == "cpu" and torch.__version__ < _COMPILES_ON_CPU:
            compile = "never"
            log(f"not compiled: torch {torch.__version__} compiles routing on the CPU wrongly: update torch")
        self._undecided, self._unjudged = compile == "auto", False
        self._usual_gain = _USUAL_GAIN if bfloat16 or self._device.type != "cpu" else _USUAL_GAIN_FLOAT32
        self._always = compile == "always"
        self._has_kernels = self._device.type == "cpu" and any(
            _gains_by_kernels(layer, bfloat16) for layer in model.modules()
        )
        self._record = _record_file(model, batch_size, bfloat16, self._device)
        self.compiled = False

        def compute(images: Tensor, labels: Tensor, overlap: Overlap | None) -> Outcome:
            if overlap is not None:
                numbers, targets = overlap.labels[:, 0], to_unit_range(overlap.images[:, 0])
            else:
                numbers, targets = labels if labels.ndim == 1 else labels.argmax(dim=1), images
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16):
                output = model(images)
                reconstructions = model.reconstruct(output.poses, numbers) if model.decoder else None
            loss = model.loss(
                output,
                labels,
                targets,
                reconstructions,
                reconstruction_weight=reconstruction_weight,
                label_smoothing=label_smoothing,
                class_weight=class_weight,
            )
            if overlap is None:
                return Outcome(loss, (output.lengths.argmax(dim=1) == numbers).sum())
            if model.decoder:
                with torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16):
                    second = model.reconstruct(output.poses, overlap.labels[:, 1])
                loss = loss + reconstruction_weight * reconstruction_loss(
                    second.float(), to_unit_range(overlap.images[:, 1])
                )
            return Outcome(loss, both_found(output.lengths, overlap.labels).sum())

        self._parallel: DistributedDataParallel | None = None
        if parallel:
            devices = [self._device] if self._device.type == "cuda" else None
            self._parallel = DistributedDataParallel(_Computation(model, compute), device_ids=devices)
        self._eager = self._compute = compute
        self._eager_kernels = eager_kernels and self._has_kernels and batch_size >= kernels.FEWEST_IMAGES
        if self._eager_kernels:
            self._load_kernels()
        if compile == "always":
            self._start_compiled()

    def __call__(
        self, images: Tensor, labels: Tensor, overlap: Overlap | None = None, *, weight: float = 1.0
    ) -> Outcome:
        """Train on one batch.

        Args:
            images: uint8 [B, C, H, W] from 0 to 255, or floats in [0, 1].
            labels: class numbers [B], or soft labels [B, classes].
            overlap: the two images that each image consists of, which are then reconstructed one after the other,
                each from the pose of its class (Sabour et al. 2017); the two reconstruction losses are added.
            weight: of the loss that is minimised, not of the one returned; see `Team.share`.
        """
        if images.dtype == torch.uint8:
            images = to_unit_range(images)
        whole = len(labels) == self._batch_size
        timed = whole and (self._undecided or self._unjudged)
        eager_turn = self._unjudged and not self._always and len(self._compiled_times) > len(self._eager_times)
        compute = self._compute if whole and not eager_turn else self._eager
        if timed:
            self._synchronise()
        started = time.perf_counter()
        try:
            with kernels.used_in_eager_code() if self._eager_kernels else contextlib.nullcontext():
                outcome = self._train(compute, images, labels, overlap, weight)
        except (RuntimeError, OSError) as error:
            if compute is self._eager or isinstance(error, torch.OutOfMemoryError):
                raise
            self._return_to_eager(f"not compiled: {first_line(error)}")
            outcome = self._train(self._eager, images, labels, overlap, weight)
            timed = False
        self._steps_left -= 1
        self._number += 1
        if timed:
            self._synchronise()
            times = self._eager_times if compute is self._eager else self._compiled_times
            times.append(time.perf_counter() - started)
            if self._undecided and len(times) == _WARM_UP + _TIMED:
                self._decide()
            elif self._unjudged and len(self._compiled_times) == 1 + _TIMED:
                self._judge()
        return outcome

    def _train(
        self,
        compute: Callable[[Tensor, Tensor, Overlap | None], Outcome],
        images: Tensor,
        labels: Tensor,
        overlap: Overlap | None,
        weight: float,
    ) -> Outcome:
        if self._schedule is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = self._schedule(self._number)
        self._optimizer.zero_grad()
        if compute is not self._eager and self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        if self._parallel is None:
            outcome = compute(images, labels, overlap)
        else:
            self._parallel.module.compute = compute
            outcome = self._parallel(images, labels, overlap)
        (outcome.loss if weight == 1 else outcome.loss * weight).backward()
        if self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._grad_clip)
        self._optimizer.step()
        # A CUDA graph overwrites its outputs the next time it runs.
        return Outcome(outcome.loss.detach().clone(), outcome.correct.clone())

    def _synchronise(self) -> None:
        """Wait until the device has finished; for the few steps that are timed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _decide(self) -> None:
        """Decide after some eager steps whether to compile."""
        eager, self._undecided = statistics.median(self._eager_times[_WARM_UP:]), False
        known = _read(self._record)
        compiling = known.compiling if known else _USUAL_SECONDS
        gain = 1 - known.compiled / known.eager if known else self._usual_gain
        if self._steps_left * eager * gain > compiling:
            self._log(f"compiling the training step: {self._steps_left:,} steps of {1e3 * eager:.1f} ms remain")
            self._start_compiled()

    def _start_compiled(self) -> None:
        if self._has_kernels:
            self._load_kernels()
        function = self._eager
        # torch caches a limited number of compilations per code object, so each step gets its own.
        function.__code__ = function.__code__.replace()
        mode = "reduce-overhead" if self._device.type == "cuda" else None
        self._compute = torch.compile(function, dynamic=False, mode=mode)
        self.compiled = self._unjudged = True
        self._eager_times, self._compiled_times = [], []

    def _load_kernels(self) -> None:
        started = time.perf_counter()
        try:
            kernels.load()
        except OSError as error:
            self._log(f"the kernels of dualcaps are not used: {error}")
        else:
            if (seconds := time.perf_counter() - started) > 1:
                self._log(f"the kernels of dualcaps compiled in {seconds:.0f} s, once on this machine")

    def _judge(self) -> None:
        """Decide after compiled and eager steps in turn whether to return to eager operations."""
        self._unjudged = False
        first, *others = self._compiled_times
        compiled = statistics.median(others)
        if self._always:
            self._log(f"training step compiled in {first:.0f} s: {1e3 * compiled:.1f} ms")
            return
        eager = statistics.median(self._eager_times)
        _write(self._record, Measured(max(first - compiled, 0.0), eager, compiled))
        comparison = f"{1e3 * eager:.1f} -> {1e3 * compiled:.1f} ms a step, compiled in {first:.0f} s"
        if compiled < eager:
            self._log(comparison)
        else:
            self._return_to_eager(f"no longer compiled: {comparison}")

    def _return_to_eager(self, why: str) -> None:
        self._compute, self.compiled, self._undecided, self._unjudged = self._eager, False, False, False
        self._log(why)


def _gains_by_kernels(layer: nn.Module, bfloat16: bool) -> bool:
    if isinstance(layer, CapsNet):
        return layer.config.routing == "dynamic"
    if isinstance(layer, Conv2d):
        return not bfloat16 and (kernels.takes_convolution(layer) or kernels.takes_few_channels(layer))
    return isinstance(layer, MaxPool2d)


def _record_file(model: Network, batch_size: int, bfloat16: bool, device: torch.device) -> Path:
    """The file with measurements of compiling for steps like these on this machine."""
    threads = f"cpu {torch.get_num_threads()}, float32 by dualcaps.kernels"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    alike = [to_json(model.config), batch_size, bfloat16, name, torch.__version__]
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()
    return platformdirs.user_cache_path("dualcaps") / "steps" / f"{digest[:32]}.json"


def _read(file: Path) -> Measured | None:
    try:
        measured = Measured(**json.loads(file.read_text(encoding="utf-8")))
        return measured if min(asdict(measured).values()) > 0 else None
    except (OSError, ValueError, TypeError):
        return None


def _write(file: Path, measured: Measured) -> None:
    """Store a measurement for later runs; a cache that cannot be written to is ignored."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json.dumps(asdict(measured)).encode())
