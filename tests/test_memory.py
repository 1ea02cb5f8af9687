"""Memory is kept, unless the user has settings of their own."""

import os
import platform
import subprocess
import sys

import pytest

from dualcaps import memory

REPEATED = """
import resource
import numpy
from dualcaps.memory import keep_memory

print(keep_memory() and keep_memory())  # again, as in a child process
for repetition in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("settings", "kept", "faults_are_few"),
    [({}, True, True), ({"MALLOC_ARENA_MAX": "4"}, False, False), ({"MALLOC_MMAP_MAX_": "65536"}, False, False)],
)
def test_pages_of_large_arrays_are_cleared_once(settings: dict[str, str], kept: bool, faults_are_few: bool):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"
    command = [sys.executable, "-c", REPEATED]
    done = subprocess.run(command, env={**environment, **settings}, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 1_000) == faults_are_few  # of 32,768 pages


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_memory()
    assert not any(name.startswith("MALLOC_") for name in os.environ)
