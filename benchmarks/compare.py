"""Benchmarks of several providers of one result, timed side by side, with a floor for each ratio.

    @compare("torch", "fasthg", bytes_moved=BYTES)
    def bench_softsign(device):
        return {"torch": run_torch, "fasthg": run_fasthg}

Each provider is one row of pytest-benchmark. A group is one benchmark with one value for each of
its parameters on one device; its first row measures all providers, the others show those times;
what `-k` leaves out is not measured. Every round calls each provider once, and ratios are taken
within a round, because other work slows a shared machine for some rounds. The row of fasthg fails
if a ratio is below its floor (floors.yaml) or if the operator has no compiled kernel on the device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import Any

import pytest
import torch

from fasthg import ops
from fasthg.runtime.device import has_bf16_instructions

OURS = "fasthg"
FOLDER = Path(__file__).parent
FLOORS = FOLDER / "floors.yaml"
# Several times the largest cache of the GPUs and processors in use.
FLUSH_BYTES = 256 << 20
# The GPU sleeps while the host queues what is timed, so that no gap lies between kernels: at least
# half a millisecond, and twice the host's own time, at two cycles a nanosecond.
MIN_SLEEP_CYCLES, SLEEP_CYCLES_PER_HOST_SECOND = 1_000_000, 4e9

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
Run = Callable[[], object]


@functools.cache
def flush_buffer(device: torch.device) -> torch.Tensor:
    """A tensor larger than the caches of a device: changing it evicts everything else."""
    return torch.zeros(FLUSH_BYTES // 4, device=device)


def kernel_seconds(run: Run, device: torch.device, rounds: int = 15) -> float:
    """Median seconds between the first and the last kernel of a call, with cold caches."""
    run()
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    host = time.perf_counter() - begin
    cycles = max(MIN_SLEEP_CYCLES, int(host * SLEEP_CYCLES_PER_HOST_SECOND))
    times = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush_buffer(device).add_(1)
        torch.cuda._sleep(cycles)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy of 256 MiB, bytes read and written: what memory on this device can give."""
    target, source = torch.empty_like(flush_buffer(device)), flush_buffer(device)
    if device.type == "cuda":
        return 2 * FLUSH_BYTES / kernel_seconds(lambda: target.copy_(source), device) / 1e9
    times = [time.perf_counter()]
    for _ in range(9):
        target.copy_(source)
        times.append(time.perf_counter())
    return 2 * FLUSH_BYTES / statistics.median(b - a for a, b in itertools.pairwise(times)) / 1e9


@dataclass
class Result:
    """Measurements of one group.

    seconds: of a call, by provider and round. figures: further figures, by provider. absent: why a
    provider was not measured. failed: the error with which its process began.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """By provider, how many times as fast fasthg is: lower quartile, median, upper quartile."""
        ratios = {}
        for name, seconds in self.seconds.items():
            if name != OURS and OURS in self.seconds:
                each = [a / b for a, b in zip(seconds, self.seconds[OURS], strict=True)]
                # Quantiles need two values; of one alone all three are that one.
                ratios[name] = statistics.quantiles(
                    each * 2 if len(each) < 2 else each, n=4, method="inclusive"
                )
        return ratios

    def gated(self) -> dict[str, float]:
        """The ratios that floors hold for: of kernels where those were timed, else the medians."""
        kernels = {name: f["kernel us"] for name, f in self.figures.items() if "kernel us" in f}
        return {
            name: kernels[name] / kernels[OURS] if name in kernels else ratio[1]
            for name, ratio in self.ratios().items()
        }


RESULTS = pytest.StashKey[dict[str, Result]]()
"""Key of pytest's config: results by group and device."""


