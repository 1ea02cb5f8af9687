"""Training beside what a user would pick instead: the Keras example's capsule network on each Keras backend.

Each backend lives in an environment of its own, made here on the first run, and in a process of
its own, which trains when asked to. Rounds are interleaved: each candidate trains once a round. All
have the same weights and must answer alike before any is timed. The network is the example's: no
attention, no decoder, logits replaced in each iteration, margin loss, Adam, batch 128. The example
computes in float32; Keras's mixed_bfloat16 and its jit_compile are measured too, where a backend gains by them.

A machine with AVX2 alone is imitated, in float32, by

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 XLA_FLAGS=--xla_cpu_max_isa=AVX2 python benchmarks/peers.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Results, environment, parse, place, usual_precision

from dualcaps import create_model, predict
from dualcaps.bench import ParityError, Timing, check_parity, our_training, plain_training, random_split

PACKAGES = {"tensorflow": "tensorflow-cpu", "torch": "torch", "jax": "jax[cpu]"}
SHAPES = {"32x32x3": (3, 32, 32), "28x28x1": (1, 28, 28)}
PEERS = (
    *((backend, "float32") for backend in PACKAGES),
    ("tensorflow", "jit float32"),
    *((backend, "mixed_bfloat16") for backend in ("tensorflow", "torch")),
)
BATCH, STEPS = 128, 20
# Keras takes a fixed time to start each call of fit; the fastest backend's is drowned in more steps.
PEER_STEPS = {"tensorflow": 60, "torch": 20, "jax": 8}


class Peer:
    """A process that trains a Keras network when it is told to."""

    def __init__(self, backend: str, policy: str, weights: Path, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self._steps = PEER_STEPS[backend]
        self._process = subprocess.Popen(
            [
                *(
                    environment(f"keras-{backend}", ("keras", PACKAGES[backend])),
                    Path(__file__).with_name("peer_keras.py"),
                    policy,
                    weights,
                ),
                *map(str, (height, width, channels, BATCH, PEER_STEPS[backend])),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.about = self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"a peer ended with {self._process.wait()}: run peer_keras.py by hand to see why")

    def train(self) -> float:
        """Train one round; the seconds that a step took."""
        assert self._process.stdin is not None
        self._process.stdin.write("train\n")
        self._process.stdin.flush()
        return self._answer()["seconds"] / self._steps

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Measure both image shapes."""
    options = parse(__doc__ or "")
    device = place("cpu")
    precision = usual_precision(device)
    candidates = [peer for peer in PEERS if precision == "bfloat16" or peer[1].endswith("float32")]
    results = None
    for text, shape in SHAPES.items():
        torch.manual_seed(0)
        model = create_model("capsnet", shape, decoder=False, update="replace").place(device)
        for number_type in ("float32", precision):
            check_parity(model, device, number_type)
        part = random_split(shape, STEPS * BATCH, device)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "weights.npz")
            images = part.images[:64].permute(0, 2, 3, 1).numpy()
            np.savez(weights, images=images, **{name: w.numpy() for name, w in model.state_dict().items()})
            peers = {(backend, policy): Peer(backend, policy, weights, shape) for backend, policy in candidates}
            expected = predict(model, part.images[:64]).numpy()
        for (backend, policy), peer in peers.items():
            apart = np.abs(np.array(peer.about["lengths"]) - expected).max()
            if not apart <= (1e-3 if policy.endswith("float32") else 0.05):
                raise ParityError(f"keras on {backend}, {policy}: lengths are {apart:.2g} off ours: no speed told")
        if results is None:
            versions = ", ".join(f"{backend} {peers[backend, 'float32'].about['backend']}" for backend in PACKAGES)
            keras = next(iter(peers.values())).about["keras"]
            results = Results("peers", options.out, device, f"torch {torch.__version__}, keras {keras} on {versions}")
        ours_name = f"dualcaps {precision}, compiled"
        in_float32 = "dualcaps float32, compiled"
        ours = {
            "plain PyTorch float32": plain_training(model, part, BATCH),
            "dualcaps float32, eager": our_training(model, part, BATCH, "float32", "never"),
            in_float32: our_training(model, part, BATCH, "float32", "always"),
            ours_name: our_training(model, part, BATCH, precision, "always"),
        }
        seconds: dict[str, list[float]] = {}
        for turn in range(options.rounds + 1):
            taken = {f"keras on {backend} {policy}": peer.train() for (backend, policy), peer in peers.items()}
            for name, epoch in ours.items():
                started = time.perf_counter()
                epoch()
                taken[name] = (time.perf_counter() - started) / STEPS
            for name, one in taken.items() if turn else ():  # the first round compiles
                seconds.setdefault(name, []).append(one)
        for peer in peers.values():
            peer.stop()
        case = f"capsnet {text}, batch {BATCH}"
        timings = {name: Timing(tuple(times), BATCH) for name, times in seconds.items()}
        for name, timing in timings.items():
            results.add_timing(case, name, "speed", timing, "images/s")
        for mine, policy in dict.fromkeys(((in_float32, "float32"), (ours_name, "float32"), (ours_name, "bfloat16"))):
            alike = [name for name in timings if name.startswith("keras") and name.endswith(policy)]
            if not alike:
                continue
            best = max(alike, key=lambda name: timings[name].rate)
            pairs = [theirs / own for theirs, own in zip(seconds[best], seconds[mine], strict=True)]
            results.add_median(case, f"{mine} / {best}", "ratio", pairs, "times")


if __name__ == "__main__":
    main()
