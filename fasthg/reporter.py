"""What a training reports of its steps, without making the device wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fasthg.config import Config
from fasthg.progress import Meter, ProgressLine
from fasthg.run import RunFolder
from fasthg.step import StepResult
from fasthg.summary import Summary


class Reading:
    """The losses of a step on their way from the device, which goes on meanwhile."""

    def __init__(self, step: int, result: StepResult, instances: Tensor) -> None:
        self.step, self.rate, self.instances = step, result.learning_rate, instances
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


class Reporter:
    """Writes the losses of a step, while the next one already waits on the device.

    Args:
        config: SAVE_SUMMARY_SECS and NUM_TRAIN_ITERATIONS are read.
        run: has the log.
        summary, progress: for TensorBoard and the terminal.
        refuse: raises if the losses `(stacks, batch)` of a step, its second argument, are not all
            numbers; its third is the instances.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        summary: Summary,
        progress: ProgressLine,
        refuse: Callable[[int, Tensor, Tensor], None],
    ) -> None:
        self._config, self._run, self._refuse = config, run, refuse
        self._summary, self._progress = summary, progress
        self._reading: Reading | None = None
        self._next_summary = time.monotonic()
        self.meter = Meter()

    def note(self, step: int, result: StepResult, instances: Tensor) -> None:
        """Report a step that was just launched; on a GPU, with the next `report`."""
        self._reading = Reading(step, result, instances)
        if not result.loss.is_cuda:
            self.report()

    def report(self) -> None:
        """Write what was noted and not yet reported: log, progress, summary."""
        reading, self._reading = self._reading, None
        if reading is None:
            return
        losses = reading.losses()
        self._refuse(reading.step, losses, reading.instances)
        images_per_s, step_s, wait = self.meter.rates()
        self.meter.reset()
        loss = float(losses.sum())
        self._progress.update(reading.step, loss, reading.rate, images_per_s, step_s, wait)
        row = {
            "step": reading.step,
            "loss": loss,
            "loss_per_stack": losses.sum(1).tolist(),
            "learning_rate": reading.rate,
            "images_per_s": images_per_s,
            "wait_share": wait,
        }
        self._run.log(row)
        last = reading.step == self._config.NUM_TRAIN_ITERATIONS
        if time.monotonic() >= self._next_summary or last:
            self._next_summary = time.monotonic() + self._config.SAVE_SUMMARY_SECS
            self._summary.row(row)
