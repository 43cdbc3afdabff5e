"""Processes that are forked from one which has imported fasthg, for tests of signals and ends.

Each starts in milliseconds instead of the ten seconds that a new interpreter takes for its imports.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["fasthg.inference.video.predict", "fasthg.report", "fasthg.training.trainer", "torch._dynamo"]
)


class Forked:
    """A function in a process that leads its own group and writes into files."""

    def __init__(
        self,
        call: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        file_bytes: int | None = None,
    ) -> None:
        """Start it.

        call, arguments: travel to the process; the function is of a module, not of a test.
        environment: is added to this process's.
        file_bytes: no file of the process can grow beyond.
        """
        self._folder = tempfile.TemporaryDirectory()
        texts = [os.path.join(self._folder.name, name) for name in ("out", "err")]
        self._texts = [Path(text) for text in texts]
        everything = {**os.environ, **(environment or {})}
        self.process = _CONTEXT.Process(
            target=_run, args=(texts, everything, file_bytes, call, arguments)
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def out(self) -> str:
        """What it has written to the standard output so far."""
        return self._texts[0].read_text() if self._texts[0].exists() else ""

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until the condition holds, as long as the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), "".join(path.read_text() for path in self._texts)
            assert time.monotonic() < end, f"nothing in {seconds} s"
            time.sleep(0.005)

    def ended(self, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for its end: exit status, negative after a signal; standard output and error."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        out, err = (path.read_text() for path in self._texts)
        self._folder.cleanup()
        assert status is not None, f"no end within {seconds} s: {out}{err}"
        return status, out, err


def command(
    *arguments: object, patches: Mapping[str, object] | None = None, **options: Any
) -> Forked:
    """`fasthg ARGUMENTS...`, where the names in `patches` have other values."""
    return Forked(_command, list(map(str, arguments)), dict(patches or {}), **options)


def torchrun(arguments: list[str], ids: str, *, restarts: int) -> Forked:
    """`torchrun --standalone --nproc-per-node 2 -m fasthg ARGUMENTS...`, whose ranks are forked.

    ids: a folder, in which each rank leaves its process id under its number.
    """
    return Forked(_torchrun, arguments, ids, restarts)


def python(code: str, *arguments: object, **options: Any) -> Forked:
    """Code that finds its arguments in `sys.argv`."""
    return Forked(_python, code, list(map(str, arguments)), **options)


def _run(
    texts: list[str],
    environment: Mapping[str, str],
    file_bytes: int | None,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.setsid()
    for descriptor, path in enumerate(texts, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    call(*arguments)


def _command(arguments: list[str], patches: dict[str, object]) -> None:
    import torch

    from fasthg.cli import main

    torch.set_num_threads(1)
    sys.argv = ["fasthg", *arguments]
    for name, value in patches.items():
        mock.patch(name, value).start()
    main()


def _torchrun(arguments: list[str], ids: str, restarts: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=restarts,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        monitor_interval=0.1,
    )
    elastic_launch(config, _rank)(arguments, ids)


def _rank(arguments: list[str], ids: str) -> None:
    (Path(ids) / os.environ["RANK"]).write_text(str(os.getpid()))
    _command(arguments, {})


def _python(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
