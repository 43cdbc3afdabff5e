"""Worker processes end with their parent, however it ends, and with nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fasthg.data import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")

# The parent forks one worker, prints its id and is killed; argv: seconds until the worker looks.
PARENT = """
import os, sys, time
from fasthg.data.forks import end_with_parent

parent = os.getpid()
worker = os.fork()
if worker == 0:
    time.sleep(float(sys.argv[1]))
    end_with_parent(parent)
    time.sleep(60)
    os._exit(0)
print(worker, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("delay", [0.0, 1.0], ids=["watched", "killed before the worker looks"])
def test_a_worker_ends_after_its_parent_is_killed(repository: Path, delay: float) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(delay)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    try:
        time.sleep(0 if delay else 0.7)
        run.kill()
        run.wait()
        deadline = time.monotonic() + delay + 5
        while _runs(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _runs(worker)
    finally:
        run.kill()
        if _runs(worker):
            os.kill(worker, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie: nobody may reap an orphan in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_worker_outlives_the_thread_that_forked_it() -> None:
    process = multiprocessing.get_context("fork").Process(target=_linger, args=(os.getpid(),))
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    process.join(30)
    assert process.exitcode == 7


def _linger(parent: int) -> None:
    forks.end_with_parent(parent)
    time.sleep(3 * forks._POLL_SECONDS)
    os._exit(7)