class Provider:
    """Times and figures of one provider in this process."""

    def __init__(
        self, comparison: Comparison, device: torch.device, values: dict[str, Any], run: Run
    ) -> None:
        self.comparison, self.device, self.values, self.run = comparison, device, values, run
        self._calls = comparison.calls[device.type == "cuda"]

    def seconds(self) -> float:
        """Seconds of one call; the run's `before` and `after`, if any, are outside of the clock."""
        getattr(self.run, "before", lambda: None)()
        if self.comparison.cold:
            flush_buffer(self.device).add_(1)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(self._calls):
            self.run()
        self._synchronize()
        seconds = (time.perf_counter() - start) / self._calls
        getattr(self.run, "after", lambda: None)()
        return seconds

    def figures(self, seconds: float) -> dict[str, Any]:
        """Device, versions and shares of bandwidth, with the benchmark's own figures."""
        gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else "cpu"
        figures: dict[str, Any] = {
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        if (count := self.comparison.bytes_moved) is not None:
            count = count(**self.values) if callable(count) else count
            figures["GB/s"] = round(count / seconds / 1e9, 2)
            if gpu:  # most of a small call is the host's time to launch it
                seconds = kernel_seconds(self.run, self.device)
                figures["kernel us"] = round(seconds * 1e6, 2)
                figures["kernel GB/s"] = round(count / seconds / 1e9, 1)
            rate = count / seconds / 1e9
            figures["of copy"] = float(f"{rate / copy_bandwidth(self.device):.2g}")
        if self.comparison.figures:
            getattr(self.run, "before", lambda: None)()
            figures |= self.comparison.figures(self.run, seconds, **self.values)
            getattr(self.run, "after", lambda: None)()
        return figures

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Worker:
    """A `Provider` in a process of its own: its memory, threads and settings are its users'."""

    def __init__(
        self,
        comparison: Comparison,
        device: torch.device,
        values: dict[str, Any],
        name: str,
        turn: Lock,
    ) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _take_turns, (turn,))
        build, threads = comparison.build, torch.get_num_threads()
        arguments = (build.__code__.co_filename, build.__name__, device, values, name, threads)
        self._started = self._pool.submit(_start, *arguments)

    def error(self) -> BaseException | None:
        """What went wrong while the provider was made, if anything did."""
        return self._started.exception()

    def seconds(self) -> float:
        """As `Provider.seconds`, after a call that is not timed.

        The system may take back memory that a process does not touch while others have their turn.
        """
        return self._pool.submit(_seconds).result()

    def figures(self, seconds: float) -> dict[str, Any]:
        """As `Provider.figures`."""
        return self._pool.submit(_figures, seconds).result()

    def close(self) -> None:
        """End the process."""
        with self._pool, contextlib.suppress(BrokenExecutor):  # it may have ended itself
            self._pool.submit(_clean_up).result()


# Of a worker's process alone.
_cleanup = contextlib.ExitStack()
_turn: Lock
_provider: Provider


def _take_turns(turn: Lock) -> None:
    global _turn
    _turn = turn


