"""Forked worker processes: their parent handles signals for them, and they end when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fasthg.errors import EnvironmentFault

_POLL_SECONDS = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


def end_with_parent(parent: int) -> None:
    """Have this process end within `_POLL_SECONDS` of its parent, however the parent ends.

    A daemon thread compares `os.getppid()` with `parent`, the process id of the parent, which the
    parent must read before it forks: a parent that ended before this call is noticed, too.
    `PR_SET_PDEATHSIG` is no substitute: it acts when the *thread* that forked ends. The thread
    leaves by `os._exit`, because a worker that waits to hand over a batch never returns.
    """
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), name="watch parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


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
    pool = ProcessPoolExecutor(processes, fork, initializer=_start, initargs=(os.getpid(),))
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool:
        raise EnvironmentFault(
            "a process that reads records was killed; lower NUM_INPUT_THREADS, memory may be short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone decides when workers end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent)
