"""Threads: their number by quota and load, how they wait, and that a user's settings are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualcaps import threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with 8 cores, whose quota and load can be set."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_CGROUP_V1", (tmp_path / "quota", tmp_path / "period"))
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")

    def write(*, quota: str = "max 100000", load: str = "0.00 0.00 0.00 1/90 4711") -> None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n", encoding="ascii")
        (tmp_path / "loadavg").write_text(f"{load}\n", encoding="ascii")

    write()
    yield write
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("load", "used"),
    [
        ("0.10 0 0 1/90 9", None),
        ("2.10 0 0 3/90 9", "6"),
        ("2.10 0 0 1/90 9", None),  # has just ended
        ("0.10 0 0 3/90 9", None),  # has just started
        ("30.0 0 0 40/90 9", "4"),
        ("nonsense", None),
    ],
)
def test_cores_that_others_use_are_left_to_them_up_to_half(machine, load: str, used: str | None):
    machine(load=load)
    note = threads.prepare_threads()
    assert os.environ.get("OMP_NUM_THREADS") == used
    assert note == (
        f"{used} of 8 cores used, as other programs are running; OMP_NUM_THREADS=8 uses all" if used else ""
    )
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8), ("odd", 8)],
)
def test_the_quota_of_a_control_group_limits_the_threads(machine, quota: str, cores: int):
    machine(quota=quota)
    assert threads.available_cores() == cores
    assert threads.prepare_threads() == ""
    assert os.environ.get("OMP_NUM_THREADS") == (None if cores == 8 else str(cores))


def test_the_quota_of_the_first_version_is_read_too(machine, tmp_path: Path):
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "period").write_text("100000\n", encoding="ascii")
    for quota, cores in (("-1", 8), ("200000", 2)):
        (tmp_path / "quota").write_text(f"{quota}\n", encoding="ascii")
        assert threads.available_cores() == cores


@pytest.mark.parametrize(
    ("load", "used"), [("1.20 0 0 2/90 9", None), ("2.10 0 0 3/90 9", "1"), ("9.00 0 0 9/90 9", "1")]
)
def test_with_two_cores_both_are_used_unless_others_use_both(
    machine, monkeypatch: pytest.MonkeyPatch, load: str, used: str | None
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    machine(load=load)
    assert bool(threads.prepare_threads()) == (used is not None)
    assert os.environ.get("OMP_NUM_THREADS") == used


def test_settings_of_the_user_are_kept(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    machine(load="9.00 0 0 9/90 9", quota="100000 100000")
    threads.prepare_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "active")


@pytest.mark.usefixtures("machine")
def test_nothing_is_set_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    threads.prepare_threads()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_the_command_line_sets_them_before_torch_is_loaded():
    code = """
import os, sys
from dualcaps.cli import main
try:
    main(["data", "list"])
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "passive"
