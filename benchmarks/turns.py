"""Calls providers in turn, here or each in a process of its own, and takes the time."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fasthg.runtime.process import peak_bytes

if TYPE_CHECKING:
    from race import Race

Run = Callable[[], object]
Count = int | Callable[[torch.device], int]


def counted(count: Count, device: torch.device) -> int:
    return count(device) if callable(count) else count


def in_turn(
    runs: dict[str, Run],
    rounds: int,
    calls: int = 1,
    wait: Run = lambda: None,
    cool: Run = lambda: None,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of a call, by provider and round, after a round that does not count if `warm`."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm + rounds):
        for name, run in runs.items():
            getattr(run, "before", cool)()
            wait()
            if isinstance(run, Process):
                seconds[name].append(run())
                continue
            start = time.perf_counter()
            for _ in range(calls):
                run()
            wait()
            seconds[name].append((time.perf_counter() - start) / calls)
            getattr(run, "after", wait)()
    return {name: values[warm:] for name, values in seconds.items()}


class Process:
    """A provider in a process of its own: its memory, threads and settings are those of its users.

    Called, it gives the seconds of a call as that process took them.
    """

    def __init__(
        self, race: Race, device: torch.device, chosen: dict[str, Any], provider: str
    ) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        file = race.build.__code__.co_filename
        given = (theirs, file, race.name, device, chosen, provider, torch.get_num_threads())
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=given)

    def __enter__(self) -> Process:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it may have ended
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()

    def __call__(self) -> float:
        return self._ask("seconds")

    def figures(self, seconds: float, chosen: dict[str, Any]) -> dict[str, Any]:
        return self._ask(seconds)

    def _ask(self, what: str | float) -> Any:
        with contextlib.suppress(OSError):  # it may have ended
            self._pipe.send(what)
        with contextlib.suppress(EOFError):
            while self._pipe.poll(1) or self._process.is_alive():
                if self._pipe.poll():
                    return self._pipe.recv()
        raise RuntimeError("the process of a provider ended; what it said is above")


def _serve(
    pipe: Any,
    file: str,
    name: str,
    device: torch.device,
    chosen: dict[str, Any],
    provider: str,
    threads: int,
) -> None:
    from race import RACES

    torch.set_num_threads(threads)
    spec = importlib.util.spec_from_file_location("benchmark", file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    race = RACES[name]
    calls = counted(race.calls, device)
    with race.built(device, chosen) as found:
        run = found[provider]()
        while (asked := pipe.recv()) is not None:
            if asked == "seconds":
                # After one that does not count: what a process does not touch for a while, the
                # system may take back, and that others had their turn is not the provider's cost.
                pipe.send(in_turn({provider: run}, 1, calls)[provider][0])
                continue
            peak = peak_bytes() / 2**30
            further = race.further(device, run, asked, chosen)
            pipe.send({"peak GiB": round(peak, 2)} | further)
