"""Training that repeats to the bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(device: torch.device, threads: int) -> Iterator[None]:
    """Use torch's deterministic operations and a fixed number of threads, on which the order of sums depends.

    Operations on CUDA that have no deterministic form are used with torch's warning, which names them.

    Args:
        device: that is trained on.
        threads: for operations on the CPU.
    """
    settings: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
        torch.get_num_threads(),
    )
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # only of use to find errors, and slow
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]
        torch.set_num_threads(before[3])
