"""Time on the device itself, without the launches of the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Several times the largest cache of the GPUs we ship for.
FLUSH_BYTES = 256 << 20
# In which the host queues what is timed, so that there is no gap between its kernels: at least half
# a millisecond, and twice what the host takes, at two cycles a nanosecond.
HEAD_START_CYCLES = 1_000_000
CYCLES_A_HOST_SECOND = 4e9


class DeviceClock:
    """Times callables with cold caches; CUDA events on a GPU, the wall clock on a CPU."""

    def __init__(self, device: torch.device, flush_bytes: int = FLUSH_BYTES) -> None:
        self.device = device
        self._other = torch.zeros(flush_bytes // 4, device=device)
        self._head_start = HEAD_START_CYCLES

    def seconds(self, run: Callable[[], object], rounds: int = 15) -> float:
        """Median seconds of one call, after some that do not count."""
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            run()
            cycles = int((time.perf_counter() - begin) * CYCLES_A_HOST_SECOND)
            self._head_start = max(HEAD_START_CYCLES, cycles)
        return statistics.median(self._once(run) for _ in range(rounds))

    def _once(self, run: Callable[[], object]) -> float:
        self._other.add_(1)
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(self._head_start)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3
