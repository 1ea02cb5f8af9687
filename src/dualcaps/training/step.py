"""One training step: forward, losses, backward, optimiser; compiled in the middle of a run where that pays."""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualcaps.losses import cross_entropy, margin_loss, reconstruction_loss
from dualcaps.models import Network

Compile = Literal["auto", "always", "never"]

_WARM_UP, _TIMED = 3, 10
# What compiling brings and takes where this machine has not measured it yet.
_USUAL_GAIN, _USUAL_SECONDS = 0.2, 25.0


class Outcome(NamedTuple):
    """What a step computed, on the device and not waited for.

    loss: the mean over the batch.
    correct: how many images were predicted rightly.
    """

    loss: Float[Tensor, ""]
    correct: Int[Tensor, ""]


@dataclass(frozen=True)
class Measured:
    """Seconds that compiling took, and that a step took before and after it."""

    compiling: float
    eager: float
    compiled: float


class TrainingStep:
    """Changes a network's weights by one batch, each time it is called.

    It starts with torch's operations one by one. With compile="auto" it times the first steps and
    compiles forward and backward where the steps still to come will save more time than compiling
    takes: by what was measured here for the same network before, otherwise by a cautious guess.
    Should the compiled step be slower, or compiling fail, it goes back. Smaller batches, such as an
    epoch's last, are never compiled. On CUDA the compiled step is replayed as a CUDA graph.

    Attributes:
        compiled: whether full batches run compiled now.
    """

    def __init__(
        self,
        model: Network,
        optimiser: torch.optim.Optimizer,
        *,
        batch_size: int,
        steps: int,
        reconstruction_weight: float,
        bfloat16: bool,
        compile: Compile,
        say: Callable[[str], None],
    ) -> None:
        self._optimiser = optimiser
        self._batch_size, self._steps_left, self._say = batch_size, steps, say
        self._device = next(model.parameters()).device
        self._times: list[float] = []
        self._eager_seconds: float | None = None
        self._undecided = compile == "auto"
        self._record = _record_file(model, batch_size, bfloat16, self._device)
        self.compiled = False
        classification_loss = cross_entropy if model.config.name == "cnn" else margin_loss

        def compute(images: Tensor, labels: Tensor) -> Outcome:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16):
                output = model(images)
                drawn = model.reconstruct(output.poses, labels) if model.decoder else None
            loss = classification_loss(output.lengths, labels)
            if drawn is not None:
                loss = loss + reconstruction_weight * reconstruction_loss(drawn.float(), images)
            return Outcome(loss, (output.lengths.argmax(dim=1) == labels).sum())

        self._eager = self._compute = compute
        if compile == "always":
            self._start_compiled()

    def __call__(self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, "batch"]) -> Outcome:
        """Train on one batch; images in [0, 1]."""
        whole = len(labels) == self._batch_size
        compute = self._compute if whole else self._eager
        timed = whole and (self._undecided or (self.compiled and len(self._times) <= _TIMED))
        if timed:
            self._wait()
        started = time.perf_counter()
        try:
            outcome = self._train(compute, images, labels)
        except (RuntimeError, OSError) as error:
            if compute is self._eager or isinstance(error, torch.OutOfMemoryError):
                raise
            self._go_back(f"not compiled: {_first_line(error)}")
            outcome = self._train(self._eager, images, labels)
            timed = False
        self._steps_left -= 1
        if timed:
            self._wait()
            self._times.append(time.perf_counter() - started)
            if self._undecided and len(self._times) == _WARM_UP + _TIMED:
                self._decide()
            elif self.compiled and len(self._times) == 1 + _TIMED:
                self._judge()
        return outcome

    def _train(self, compute: Callable[[Tensor, Tensor], Outcome], images: Tensor, labels: Tensor) -> Outcome:
        self._optimiser.zero_grad()
        if compute is not self._eager and self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        outcome = compute(images, labels)
        outcome.loss.backward()
        self._optimiser.step()
        # A CUDA graph writes over what it returned the next time it runs.
        return Outcome(outcome.loss.detach().clone(), outcome.correct.clone())

    def _wait(self) -> None:
        """Let the device finish, so that the clock tells the truth; for the few steps that are timed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _decide(self) -> None:
        """After some eager steps: compile or not."""
        eager = statistics.median(self._times[_WARM_UP:])
        self._eager_seconds, self._undecided = eager, False
        known = _read(self._record)
        compiling = known.compiling if known else _USUAL_SECONDS
        gain = 1 - known.compiled / known.eager if known else _USUAL_GAIN
        if self._steps_left * eager * gain > compiling:
            self._say(f"compiling the training step: {self._steps_left:,} steps of {1e3 * eager:.1f} ms are to come")
            self._start_compiled()

    def _start_compiled(self) -> None:
        function = self._eager
        # Compiled code is kept by code object, a few to each, so every step has one of its own.
        function.__code__ = function.__code__.replace()
        mode = "reduce-overhead" if self._device.type == "cuda" else None
        self._compute = torch.compile(function, dynamic=False, mode=mode)
        self.compiled, self._undecided, self._times = True, False, []

    def _judge(self) -> None:
        """After some compiled steps: keep on or go back."""
        first, *others = self._times
        compiled = statistics.median(others)
        if self._eager_seconds is None:
            self._say(f"training step compiled in {first:.0f} s: {1e3 * compiled:.1f} ms")
            return
        _write(self._record, Measured(max(first - compiled, 0.0), self._eager_seconds, compiled))
        told = f"{1e3 * self._eager_seconds:.1f} -> {1e3 * compiled:.1f} ms a step, compiled in {first:.0f} s"
        if compiled < self._eager_seconds:
            self._say(told)
        else:
            self._go_back(f"not compiled any more: {told}")

    def _go_back(self, why: str) -> None:
        self._compute, self.compiled, self._undecided = self._eager, False, False
        self._say(why)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _record_file(model: Network, batch_size: int, bfloat16: bool, device: torch.device) -> Path:
    """Where it is kept what compiling brought for steps like these on this machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()}"
    alike = [asdict(model.config), batch_size, bfloat16, name, torch.__version__]
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()
    return platformdirs.user_cache_path("dualcaps") / "steps" / f"{digest[:32]}.json"


def _read(file: Path) -> Measured | None:
    try:
        measured = Measured(**json.loads(file.read_text()))
        return measured if min(asdict(measured).values()) > 0 else None
    except (OSError, ValueError, TypeError):
        return None


def _write(file: Path, measured: Measured) -> None:
    """Keep for later runs; a cache that cannot be written is done without."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(asdict(measured)))
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
