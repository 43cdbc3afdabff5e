"""The training's one line on the terminal; plain lines where output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


def duration(seconds: float) -> str:
    """`3725` -> `1:02:05`; `65` -> `1:05`."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Meter:
    """Rates over the time since the last report.

    Args:
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._start = self._clock()
        self._waited = 0.0
        self._images = 0
        self._steps = 0

    def add(self, images: int, waited: float) -> None:
        """Count one step with its images and the seconds it waited for data."""
        self._images += images
        self._steps += 1
        self._waited += waited

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training, such as a validation."""
        self._start += seconds

    def rates(self) -> tuple[float, float, float]:
        """Images per second, seconds per step, and the share of time spent waiting for data."""
        elapsed = max(self._clock() - self._start, 1e-9)
        return self._images / elapsed, elapsed / max(self._steps, 1), self._waited / elapsed


class ProgressLine:
    """Shows one status line that rewrites itself, or a line per report without a terminal.

    Args:
        console: where to write.
        total: number of training steps.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def update(
        self, step: int, loss: float, rate: float, images_per_s: float, step_s: float, wait: float
    ) -> None:
        """Show the state after `step` steps."""
        eta = duration((self._total - step) * step_s)
        text = (
            f"step {step}/{self._total}  loss {loss:.4g}  lr {rate:.2e}  {images_per_s:.1f} img/s  "
            f"ETA {eta}  waiting for data {wait:.0%}"
        )
        if self._live:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
