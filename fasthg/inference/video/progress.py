"""How far a prediction is, and how long it will take: bars on a terminal, else a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fasthg.words import duration

LINE_S = 60.0
"""Seconds between two lines where there is no terminal."""


class Advance:
    """Frames of several films: how many are done, and when the rest will be.

    Args:
        counts: frames of each film, as far as headers say; None where one does not.
        clock: seconds, rising.
    """

    def __init__(
        self, counts: Sequence[int | None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._counts, self._clock = list(counts), clock
        self.film = -1
        """Which film is being predicted, from 0; its frames and those done of it follow."""
        self.done = self._new = 0
        self._made, self._worked, self._start = 0, 0.0, clock()

    @property
    def count(self) -> int | None:
        """Frames of this film, where known."""
        return self._counts[self.film]

    def begin(self) -> None:
        """The next film begins."""
        self.film += 1
        self.done, self._new, self._start = 0, 0, self._clock()

    def reached(self, done: int, made: int) -> None:
        """done: frames of this film that are done; made: those of them made now."""
        self.done, self._new = done, made

    def end(self) -> None:
        """The film ends. Its frames count in the rate if any were made."""
        if self._new > 0:
            self._made += self._new
            self._worked += self._clock() - self._start
        self._new = 0

    @property
    def rate(self) -> float | None:
        """Frames a second, of this film; before its first frames, of those before it."""
        seconds = self._clock() - self._start
        if self._new > 0 and seconds > 0:
            return self._new / seconds
        return self._made / self._worked if self._worked else None

    def left(self, films: bool = False) -> float | None:
        """Seconds until this film is done, or with `films` all; None where that is not known."""
        ahead = self._counts[self.film :] if films else [self.count]
        if not self.rate or None in ahead:
            return None
        return max(0, sum(each or 0 for each in ahead) - self.done) / self.rate

    def line(self) -> str:
        """What is done, in words."""
        text = f"{self.done} of {self.count} frames" if self.count else f"{self.done} frames"
        if self.rate:
            text += f", {self.rate:.1f} a second"
        if (left := self.left()) is not None:
            text += f", {duration(left)} left"
        if len(self._counts) > 1:
            text += f"; film {self.film + 1} of {len(self._counts)}"
            if (left := self.left(films=True)) is not None:
                text += f", {duration(left)} left for all"
        return text


class Shown:
    """An `Advance`, shown: on a terminal a bar for the film and, for several, one for all;
    elsewhere a line when a minute has passed."""

    def __init__(self, advance: Advance, names: Sequence[str], console: Console) -> None:
        self.advance, self._names, self._console = advance, names, console
        self._said = time.perf_counter()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Column(advance, Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._film = self._bars.add_task("", visible=False)
        self._all = self._bars.add_task("all", total=len(names), visible=len(names) > 1)

    def __enter__(self) -> Shown:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self) -> None:
        """The next film begins."""
        self.advance.begin()
        self._said = time.perf_counter()
        name, most = self._names[self.advance.film], max(8, self._console.width // 3)
        if len(name) > most:  # names of films often differ at their ends
            name = f"\N{HORIZONTAL ELLIPSIS}{name[1 - most :]}"
        self._bars.reset(self._film, total=self.advance.count, description=name, visible=True)

    def reached(self, done: int, made: int) -> None:
        """As `Advance.reached`."""
        self.advance.reached(done, made)
        share = min(1.0, done / self.advance.count) if self.advance.count else 0.0
        self._bars.update(self._film, completed=done)
        self._bars.update(self._all, completed=self.advance.film + share)
        now = time.perf_counter()
        if not self._console.is_terminal and now - self._said >= LINE_S:
            self._said = now
            name = self._names[self.advance.film]
            self._console.print(
                f"{name}: {self.advance.line()}", markup=False, highlight=False, soft_wrap=True
            )

    def end(self) -> None:
        """The film ends."""
        self.advance.end()
        self._bars.update(self._all, completed=self.advance.film + 1)


class _Column(ProgressColumn):
    """Numbers at the end of a bar."""

    def __init__(self, advance: Advance, table_column: Column) -> None:
        super().__init__(table_column)
        self._advance = advance

    def render(self, task: Task) -> Text:
        """The film's frames, rate and time left; or the films' and the time left of all."""
        advance = self._advance
        if task.description == "all":
            text, left = f"film {advance.film + 1}/{task.total:.0f}", advance.left(films=True)
        else:
            text, left = f"{advance.done}/{advance.count or '?'}", advance.left()
            if advance.rate:
                text += f" {advance.rate:.1f}/s"
        return Text(text + ("" if left is None else f", {duration(left)} left"))
