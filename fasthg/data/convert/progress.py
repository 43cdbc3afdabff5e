"""A bar while many frames are converted; nothing where standard error is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FEW = 20
"""Frames that are done before a bar could be read."""


@contextlib.contextmanager
def progress(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Show a bar with the time left; it is gone at the end.

    what: what is done with the `total` frames. Yields what to call after each frame. On standard
    error, so that a report that is piped has no trace of it.
    """
    console = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or total < _FEW,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
