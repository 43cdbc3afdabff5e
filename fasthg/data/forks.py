"""Forked workers: they leave signals to their parent and end with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fasthg.errors import EnvironmentFault

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Item = TypeVar("Item")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Have this process killed when its parent is, which then cannot end it; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    """`function` of each item, in order, by forked processes; what it raises is raised in order.

    In this process where one is enough or there is no safe fork. Raises EnvironmentFault where a
    process is killed.
    """
    processes = min(processes, len(items))
    if processes < 2 or sys.platform != "linux":
        yield from map(function, items)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, fork, initializer=_start)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool:
        raise EnvironmentFault(
            "a process that reads records was killed; lower NUM_INPUT_THREADS, memory may be short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone decides when workers end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