def _start(
    file: str, name: str, device: torch.device, values: dict[str, Any], provider: str, threads: int
) -> None:
    global _provider
    torch.set_num_threads(threads)
    spec = importlib.util.spec_from_file_location("benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    comparison = getattr(module, name).comparison
    make = _cleanup.enter_context(comparison.built(device, values))[provider]
    # The first calls choose algorithms by their times, which others at work would disturb.
    with _turn:
        _provider = Provider(comparison, device, values, make())


def _clean_up() -> None:
    _cleanup.close()


def _seconds() -> float:
    _provider.seconds()
    return _provider.seconds()


def _figures(seconds: float) -> dict[str, Any]:
    return _provider.figures(seconds)


class Replay:
    """A clock for pytest-benchmark by which each round takes what was measured before."""

    def load(self, seconds: list[float]) -> None:
        """Set the rounds' seconds; pytest-benchmark reads its clock before and after each."""
        self._readings = (reading for s in seconds for reading in (0.0, s))

    def __call__(self) -> float:
        return next(self._readings)


@dataclass(frozen=True)
class Comparison:
    """One benchmark, as declared by `compare`. rounds, calls: on a CPU and on a GPU."""

    build: Callable[..., Any]
    providers: tuple[str, ...]
    parameters: dict[str, list[Any]]
    bytes_moved: int | Callable[..., int] | None
    figures: Callable[..., dict[str, Any]] | None
    rounds: tuple[int, int]
    calls: tuple[int, int]
    cold: bool
    own_process: bool

    @property
    def name(self) -> str:
        """`softsign` for bench_softsign."""
        return self.build.__name__.removeprefix("bench_")

    def group(self, values: dict[str, Any]) -> str:
        """`training_step, stacks 2, batch 8`; values that are words stand alone."""
        labels = [v if isinstance(v, str) else f"{k} {v}" for k, v in values.items()]
        return ", ".join([self.name, *labels])

    def choices(self) -> list[dict[str, Any]]:
        """The parameters of each group."""
        choices = itertools.product(*self.parameters.values())
        return [dict(zip(self.parameters, choice, strict=True)) for choice in choices]

    def groups(self) -> list[str]:
        """Names of all groups."""
        return [self.group(values) for values in self.choices()]

    @contextlib.contextmanager
    def built(self, device: torch.device, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The providers that the benchmark's function returns or yields."""
        made = self.build(device, **values)
        with contextlib.ExitStack() as stack:
            if inspect.isgenerator(made):
                made = next(stack.enter_context(contextlib.closing(made)))
            assert set(made) == set(self.providers), f"{self.name} builds {', '.join(made)}"
            yield made

    def measure(
        self,
        device: torch.device,
        values: dict[str, Any],
        rounds: int,
        calls_of_ours: int = 1,
        chosen: Collection[str] | None = None,
    ) -> Result:
        """Time all providers, after a round that does not count.

        calls_of_ours: fasthg's time is the sum of so many, as if it were so much slower. chosen:
        the providers to time, if not all.
        """
        result = Result()
        with contextlib.ExitStack() as stack:
            timers: dict[str, Provider | Worker] = {}
            built = stack.enter_context(self.built(device, values))
            turn = get_context("spawn").Lock()
            for name in self.providers if chosen is None else chosen:
                if isinstance(built[name], str):
                    result.absent[name] = built[name]
                elif self.own_process:
                    timers[name] = Worker(self, device, values, name, turn)
                    stack.callback(timers[name].close)
                else:
                    timers[name] = Provider(self, device, values, built[name])
            for name, timer in list(timers.items()):
                if isinstance(timer, Worker) and (error := timer.error()):
                    oom = isinstance(error, torch.OutOfMemoryError)
                    where = result.absent if oom else result.failed
                    where[name] = "out of memory" if oom else f"{type(error).__name__}: {error}"
                    del timers[name]
            calls = {name: calls_of_ours if name == OURS else 1 for name in timers}
            seconds = [
                {name: sum(t.seconds() for _ in range(calls[name])) for name, t in timers.items()}
                for _ in range(1 + rounds)
            ]
            result.seconds = {name: [one[name] for one in seconds[1:]] for name in timers}
            for name, timer in timers.items():
                result.figures[name] = timer.figures(statistics.median(result.seconds[name]))
        for name, ratio in result.ratios().items():
            low, median, high = (float(f"{value:.4g}") for value in ratio)
            result.figures[name] |= {f"x {OURS}": median, f"x {OURS} q1 q3": [low, high]}
        return result

    def row(
        self, request: Any, benchmark: Any, clock: Replay, device: str, provider: str, **values: Any
    ) -> None:
        """One row of pytest-benchmark; the first of a group measures it."""
        group, place = self.group(values), torch.device(device)
        results = request.config.stash.setdefault(RESULTS, {})
        key = f"{group}, {device}"
        if key not in results:
            rounds = request.config.getoption("bench_rounds", None)
            rounds = rounds or self.rounds[place.type == "cuda"]
            slowed = request.config.getoption("bench_slowed", 1)
            rounds = rounds if benchmark.enabled else 1
            try:
                results[key] = self.measure(place, values, rounds, slowed, _chosen(request.node))
            except torch.OutOfMemoryError:
                results[key] = Result(absent=dict.fromkeys(self.providers, "out of memory"))
            if place.type == "cuda":
                torch.cuda.empty_cache()
        result: Result = results[key]
        if provider in result.absent:
            pytest.skip(result.absent[provider])
        if provider in result.failed:
            pytest.fail(f"{key}: {provider}: {result.failed[provider]}", pytrace=False)
        benchmark.group = key
        benchmark.extra_info |= result.figures[provider]
        clock.load(result.seconds[provider])
        benchmark.pedantic(lambda: None, rounds=len(result.seconds[provider]))
        if provider == OURS and benchmark.enabled:
            faults = [
                *without_kernel(self.name, device),
                *below_floors(group, device, result.gated()),
            ]
            if faults:
                pytest.fail("\n".join(f"{key}: {fault}" for fault in faults), pytrace=False)


def _chosen(item: pytest.Function) -> list[str]:
    """The providers of a row's group that pytest did not deselect."""
    one, name = dict(item.callspec.params), "provider"
    others = (each for each in item.session.items if getattr(each, "obj", None) is item.obj)
    rows = [each.callspec.params for each in others]
    return [row[name] for row in rows if {**row, name: one[name]} == one]


def without_kernel(name: str, device: str) -> list[str]:
    """A sentence if a benchmark is of an operator that runs its torch reference on this device."""
    return [
        f"fasthg runs its torch reference: {row.reason}"
        for row in ops.paths()
        if (row.op, row.device, row.path) == (name, device, "torch reference")
    ]


def read_floors() -> dict[str, dict[str, dict[str, float]]]:
    """floors.yaml: machine class, group, provider -> how many times as fast fasthg must be."""
    if importlib.util.find_spec("yaml") is None:
        return {}  # a machine with a GPU may lack it, and measures all the same
    import yaml

    return yaml.safe_load(FLOORS.read_text(encoding="utf-8"))


def instructions() -> str:
    """What torch finds this processor's to be: `avx2`, `avx512`, `avx512 bf16`."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"{capability} bf16" if has_bf16_instructions() else capability


def floors_of(group: str, device: str) -> dict[str, float]:
    """Floors by provider: those of this class of machine, or of any other processor."""
    floors = read_floors()
    return floors.get(f"{device} {instructions()}", floors.get(device, {})).get(group, {})


def below_floors(group: str, device: str, ratios: dict[str, float]) -> list[str]:
    """A sentence for each ratio that is below its floor."""
    return [
        f'fasthg is {ratios[provider]:.3g} times as fast as "{provider}"; the floor is {floor} '
        f"(benchmarks/{FLOORS.name})"
        for provider, floor in floors_of(group, device).items()
        if provider in ratios and ratios[provider] < floor
    ]


def all_comparisons() -> list[Comparison]:
    """Those of all files `bench_*.py`."""
    modules = [importlib.import_module(path.stem) for path in sorted(FOLDER.glob("bench_*.py"))]
    found = [getattr(each, "comparison", None) for m in modules for each in vars(m).values()]
    return [each for each in found if isinstance(each, Comparison)]


def known_groups() -> dict[str, set[str]]:
    """The providers of each group that there is now; results may hold others."""
    return {group: set(one.providers) for one in all_comparisons() for group in one.groups()}


def compare(
    *providers: str,
    bytes_moved: int | Callable[..., int] | None = None,
    figures: Callable[..., dict[str, Any]] | None = None,
    rounds: tuple[int, int] = (15, 15),
    calls: tuple[int, int] = (1, 1),
    cold: bool = True,
    own_process: bool = False,
    **parameters: Any,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Turn a function that builds providers, `bench_<name>(device, **parameters)`, into rows.

    The function returns, for each name in `providers`, a callable or the reason why there is none,
    which skips that row; `pytest.skip` leaves out the group. To clean up it yields them instead.

    Args:
        providers: their names, in the order in which a round calls them.
        bytes_moved: fewest bytes that a call reads and writes, counted by hand; or a function of
            the parameters.
        figures: `figures(run, seconds of a call, **parameters)` gives further figures of a row.
        rounds: on a CPU and on a GPU.
        calls: in a round, on a CPU and on a GPU, where one call is too short to time.
        cold: fill the caches with other data before each round.
        own_process: each provider runs in a process of its own, and the function returns functions
            that make the callables there.
        parameters: lists of values, e.g. `batch=[8, 32]`; each combination makes a group.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., None]:
        values = {name: list(v) for name, v in parameters.items()}
        comparison = Comparison(
            build, providers, values, bytes_moved, figures, rounds, calls, cold, own_process
        )
        clock = Replay()

        def row(request: Any, benchmark: Any, device: str, provider: str, **chosen: Any) -> None:
            comparison.row(request, benchmark, clock, device, provider, **chosen)

        functools.update_wrapper(row, build)
        names = ["request", "benchmark", "device", *values, "provider"]
        keyword = inspect.Parameter.KEYWORD_ONLY
        row.__signature__ = inspect.Signature([inspect.Parameter(n, keyword) for n in names])
        for name, choice in {"device": DEVICES, **values, "provider": providers}.items():
            row = pytest.mark.parametrize(name, choice)(row)
        row.comparison = comparison
        return pytest.mark.benchmark(timer=clock)(row)

    return decorate
