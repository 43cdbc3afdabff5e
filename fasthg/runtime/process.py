"""Settings of the whole process, and its peak memory."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER, _LARGEST = -1, 2**31 - 1


def configure_process(device: torch.device, *, deterministic: bool = False) -> None:
    """Set what holds for the whole process: the command line calls it, library objects do not.

    On a CPU the process keeps freed memory (`keep_freed_memory`). On a GPU cuDNN measures the
    fastest convolution of each shape, since the shapes of a training never change; or, with
    `deterministic`, torch uses deterministic algorithms only.

    Args:
        device: device of training or prediction.
        deterministic: DETERMINISTIC.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            # cuBLAS reads it at its first use.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # 3,500 fills, added to 3,000 kernels, of memory that is written before it is read.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step; whether it does.

    glibc otherwise returns every large block to the system, which hands it out again as pages of
    zeros, each at its first touch: a third of a step's time. The price: memory that was used once
    stays taken until the process ends. Does nothing where the C library is not glibc.
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
