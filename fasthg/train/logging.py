"""What a training reports of its steps, without making the device wait for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from fasthg.config import Config
from fasthg.data.prefetch import AHEAD
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.runtime.progress import Meter, ProgressLine
from fasthg.train.step import StepResult
from fasthg.train.tensorboard import Summary


class Reading:
    """The losses of a step on their way from the device, which goes on meanwhile."""

    def __init__(
        self, step: int, result: StepResult, instances: Tensor, logged: bool = True
    ) -> None:
        self.step, self.rate, self.instances = step, result.learning_rate, instances
        self.logged = logged
        self._arrived: torch.cuda.Event | None = None
        self._losses = result.loss
        if result.loss.is_cuda:
            # A copy: the next step writes over the losses.
            self._losses = torch.empty_like(result.loss, device="cpu", pin_memory=True)
            self._losses.copy_(result.loss, non_blocking=True)
            self._arrived = torch.cuda.current_stream().record_event()

    def losses(self) -> Tensor:
        """float64 `(stacks, batch)`, once the step is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._losses.double()


class MetricLogger:
    """Checks the losses of every step and writes some, while later ones wait on the device.

    Args:
        config: SAVE_SUMMARY_SECS and NUM_TRAIN_ITERATIONS are read.
        run: has the log.
        summary, progress: for TensorBoard and the terminal.
        refuse: raises if the losses `(stacks, batch)` of a step, its second argument, are not all
            numbers; its third is the instances.
        group: the processes that train together; the first one writes.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        summary: Summary,
        progress: ProgressLine,
        refuse: Callable[[int, Tensor, Tensor], None],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._config, self._run, self._refuse, self._group = config, run, refuse, group
        self._summary, self._progress = summary, progress
        self._readings: deque[Reading] = deque()
        self._next_summary = time.monotonic()
        self.meter = Meter()

    def note(self, step: int, result: StepResult, instances: Tensor, *, logged: bool) -> None:
        """Report a step that was just launched, on a GPU together with a later one.

        logged: written to log, progress and summary, and not checked alone.
        """
        self._readings.append(Reading(step, result, instances, logged))
        # The feeder has waited for older ones already.
        self.report(newest=AHEAD if result.loss.is_cuda else 0)

    def report(self, newest: int = 0) -> None:
        """Check and write what was noted, except the `newest` ones."""
        while len(self._readings) > newest:
            self._report(self._readings.popleft())

    def _report(self, reading: Reading) -> None:
        losses = reading.losses()
        self._refuse(reading.step, losses, reading.instances)
        if not reading.logged:
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
        self._progress.update(reading.step, loss, reading.rate, images_per_s, step_s, wait)
        row = {
            "step": reading.step,
            "loss": loss,
            "loss_per_stack": stack_losses.tolist(),
            "learning_rate": reading.rate,
            "images_per_s": images_per_s,
            "wait_share": wait,
        }
        self._run.log(row)
        last = reading.step == self._config.NUM_TRAIN_ITERATIONS
        if time.monotonic() >= self._next_summary or last:
            self._next_summary = time.monotonic() + self._config.SAVE_SUMMARY_SECS
            self._summary.row(row)
