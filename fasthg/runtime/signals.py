"""Signals of a terminal or a cluster's scheduler, noted and acted on between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_STOP = (signal.SIGINT, signal.SIGTERM)
_HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, 128 and their number, so that temporary files go.

    SIGHUP stays ignored where it is. Outside of the main thread nothing changes.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            previous[_HANGUP] = signal.signal(_HANGUP, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Signals:
    """Notes signals while open, so that a step that has begun is finished first.

    SIGINT (Ctrl-C), SIGTERM (a scheduler ends the job) and SIGHUP (the terminal or the connection
    ends) ask for a save and the end, SIGUSR1 for a save alone. A second SIGINT or SIGTERM raises
    KeyboardInterrupt at once. Where SIGHUP is ignored, as under nohup, it stays so.

    Python allows signal handlers in the main thread only. In another thread none is installed:
    `note` is told so, and the process treats signals as before.

    Args:
        patient: a second SIGINT or SIGTERM is ignored. torchrun passes on signals that a scheduler
            sends to every process anyway, and kills a process that does not end.
        note: told where no handler can be installed.
    """

    def __init__(
        self, *, patient: bool = False, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._patient, self._note = patient, note
        self.stop: int | None = None
        """The number of the signal that asked for the end."""
        self._save = False
        self._previous: dict[int, Any] = {}

    def save_wanted(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            self._note("not the main thread: signals neither stop this work nor save it")
            return self
        for number in _STOP:
            self._previous[number] = signal.signal(number, self._note_stop)
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            self._previous[_HANGUP] = signal.signal(_HANGUP, self._note_stop)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note_stop(self, number: int, _: FrameType | None) -> None:
        if self.stop is None:
            self.stop = number
        elif not self._patient and number != _HANGUP:
            raise KeyboardInterrupt

    def _note_save(self, *_: object) -> None:
        self._save = True
