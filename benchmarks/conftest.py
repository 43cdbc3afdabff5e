"""How the operators are timed: providers side by side in one process, cold caches, medians.

`bench_<op>` gives one row a provider (pytest-benchmark; the row carries device, torch and bytes).
`bench_<op>_ratio` runs the providers in turn, so that a busy machine slows all of them, and fails
where fasthg's lead falls below the stored floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from device_clock import DeviceClock

CACHE_BYTES = 256 << 20

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


class Bench:
    """Runs callables on one device, each time with caches full of something else."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.threads = torch.get_num_threads()
        self._other = torch.zeros(CACHE_BYTES // 4, device=self.device)

    def cool(self) -> None:
        self._other.add_(1)
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def row(self, benchmark: Callable, run: Callable[[], object], moved: int) -> None:
        """One row: `moved` is the least number of bytes that must move, counted by hand."""

        def once() -> None:
            run()
            self.wait()

        once()
        benchmark.pedantic(once, setup=self.cool, rounds=15)
        if benchmark.stats is None:  # --benchmark-disable
            return
        benchmark.extra_info |= {
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": self.threads,
            "torch": torch.__version__,
            "GB/s": round(moved / benchmark.stats.stats.median / 1e9, 2),
        }
        if self.device.type == "cuda":
            # What the kernels take; the row itself includes launching them, which at these sizes
            # is most of it.
            seconds = DeviceClock(self.device).seconds(run)
            benchmark.extra_info |= {
                "kernel us": round(seconds * 1e6, 2),
                "kernel GB/s": round(moved / seconds / 1e9, 1),
            }

    def seconds(self, providers: dict[str, Callable[[], object]], rounds: int = 15) -> dict:
        """Seconds of each provider in each round; in a round all of them run in turn."""
        seconds: dict[str, list[float]] = {name: [] for name in providers}
        for run in providers.values():
            run()
        for _ in range(rounds):
            for name, run in providers.items():
                self.cool()
                start = time.perf_counter()
                run()
                self.wait()
                seconds[name].append(time.perf_counter() - start)
        return seconds

    def check(self, providers: dict[str, Callable[[], object]], floors: dict[str, float]) -> None:
        """Fail where fasthg is not as many times faster than a provider as its floor says.

        Times are compared within a round, since a shared machine is slow for some rounds.
        """
        seconds = self.seconds(providers)
        ratios = {
            name: statistics.median(
                other / ours for other, ours in zip(seconds[name], seconds["fasthg"], strict=True)
            )
            for name in floors
        }
        print({name: f"{statistics.median(s) * 1e3:.3f} ms" for name, s in seconds.items()})
        print({name: f"{ratio:.2f} times" for name, ratio in ratios.items()})
        slow = {
            name: (ratios[name], floors[name]) for name in floors if ratios[name] < floors[name]
        }
        assert not slow, f"times faster than each provider, and the floor: {slow}"


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)
