"""Windows and macOS, simulated: without the functions, files and encodings that only Linux has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIMULATED = """
import os, pathlib, sys
import filelock, matplotlib.figure, numpy, PIL.Image, platformdirs, psutil
import rich.console, scipy.stats, sklearn.datasets, torch
# What these libraries ask of their own platform is not simulated.
system = sys.argv[1]
for name in ("sysconf", "sched_getaffinity", "getloadavg", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
exists, read_text = pathlib.Path.exists, pathlib.Path.read_text
def without_proc(original):
    def call(self, *arguments, **options):
        if str(self).startswith("/proc"):
            if original is exists:
                return False
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return original(self, *arguments, **options)
    return call
pathlib.Path.exists, pathlib.Path.read_text = without_proc(exists), without_proc(read_text)

import dualcaps.cli, dualcaps.training.fit, dualcaps.bench
from dualcaps.runs import files

if system == "win32":
    sys.modules["resource"] = sys.modules["fcntl"] = None
    process = psutil.Process
    class Memory:
        peak_wset = 300 * 2**20
    psutil.Process = lambda *_: type("Process", (), {"memory_info": lambda self: Memory()})()
    files.os = type("WindowsOS", (), {**vars(os), "name": "nt", "open": None})
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp1252")
else:
    import resource
    usage = resource.getrusage
    class Bytes:
        def __init__(self, who):
            self.ru_maxrss = 1024 * usage(who).ru_maxrss
    resource.getrusage = Bytes
sys.platform = system
assert 50 < dualcaps.bench.peak_memory() < 5000, dualcaps.bench.peak_memory()
for command in (
    ["train", "shapes", "--model", "capsnet", "--epochs", "1", "--out", "run"],
    ["evaluate", "run", "--out", "evaluation"],
    ["predict", "run", "shapes/across/00.png"],
    ["report", "run"],
    ["models"],
):
    dualcaps.cli.main(command)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="simulates the other platforms")
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_a_network_is_trained_evaluated_and_reported(system: str, shapes_folder: Path):
    command = [sys.executable, "-c", SIMULATED, system]
    environment = os.environ | {"MPLBACKEND": "agg"}
    said = subprocess.run(
        command,
        cwd=shapes_folder.parent,
        capture_output=True,
        text=True,
        encoding="cp1252",
        env=environment,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "test accuracy" in said.stdout
    for file in ("run/result.json", "run/curves.png", "evaluation/confusion.png", "report/index.html"):
        assert (shapes_folder.parent / file).stat().st_size > 0
