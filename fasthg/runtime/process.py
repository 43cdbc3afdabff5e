"""Memory of a process: how the C library treats it in a training on a CPU, and how much it was."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER, _LARGEST = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next step, and tell whether it does.

    glibc otherwise returns every large map to the system, which hands it out again as pages of
    zeros, each at its first touch: a third of a step's time. The price is that memory once used
    stays taken until the process ends. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def peak_bytes() -> int:
    """The most memory this process has had, in bytes.

    Linux also counts, in `ru_maxrss`, what the process had that started this one; `VmHWM` does not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
