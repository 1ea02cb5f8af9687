"""The number of threads and how they wait, set before torch is loaded; a user's own settings are kept."""

import math
import os
import sys
import time
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
_LOAD = Path("/proc/loadavg")
_SAMPLES, _SECONDS_BETWEEN_SAMPLES = 5, 0.02
_FEW_CORES = 3  # on so few, a core shared with another program is worth more than one thread less, until all are shared


def prepare_threads() -> str:
    """Set OpenMP's environment variables; does nothing once torch is loaded.

    Threads wait for each other without spinning: on a shared core, a spinning thread takes the time of the one that it
    waits for. There are as many as this process may use cores, by its affinity and the quota of its control group,
    less those that other programs use at the moment, but at least half; on two or three cores only if others use all.

    Returns:
        A note for the user if other programs reduce the number, otherwise "".
    """
    if "torch" in sys.modules:
        return ""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "OMP_NUM_THREADS" in os.environ:
        return ""
    usable = available_cores()
    busy = _busy_cores()
    if busy < usable <= _FEW_CORES:
        busy = 0
    threads = max(usable - busy, math.ceil(usable / 2))
    if threads < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == usable:
        return ""
    return f"{threads} of {usable} cores used, as other programs are running; OMP_NUM_THREADS={usable} uses all"


def available_cores() -> int:
    """The number of cores that this process may use: by its affinity and the quota of its control group, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota() -> float | None:
    """The quota of the control group in cores; None without one."""
    try:
        if _CGROUP_V2.is_file():
            quota, period = _CGROUP_V2.read_text(encoding="ascii").split()
        else:
            quota, period = (file.read_text(encoding="ascii").strip() for file in _CGROUP_V1)
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no control groups on this platform
        return None


def _busy_cores() -> int:
    """How many threads of other processes run, by the smallest of the last minute's mean and some present numbers.

    One present number alone counts programs that only run for an instant, such as the shell that started this process.
    """
    busy = sys.maxsize
    try:
        for _ in range(_SAMPLES):
            mean, _, _, tasks, _ = _LOAD.read_text(encoding="ascii").split()
            busy = max(0, min(busy, round(float(mean)), int(tasks.partition("/")[0]) - 1))
            if not busy:
                break
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        return busy
    except (OSError, ValueError):
        return 0
