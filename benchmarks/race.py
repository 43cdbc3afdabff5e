"""Providers of one result, timed side by side: rows of pytest-benchmark, and a gate.

    @race("torch", "fasthg", moved=BYTES)
    def bench_softsign(device):
        return {"torch": run_torch, "fasthg": run_fasthg}

A group is one benchmark with one choice of its parameters on one device. It is measured when its
first row asks, and its rows replay those times. In each round all providers run in turn, and times
are compared within a round, since a shared machine is slow for some rounds. The row of fasthg fails
where a ratio is below its floor (floors.yaml).
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any

import floors
import pytest
import torch
from device_clock import FLUSH_BYTES, DeviceClock
from turns import Count, Process, Run, counted, in_turn

ROUNDS = 15
OURS = "fasthg"
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]


class Replay:
    """A timer for pytest-benchmark by which each round takes what was measured before."""

    def load(self, seconds: list[float]) -> None:
        # pytest-benchmark looks at its timer before and after a round.
        self._readings = (reading for s in seconds for reading in (0.0, s))

    def __call__(self) -> float:
        return next(self._readings)


REPLAY = Replay()


@dataclass
class Measured:
    """Seconds of a call by provider and round; figures; the reason why a provider is absent."""

    seconds: dict[str, list[float]]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """How many times as fast fasthg is: lower quartile, median and upper quartile of rounds."""
        others = {name: s for name, s in self.seconds.items() if name != OURS}
        return {
            name: quartiles([a / b for a, b in zip(s, self.seconds[OURS], strict=True)])
            for name, s in others.items()
            if OURS in self.seconds
        }


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values if len(values) > 1 else values * 2, method="inclusive")


@dataclass(frozen=True)
class Race:
    """What the decorator `race` is told of a benchmark."""

    name: str
    build: Callable[..., Any]
    providers: tuple[str, ...]
    parameters: dict[str, list[Any]]
    moved: int | Callable[..., int] | None
    figures: Callable[..., dict[str, Any]] | None
    rounds: Count
    calls: Count
    cool: bool
    apart: bool

    def group(self, chosen: dict[str, Any]) -> str:
        """`training_step, stacks 2, batch 8`; strings speak for themselves."""
        labels = [v if isinstance(v, str) else f"{k} {v}" for k, v in chosen.items()]
        return ", ".join([self.name, *labels])

    def groups(self) -> list[str]:
        choices = itertools.product(*self.parameters.values())
        return [self.group(dict(zip(self.parameters, c, strict=True))) for c in choices]

    @contextlib.contextmanager
    def built(self, device: torch.device, chosen: dict[str, Any]) -> Iterator[dict[str, Run | str]]:
        made = self.build(device, **chosen)
        if inspect.isgenerator(made):
            with contextlib.closing(made):
                yield next(made)
        else:
            yield made

    def measure(self, device: torch.device, chosen: dict[str, Any], rounds: int) -> Measured:
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(self.built(device, chosen))
            assert set(found) == set(self.providers), f"{self.name} builds {', '.join(found)}"
            absent = {name: run for name, run in found.items() if isinstance(run, str)}
            runs = {name: found[name] for name in self.providers if name not in absent}
            gpu = device.type == "cuda"
            if self.apart and not gpu:
                # Before anything is made here.
                made = {n: stack.enter_context(Process(self, device, chosen, n)) for n in runs}
                seconds = in_turn(made, rounds, warm=False)
                return self.judged(device, made, absent, chosen, seconds)
            if self.apart:
                runs = {name: make() for name, make in runs.items()}
            other = torch.zeros(FLUSH_BYTES // 4 if self.cool else 0, device=device)
            wait = (lambda: torch.cuda.synchronize(device)) if gpu else (lambda: None)
            calls = counted(self.calls, device)
            seconds = in_turn(runs, rounds, calls, wait, lambda: other.add_(1))
            return self.judged(device, runs, absent, chosen, seconds)

    def judged(
        self,
        device: torch.device,
        runs: dict[str, Run],
        absent: dict[str, str],
        chosen: dict[str, Any],
        seconds: dict[str, list[float]],
    ) -> Measured:
        """Times with their figures and ratios."""
        measured = Measured(seconds, absent=absent)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        machine = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
        for name, run in runs.items():
            typical = statistics.median(seconds[name])
            further = (
                run.figures if isinstance(run, Process) else partial(self.further, device, run)
            )
            measured.figures[name] = machine | further(typical, chosen)
        for name, ratio in measured.ratios().items():
            low, median, high = (float(f"{value:.4g}") for value in ratio)
            measured.figures[name] |= {"x fasthg": median, "x fasthg q1 q3": [low, high]}
        return measured

    def further(
        self, device: torch.device, run: Run, seconds: float, chosen: dict[str, Any]
    ) -> dict[str, Any]:
        found = {}
        if self.moved is not None:
            moved = self.moved(**chosen) if callable(self.moved) else self.moved
            found["GB/s"] = round(moved / seconds / 1e9, 2)
            if device.type == "cuda":  # where most of a small call is launching
                kernels = DeviceClock(device).seconds(run)
                found["kernel us"] = round(kernels * 1e6, 2)
                found["kernel GB/s"] = round(moved / kernels / 1e9, 1)
        if self.figures:
            getattr(run, "before", lambda: None)()
            found |= self.figures(run, seconds, **chosen)
            getattr(run, "after", lambda: None)()
        return found

    def row(self, config: Any, benchmark: Any, device: str, provider: str, **chosen: Any) -> None:
        group = f"{self.group(chosen)}, {device}"
        if group not in MEASURED:
            on = torch.device(device)
            rounds = config.getoption("bench_rounds", None) or counted(self.rounds, on)
            try:
                MEASURED[group] = self.measure(on, chosen, rounds if benchmark.enabled else 1)
            except torch.OutOfMemoryError:
                MEASURED[group] = Measured(
                    {}, absent=dict.fromkeys(self.providers, "out of memory")
                )
            free()
            if config.getoption("bench_figures", False):
                tell(group, MEASURED[group])
        measured = MEASURED[group]
        if provider in measured.absent:
            pytest.skip(measured.absent[provider])
        benchmark.group = group
        benchmark.extra_info |= measured.figures[provider]
        REPLAY.load(measured.seconds[provider])
        benchmark.pedantic(lambda: None, rounds=len(measured.seconds[provider]))
        if provider == OURS and benchmark.enabled:
            wanted = floors.of(floors.read(), self.name, self.group(chosen), device)
            slow = floors.below({name: r[1] for name, r in measured.ratios().items()}, wanted)
            if slow:
                pytest.fail("\n".join(f"{group}: {line}" for line in slow), pytrace=False)


def tell(group: str, measured: Measured) -> None:
    """Print what was measured as figures of `make gpu`, which survive if the run is stopped."""
    from gpu_report import figure  # beside what runs make gpu

    for name, seconds in measured.seconds.items():
        figure(f"{group}, {name}", statistics.median(seconds) * 1e3, "ms")
        for unit, value in measured.figures[name].items():
            if isinstance(value, int | float) and unit != "threads":
                figure(f"{group}, {name}", value, unit)


RACES: dict[str, Race] = {}  # every benchmark imported so far, by name
MEASURED: dict[str, Measured] = {}  # by group and device


def free() -> None:
    """Give back the memory of providers that are gone."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # compiled graphs keep theirs
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def race(
    *providers: str,
    moved: int | Callable[..., int] | None = None,
    figures: Callable[..., dict[str, Any]] | None = None,
    rounds: Count = ROUNDS,
    calls: Count = 1,
    cool: bool = True,
    apart: bool = False,
    **parameters: Any,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make rows of a function that builds the providers, `bench_<name>(device, **parameters)`.

    It returns a callable for each name in `providers`, or why there is none here, which skips that
    row; `pytest.skip` leaves out the group. To clean up afterwards it yields them instead. They are
    built once and dropped when the group is measured. A callable's `before` and `after`, where it
    has them, run around each round outside the clock.

    moved: least bytes that a call must move, counted by hand. figures: further figures of a row,
    `figures(run, seconds of a call, **parameters)`. calls: in a round, where one is too short to
    time; like rounds, a number or a function of the device. cool: fill the caches with something
    else before each round. apart: the values are functions that make the callables; on a CPU each
    is made and called in a process of its own. parameters: values that make groups, e.g.
    `batch=[8, 32]`; moved and figures are called with them too.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., None]:
        values = {name: list(v) for name, v in parameters.items()}
        name = build.__name__.removeprefix("bench_")
        this = Race(name, build, providers, values, moved, figures, rounds, calls, cool, apart)
        RACES[name] = this

        def row(request: Any, benchmark: Any, device: str, provider: str, **chosen: Any) -> None:
            this.row(request.config, benchmark, device, provider, **chosen)

        update_wrapper(row, build)
        names = ["request", "benchmark", "device", *values, "provider"]
        row.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )
        for name, choice in {"device": DEVICES, **values, "provider": providers}.items():
            row = pytest.mark.parametrize(name, choice)(row)
        return pytest.mark.benchmark(timer=REPLAY)(row)

    return decorate
