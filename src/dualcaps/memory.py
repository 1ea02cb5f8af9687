"""The memory of large tensors, kept by the C library for the next ones; a user's own settings are kept."""

import ctypes
import os
import sys

# Names of glibc's mallopt, and of its environment variables, which child processes read.
_SETTINGS = {"MALLOC_MMAP_MAX_": (-4, 0), "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1)}


def keep_memory() -> bool:
    """Let glibc keep the memory of this process and its child processes; does nothing on other systems.

    Otherwise it takes memory for large tensors from the system in each step and gives it back, and the system clears
    every page anew.

    Returns:
        Whether memory is kept in this way.
    """
    if sys.platform != "linux":
        return False
    given = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    if given:  # by the user, or by the process that started this one
        return given == {name: str(value) for name, (_, value) in _SETTINGS.items()}
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    for name, (parameter, value) in _SETTINGS.items():
        os.environ[name] = str(value)
        mallopt(parameter, value)
    return True
