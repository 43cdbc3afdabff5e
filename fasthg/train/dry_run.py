"""A training tried out: two steps, a validation and a save, then what the whole run would take."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.loader import Loader
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.device import choose_device
from fasthg.runtime.process import peak_bytes
from fasthg.runtime.progress import ProgressLine
from fasthg.train.finetune import starting_weights
from fasthg.train.memory import GIB, estimate, is_out_of_memory, out_of_memory
from fasthg.train.tensorboard import Summary
from fasthg.train.trainer import Training, open_data

STEPS = 2
"""The first may compile, capture or allocate; the second is one like all others."""
VALIDATED = 8
"""Batches of a validation, at most; the time of all follows from them."""


class Facts(NamedTuple):
    """What the steps of a dry run took, in seconds and bytes."""

    first_step: float
    step: float
    """The second one, with its wait for data."""
    validation: float
    """A whole one, scaled up from its first batches where it has more than VALIDATED."""
    save: float
    checkpoint: int
    measured: int
    """Peak of the memory in the steps; on a CPU that by which the process grew."""


def dry_run(config: Config, console: Console, *, source: Path | None = None) -> Facts | None:
    """Train for two steps, validate, save, print what a whole run takes; None if interrupted.

    Everything happens as in a training, in a run folder of its own in RUNS_DIR, of which nothing is
    left behind.

    Args:
        config: the resolved configuration.
        console: where everything is printed.
        source: the configuration file.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    device = choose_device(config.DEVICE)
    short = config.model_copy(
        update={
            "NUM_TRAIN_ITERATIONS": STEPS,
            "VALIDATE_EVERY_N_STEPS": STEPS,
            "SAVE_INTERVAL_SECS": 1e9,  # it saves at its end
            "RUN_NAME": f".dry-run-{os.getpid()}-{time.time_ns()}",
        }
    )
    with open_data(short, device) as (first, validation), _temporary_run(short, source) as run:
        some = _FirstBatches(validation.loader, VALIDATED) if validation else None
        if validation and some:
            validation = replace(validation, loader=some)
        try:
            need = estimate(config, device)
            before = _memory(device)
            training = _Timed(short, device, first, validation, run, console)
            training.announce()
            training.begin(starting_weights(config))
            _say(
                console,
                f"memory   {need.total / GIB:.2f} GiB estimated: {need.kept / GIB:.2f} for weights "
                f"and optimiser, {need.maps / GIB:.2f} for maps",
            )
            if training.fit().signal is not None:
                return None
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(config, device, error) from error
            raise
        seconds = training.validating
        if validation and some and some.given:
            seconds += some.seconds * (validation.sampler.batches_per_epoch / some.given - 1)
        first_step, step = _step_seconds(run, config.BATCH_SIZE)
        facts = Facts(
            first_step=first_step,
            step=step,
            validation=seconds,
            save=training.saving,
            checkpoint=run.last.stat().st_size,
            measured=max(training.peak - before, 0),
        )
    for line in describe(config, facts, device):
        _say(console, line)
    if some and validation and some.given < validation.sampler.batches_per_epoch:
        whole = validation.sampler.batches_per_epoch
        _say(console, f"         a validation was tried on {some.given} of its {whole} batches")
    return facts


def describe(config: Config, facts: Facts, device: torch.device) -> list[str]:
    """Lines about a whole run of `config`, whose pieces take what `facts` says."""
    of = "peak on the GPU" if device.type == "cuda" else "by which this process grew"
    steps = config.NUM_TRAIN_ITERATIONS
    validations = -(-steps // config.VALIDATE_EVERY_N_STEPS)
    training, validating = steps * facts.step, validations * facts.validation
    # The last save comes at the end; SAVE_INTERVAL_SECS 0 saves after each step.
    apart = max(config.SAVE_INTERVAL_SECS, facts.step)
    saves = 1 + min(int((training + validating) / max(apart, 1e-9)), steps - 1)
    saving = saves * facts.save
    return [
        f"memory   {facts.measured / GIB:.2f} GiB measured ({of})",
        f"step     {facts.step:.3g} s, the first {facts.first_step:.3g} s",
        f"whole    about {span(training + validating + saving)}: {steps} x {facts.step:.3g} s, "
        f"validation {validations} x {facts.validation:.3g} s, save {saves} x {facts.save:.3g} s",
        f"saved    {facts.checkpoint / 1e6:.1f} MB a checkpoint; {config.MAX_TO_KEEP} stay, and "
        f"one more every {config.KEEP_CHECKPOINT_EVERY_N_HOURS:g} hours",
    ]


def span(seconds: float) -> str:
    """`200000` -> `2.3 days`; `700` -> `11.7 minutes`."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class _Timed(Training):
    """A training that knows how long its last validation and save took."""

    validating = saving = 0.0
    peak = 0
    """Bytes, of the steps; see `_memory`."""

    def _validate(self, summary: Summary, progress: ProgressLine) -> None:
        self.peak = _memory(self.device, peak=True)
        begin = time.perf_counter()
        super()._validate(summary, progress)
        self.validating = time.perf_counter() - begin

    def _save(self) -> None:
        begin = time.perf_counter()
        super()._save()
        self.saving = time.perf_counter() - begin


class _FirstBatches:
    """A loader that gives the first batches of a pass only, and how long they took to be used."""

    seconds = 0.0
    given = 0

    def __init__(self, loader: Loader, most: int) -> None:
        self._loader, self._most = loader, most
        self.name = loader.name

    @property
    def corrupt(self) -> dict[int, str]:
        """See `Loader`."""
        return self._loader.corrupt

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """See `Loader`."""
        begin = time.perf_counter()
        for batch in self._loader.batches(start, min(stop, start + self._most)):
            yield batch
            self.given += 1
            self.seconds = time.perf_counter() - begin

    def close(self) -> None:
        """See `Loader`."""
        self._loader.close()


@contextlib.contextmanager
def _temporary_run(config: Config, source: Path | None) -> Iterator[RunFolder]:
    """A run folder as a training makes it; it goes, and so do folders made to hold it."""
    parent = Path(config.RUNS_DIR).absolute()
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        yield RunFolder.create(config, source, "dry-run")
    finally:
        shutil.rmtree(parent / str(config.RUN_NAME), ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # another run is in it by now
                folder.rmdir()


def _step_seconds(run: RunFolder, batch_size: int) -> tuple[float, float]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    first, second = (batch_size / row["images_per_s"] for row in rows if "images_per_s" in row)
    return first, second


def _memory(device: torch.device, *, peak: bool = False) -> int:
    """Bytes that torch has taken of a GPU, or this process of the machine: now, or at most."""
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    now = Path("/proc/self/statm")
    if peak or not now.exists():
        return peak_bytes()
    return int(now.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
