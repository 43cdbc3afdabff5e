"""What a training reports of its steps: status line, `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fasthg.config import Config
from fasthg.data.prefetch import AHEAD
from fasthg.errors import FasthgError, install_hint
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.training.step import StepResult
from fasthg.words import duration

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard import summary

    NO_EVENTS: str | None = None
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "tensorboard":
        raise
    NO_EVENTS = f"no TensorBoard events: they need tensorboard; {install_hint('report')}"
"""Why no events are written; None where they are."""


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
    """A bar and a status line that rewrite themselves; without a terminal a line for each report.

    Args:
        console: where to write.
        total: number of training steps.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(
        self, console: Console, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._total = total
        self._clock, self._start = clock, clock()
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
        eta = f"ETA {duration((self._total - step) * step_s)}"
        facts = [f"loss {loss:.4g}", f"lr {rate:.2e}", f"{images_per_s:.1f} img/s"]
        wait_text = f"waiting for data {wait:.0%}"
        if self._live is None:
            self.note("  ".join([f"step {step}/{self._total}", *facts, eta, wait_text]))
            return
        place, width = f"step {step}/{self._total}", self._console.width
        times = f"{duration(self._clock() - self._start)} elapsed  {eta}"
        line = Table.grid(padding=(0, 2, 0, 0))
        room = width - cell_len(place) - cell_len(times) - 6
        if room >= 4:
            line.add_row(place, ProgressBar(self._total, step, width=min(room, 40)), times)
        else:
            line.add_row(place, eta)
        # What does not fit is left out, never cut.
        shown: list[str] = []
        for fact in (*facts, wait_text):
            if cell_len("  ".join([*shown, fact])) <= width:
                shown.append(fact)
        self._live.update(Group(line, Text("  ".join(shown), no_wrap=True)), refresh=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class EventWriter:
    """Scalars and images for TensorBoard.

    Every call writes in the caller's thread and raises where the disk is full. torch's
    SummaryWriter writes in a thread of its own, whose errors reach nobody.

    Args:
        folder: the run folder; None writes nothing, as on every rank but the first, and so does
            each writer where TensorBoard is not installed (`NO_EVENTS`).
        purge_step: TensorBoard drops older events from this step on: a resumed run writes them
            again.

    Raises:
        FasthgError: the disk is full or the folder cannot be written; so does every method.
    """

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        self._folder = folder
        self._records: RecordWriter | None = None
        if folder is None or NO_EVENTS:
            return
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        paths = (folder / f"{name}.{number}" for number in itertools.count())
        path = next(path for path in paths if not path.exists())
        with self._explained():
            self._records = RecordWriter(path.open("wb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def row(self, values: Mapping[str, Any]) -> None:
        """Write a row of metrics at its `step`; a list becomes one curve per stack."""
        if self._records is None:
            return
        for name, value in values.items():
            if name == "step":
                continue
            for number, item in enumerate(value if isinstance(value, list) else [value]):
                tag = f"{name}/stack{number}" if isinstance(value, list) else name
                self._write(Event(step=values["step"], summary=summary.scalar(tag, item)))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write an image, uint8 `(height, width, 3)`, RGB."""
        if self._records is None:
            return
        encoded = summary.image(name, pixels, dataformats="HWC")
        self._write(Event(step=step, summary=encoded))

    def close(self) -> None:
        """Close the file. Nothing is left to write: it was flushed, or a call has raised."""
        if self._records is not None:
            with contextlib.suppress(OSError):
                self._records.close()

    def _write(self, event: Event) -> None:
        if self._records is None:
            return
        event.wall_time = time.time()
        with self._explained():
            self._records.write(event.SerializeToString())
            self._records.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FasthgError(
                f"{self._folder}: cannot write TensorBoard events ({error.strerror}); "
                "free disk space, then --resume"
            ) from error


class PendingLosses:
    """The losses of one step on their way from the device, which works on meanwhile.

    Args:
        step: number of the step, the first is 1.
        result: of the step.
        instances: the batch's instances, `(batch,)`.
        logged: whether a row of metrics is written for this step.
    """

    def __init__(
        self, step: int, result: StepResult, instances: Tensor, logged: bool = True
    ) -> None:
        self.step, self.rate, self.instances = step, result.learning_rate, instances
        self.logged = logged
        self._copied: torch.cuda.Event | None = None
        self._losses = result.loss
        if result.loss.is_cuda:
            # A copy: the next step writes over the losses.
            self._losses = torch.empty_like(result.loss, device="cpu", pin_memory=True)
            self._losses.copy_(result.loss, non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event()

    def losses(self) -> Tensor:
        """float64 `(stacks, batch)` on the host; waits until the step is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._losses.double()


class MetricLogger:
    """Checks the losses of every step and logs some, without making a GPU wait.

    Args:
        config: SAVE_SUMMARY_SECS, NUM_TRAIN_ITERATIONS and LOSS_SCALING are read.
        run: has the log.
        events, progress: for TensorBoard and the terminal.
        check: called with step, losses `(stacks, batch)` and instances of each step; raises if a
            loss is not finite.
        group: the processes that train together; the first one writes.
        told: called with each row of metrics after it is written.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        events: EventWriter,
        progress: ProgressLine,
        check: Callable[[int, Tensor, Tensor], None],
        group: ProcessGroup = SINGLE_PROCESS,
        told: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ) -> None:
        self._config, self._run, self._check, self._group = config, run, check, group
        self._told = told
        self._events, self._progress = events, progress
        self._pending: deque[PendingLosses] = deque()
        self._next_events = time.monotonic()
        self.meter = Meter()

    def record(self, step: int, result: StepResult, instances: Tensor, *, logged: bool) -> None:
        """Take the result of a step; on a GPU it is reported when a later step is recorded.

        logged: the step gets a row of metrics; otherwise its losses are only checked.
        """
        self._pending.append(PendingLosses(step, result, instances, logged))
        # The prefetcher has waited for older steps already.
        self.report(newest=AHEAD if result.loss.is_cuda else 0)

    def report(self, newest: int = 0) -> None:
        """Check and log the recorded steps, except the `newest` ones."""
        while len(self._pending) > newest:
            self._report(self._pending.popleft())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Report all steps; the time inside the context does not count in the rates."""
        self.report()
        begin = time.monotonic()
        yield
        self.meter.pause(time.monotonic() - begin)

    def _report(self, pending: PendingLosses) -> None:
        losses = pending.losses()
        self._check(pending.step, losses, pending.instances)
        if not pending.logged:
            return
        images_per_s, step_s, wait = self.meter.rates()
        self.meter.reset()
        group = self._group
        images_per_s *= group.size
        (wait,) = group.largest(wait)
        stack_losses = group.added(losses.sum(1))
        if self._config.LOSS_SCALING == "mean":
            stack_losses /= group.size
        if not group.first:
            return
        loss = float(stack_losses.sum())
        self._progress.update(pending.step, loss, pending.rate, images_per_s, step_s, wait)
        row = {
            "step": pending.step,
            "loss": loss,
            "loss_per_stack": stack_losses.tolist(),
            "learning_rate": pending.rate,
            "images_per_s": images_per_s,
            "wait_share": wait,
        }
        written = self._run.log(row)
        last = pending.step == self._config.NUM_TRAIN_ITERATIONS
        if time.monotonic() >= self._next_events or last:
            self._next_events = time.monotonic() + self._config.SAVE_SUMMARY_SECS
            self._events.row(row)
        self._told(written)
