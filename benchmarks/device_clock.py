"""Time on the device itself, without the launches of the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Several times the largest cache of the GPUs we ship for.
FLUSH_BYTES = 256 << 20
# About half a millisecond, in which the host queues what is timed: no gap between its kernels.
HEAD_START_CYCLES = 1_000_000


class DeviceClock:
    """Times callables with cold caches; CUDA events on a GPU, the wall clock on a CPU."""

    def __init__(self, device: torch.device, flush_bytes: int = FLUSH_BYTES) -> None:
        self.device = device
        self._other = torch.zeros(flush_bytes // 4, device=device)

    def seconds(self, run: Callable[[], object], rounds: int = 15) -> float:
        """Median seconds of one call, after one that does not count."""
        run()
        return statistics.median(self._once(run) for _ in range(rounds))

    def _once(self, run: Callable[[], object]) -> float:
        self._other.add_(1)
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3
