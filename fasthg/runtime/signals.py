"""Signals of a terminal or a cluster's scheduler, noted while a step ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

_STOP = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes signals, so that what a step does is done before anything else happens.

    SIGINT (Ctrl-C) and SIGTERM (a scheduler ends the job) ask for a save and the end, SIGUSR1 for a
    save alone. A second SIGINT or SIGTERM does not wait.

    Args:
        patient: nor does a second one end anything: torchrun hands on what a scheduler has sent to
            every process already, and kills by itself what does not end.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.stop: int | None = None
        """The number of the signal that asked for the end."""
        self._save = False
        self._previous: dict[int, Any] = {}

    def save_wanted(self) -> bool:
        """Whether a save was asked for since the last call."""
        wanted, self._save = self._save, False
        return wanted

    def __enter__(self) -> Signals:
        for number in _STOP:
            self._previous[number] = signal.signal(number, self._note_stop)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note_stop(self, number: int, _: FrameType | None) -> None:
        if self.stop is None:
            self.stop = number
        elif not self._patient:
            raise KeyboardInterrupt

    def _note_save(self, *_: object) -> None:
        self._save = True
