"""The training loop: batches, steps, validation, checkpoints, logs; it stops cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fasthg import metrics
from fasthg.config import Config
from fasthg.data.prefetch import Prefetcher
from fasthg.data.split import Split
from fasthg.errors import DataError, FasthgError
from fasthg.inference.plots import draw_instances
from fasthg.inference.predictor import Predictions, predict
from fasthg.model import build_model
from fasthg.runs.checkpoint import CheckpointKeeper, NoCheckpoint, save_state, save_weights
from fasthg.runs.run_folder import EARLY, RunFolder
from fasthg.runs.weights import weights_metadata
from fasthg.runtime.device import Precision, choose_device
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup, open_process_group
from fasthg.runtime.signals import Signals
from fasthg.training.environment import describe_start
from fasthg.training.estimate import warn_of_days
from fasthg.training.finetune import Start, starting_weights
from fasthg.training.hooks import NO_HOOKS, Hook, Hooks, StopTraining
from fasthg.training.logging import NO_EVENTS, EventWriter, MetricLogger, ProgressLine
from fasthg.training.memory import explained_out_of_memory
from fasthg.training.resume import (
    RestartNote,
    best_so_far,
    check_resumable,
    differences,
    load_newest_on_all_ranks,
    resume_fingerprint,
)
from fasthg.training.setup import (
    check_batch_norm,
    check_same_data,
    check_same_weights,
    describe_training,
    open_data,
    open_run,
)
from fasthg.training.step import TrainStep
from fasthg.words import counted

DRAWN = 8
"""Validation instances drawn for TensorBoard."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    run: RunFolder
    step: int
    signal: int | None = None
    """The signal that ended it early; None also where EARLY_STOP_PATIENCE did."""
    rank: int = 0
    """Of this process; only rank 0 evaluates after the training."""


class ControlRequests(NamedTuple):
    """Stop and save requests gathered after each step: signals of all ranks, and the save timer."""

    stop: int | None
    """Number of the signal that requests the end."""
    save: bool
    """SIGUSR1 requests a save."""
    save_due: bool
    """SAVE_INTERVAL_SECS have passed."""
    stop_early: bool
    """EARLY_STOP_PATIENCE validations in a row brought no improvement."""


def train(
    config: Config,
    console: Console,
    *,
    source: Path | None = None,
    stem: str = "run",
    resume: Path | None = None,
    hooks: Hooks = NO_HOOKS,
) -> TrainResult:
    """Train as `config` says.

    Args:
        config: the resolved configuration.
        console: where progress is printed.
        source: the configuration file, copied into the run folder.
        stem: names the run folder, with the time, where RUN_NAME is null.
        resume: an existing run folder to resume in.
        hooks: called while the pose network trains, not the locator.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    with open_process_group(config.DEVICE) as group:
        check_batch_norm(config, group.size)
        device = _own_device(config, group)
        note = RestartNote(Path(config.RUNS_DIR)) if group.active else None
        if note is not None and group.first and not note.restarts:
            note.remove()  # of an older job of that name
        with open_data(config, device, group) as (train_split, validation):
            check_same_data(group, config, train_split, validation)
            start = starting_weights(config) if resume is None else None
            run, resumed = open_run(config, source, stem, resume, group, note)
            lock = run.locked() if group.first else contextlib.nullcontext()
            with lock, explained_out_of_memory(config, device):
                training = Training(
                    *(config, device, train_split, validation, run, console, group), hooks=hooks
                )
                if resumed:
                    training.resume()
                training.describe()
                if NO_EVENTS and group.first:
                    console.print(NO_EVENTS, markup=False, highlight=False, soft_wrap=True)
                if not resumed:
                    training.begin(start)
                check_same_weights(group, training.step.flat.values)
                if group.first:
                    if resumed:
                        run.write_config(config)
                    before = run.environment() if resumed else None
                    run.write_json("env.json", describe_start(before))
                result = training.fit()
                if result.signal is None and config.LOCATOR == "auto":
                    result = _with_locator(
                        *(config, console, result, device, train_split, validation, group)
                    )
        if note is not None and group.first and result.signal is None:
            note.remove()
        return result


def add_locator(config: Config, console: Console, run: RunFolder) -> TrainResult:
    """Train the locator of a finished run, or go on with it.

    Args:
        config: the run's configuration, with overrides.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    with open_process_group(config.DEVICE) as group:
        device = _own_device(config, group)
        with open_data(config, device, group) as (train_split, validation):
            check_same_data(group, config, train_split, validation)
            lock = run.locked() if group.first else contextlib.nullcontext()
            with lock, explained_out_of_memory(config, device):
                result = TrainResult(run, 0, rank=group.rank)
                return _with_locator(
                    config, console, result, device, train_split, validation, group
                )


def _own_device(config: Config, group: ProcessGroup) -> torch.device:
    """Where this process trains: on a machine with several GPUs each rank has its own."""
    device = choose_device(config.DEVICE)
    if group.active and device.type == "cuda":
        return torch.device("cuda", group.local_rank)
    return device


def _with_locator(
    config: Config,
    console: Console,
    result: TrainResult,
    device: torch.device,
    train_split: Split,
    validation: Split | None,
    group: ProcessGroup,
) -> TrainResult:
    """Train the locator of a run whose pose network is done."""
    from fasthg.training.locator import train_locator  # it extends this module

    located = train_locator(*(config, result.run, console, device, train_split, validation), group)
    if located is None or located.signal is None:
        return result
    return replace(result, signal=located.signal)


class Validation(NamedTuple):
    """What a validation measured."""

    value: float
    """By which weights are compared; the least is the best."""
    row: dict[str, float]
    """For the log."""
    text: str
    """For a person, after "validation"."""
    picture: Callable[[], Any] | None = None
    """Makes a figure for TensorBoard."""


class Training:
    """One run from its first or resumed step to its end.

    Args:
        config: the resolved configuration.
        train, validation: the open splits; without validation the newest weights count as the best.
        run: an existing run folder.
        console: where progress is printed.
        group: the processes that train together. All call the same methods; the first one writes.
        hooks: called by the first one.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        train: Split,
        validation: Split | None,
        run: RunFolder,
        console: Console,
        group: ProcessGroup = SINGLE_PROCESS,
        *,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        self.config = config
        self.hooks = hooks
        self._stop_asked = False
        self.device = device
        self.group = group
        self.train = train
        self.validation = validation
        self.run = run
        self.console = console
        self.step = self._new_step()
        self.resume_fingerprint = resume_fingerprint(
            config,
            train.index.fingerprint(),
            None if validation is None else validation.index.fingerprint(),
            device,
            {
                "loader": train.loader.name,
                "precision": self.step.precision.name,
                "step": self.step.mode.name,
            },
            group.size,
        )
        self.done = 0
        self.best = float("inf")
        self.stale = 0
        """Validations since the best one."""
        self.keeper = CheckpointKeeper(
            run.checkpoints,
            config.SAVE_INTERVAL_SECS,
            config.MAX_TO_KEEP,
            config.KEEP_CHECKPOINT_EVERY_N_HOURS,
        )

    def _new_step(self, precision: Precision | None = None) -> TrainStep:
        """Network and optimiser before the first step; precision as `TrainStep`."""
        model = build_model(self.config).to(self.device)
        return TrainStep(self.config, model, self.device, self.group, precision)

    def begin(self, start: Start | None) -> None:
        """Take the weights of a fine-tune start, if there is one, and print what was taken."""
        if start is not None:
            self.step.start_from(start.tensors)
            self._print(*start.lines())

    def resume(self) -> None:
        """Continue from the run's newest readable checkpoint; before the first, begin anew.

        Raises:
            DataError: none can be read, or it is of other data, another network or optimiser.
        """
        try:
            path, state, damaged = load_newest_on_all_ranks(self.run, self.group)
        except NoCheckpoint:
            if self.group.first:
                self.run.truncate_log(0)
            self._print(f"no checkpoint in {self.run.path} yet: from the beginning")
            self.begin(starting_weights(self.config))
            return
        self._print(*(f"{error}; resuming from {path.name}" for error in damaged))
        check_resumable(path, state, self.resume_fingerprint)
        self._keep_precision(state)
        try:
            self.step.load_state(state)
        except (RuntimeError, ValueError, KeyError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{path}: does not fit this configuration ({cause}); "
                "resume with the run's own NUM_STACKS, FEATURES, STEM_FEATURES and PARTS"
            ) from error
        self.done = int(state["step"])
        self.best, reason = best_so_far(self.run, state, self.resume_fingerprint)
        # Older states do not have it.
        self.stale = state.get("validations_without_improvement", 0) if reason is None else 0
        self.train.loader.corrupt.update(state["corrupt"])
        if self.group.first:
            self.run.truncate_log(self.done)
        if reason is not None:
            self._print(reason)
        self._print(
            f"resumed {path}: weights, averages, optimiser, schedule and place in the data at step "
            f"{self.done}; best so far {self._score(self.best)}",
            *(f"changed  {line}" for line in differences(state, self.resume_fingerprint)),
        )

    def _keep_precision(self, state: Mapping[str, Any]) -> None:
        """Keep the number format of a checkpoint where PRECISION: auto chose it by timing.

        A second timing may come out differently, and one run would have two formats. Another
        PRECISION, or a change between CPU and GPU, still changes the format.
        """
        name = state["machine"].get("precision", "")
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name)
        timed = self.config.PRECISION == state["keys"].get("PRECISION") == "auto"
        on_cpus = self.device.type == "cpu" and state["machine"]["device"].startswith("cpu")
        if dtype is None or dtype == self.step.precision.dtype or not (timed and on_cpus):
            return
        self.step = self._new_step(Precision(dtype, "as in the checkpoint"))
        self.resume_fingerprint["machine"]["precision"] = name

    def describe(self) -> None:
        """Print what will be done, with what, and which keys have no effect."""
        self._print(
            *describe_training(self.run, self.train, self.validation, self.step, self.group)
        )
        if self.group.first:
            left = self.config.NUM_TRAIN_ITERATIONS - self.done
            model, precision = self.step.model, self.step.precision
            self._print(*warn_of_days(model, self.config, precision, left))

    def fit(self) -> TrainResult:
        """Train to NUM_TRAIN_ITERATIONS, or until EARLY_STOP_PATIENCE or a signal; then save."""
        config, group, total = self.config, self.group, self.config.NUM_TRAIN_ITERATIONS
        if self.done >= total:
            self._print("nothing left to do: raise NUM_TRAIN_ITERATIONS to train on")
            return TrainResult(self.run, self.done, rank=group.rank)
        if self._out_of_patience():
            self._print(
                f"stopped early at step {self.done}, as {self._why_early()}; "
                "raise EARLY_STOP_PATIENCE or set it to null to train on"
            )
            return TrainResult(self.run, self.done, rank=group.rank)
        events = EventWriter(self.run.path if group.first else None, purge_step=self.done + 1)
        progress = ProgressLine(self.console, total)
        logger = MetricLogger(
            *(config, self.run, events, progress, self._check_losses, group, self._tell_log)
        )
        self.run.start_clock()
        with (
            contextlib.closing(events),
            progress,
            Signals(patient=group.active, note=progress.note) as signals,
        ):
            batches = Prefetcher(self.train.loader.batches(self.done, total), self.device)
            requests = self._control_requests(signals)
            while self.done < total and not (requests.stop or requests.stop_early):
                batch = next(batches)
                result = self.step(batch, self.done)
                self.done += 1
                logger.meter.add(len(batch), batches.waited)
                logged = self.done % config.LOG_EVERY_N_STEPS == 0 or self.done in (1, total)
                logger.record(self.done, result, batch.instance, logged=logged)
                if self.done % config.VALIDATE_EVERY_N_STEPS == 0 or self.done == total:
                    with logger.pause():
                        self._validate(events, progress)
                requests = self._control_requests(signals)
                if (requests.save or requests.save_due) and self.done < total:
                    with logger.pause():
                        self._save()
                if requests.save:
                    progress.note(f"step {self.done}: saved, as SIGUSR1 asks")
            logger.report()
            self._save()
            if group.first and not self.run.best.exists():
                self._save_best()
        count = len(self._corrupt())
        if count:
            progress.note(f"{count} unreadable image{'s were' if count > 1 else ' was'} skipped")
        ended_by = requests.stop if self.done < total else None
        return TrainResult(self.run, self.done, ended_by, group.rank)

    def _tell(self, hook: Hook | None, row: Mapping[str, Any]) -> None:
        if hook is None:
            return
        try:
            hook(row)
        except StopTraining:
            self._stop_asked = True

    def _tell_log(self, row: Mapping[str, Any]) -> None:
        self._tell(self.hooks.on_log, row)

    def _control_requests(self, signals: Signals) -> ControlRequests:
        due = self.group.first and self.keeper.due()
        asked = signals.stop or (signal.SIGINT if self._stop_asked else 0)
        stop, save, save_due, early = self.group.largest(
            *(asked, signals.save_wanted(), due, self._out_of_patience())
        )
        return ControlRequests(int(stop) or None, bool(save), bool(save_due), bool(early))

    def _out_of_patience(self) -> bool:
        patience = self.config.EARLY_STOP_PATIENCE
        return patience is not None and self.stale >= patience

    def _why_early(self) -> str:
        return f"{counted(self.stale, 'validation')} in a row brought no smaller error"

    def _corrupt(self) -> dict[int, str]:
        """Record -> why its image cannot be used, of all ranks."""
        every = self.group.gathered(dict(self.train.loader.corrupt))
        return {record: reason for corrupt in every for record, reason in corrupt.items()}

    def _check_losses(self, step: int, losses: Tensor, instances: Tensor) -> None:
        """Stop where a loss `(stacks, batch)` is not finite; name the images and keep the state."""
        if torch.isfinite(losses).all():
            return
        rows = (~torch.isfinite(losses)).any(0).nonzero().ravel().tolist()
        names = "; ".join(self._describe(int(instances[r])) for r in rows[:3])
        path = self.run.checkpoints / "diverged.pt"
        evidence = {"losses_step": step, "losses": losses.cpu(), "instances": instances}
        try:
            # Of this rank alone: the others may not be here.
            save_state(path, {**self._state(dict(self.train.loader.corrupt)), **evidence})
            kept = f"state and losses are in {path}"
        except FasthgError as error:
            kept = str(error)
        raise DataError(
            f"step {step}: the loss is not finite for {len(rows)} of {len(instances)} images "
            f"({names}); {kept}; {self._after_divergence()}"
        )

    def _check_weights(self) -> None:
        """Keep diverged weights out of checkpoints: they would replace sound ones."""
        if not self.step.is_finite():
            raise DataError(f"step {self.done}: weights are not finite; {self._after_divergence()}")

    def _after_divergence(self) -> str:
        remedy = "lower INITIAL_LEARNING_RATE or set GRADIENT_CLIP_NORM"
        if not self.run.last.exists():
            return f"{remedy} and train again"
        return f"{remedy}, then: {self._go_on()}"

    def _go_on(self) -> str:
        """What resumes this training."""
        return f"--resume {self.run.path}"

    def _validate(self, events: EventWriter, progress: ProgressLine) -> None:
        """Measure the averaged weights on the validation split, log it, and keep the best."""
        self._check_weights()
        if self.validation is None:
            self._save_best()
            return
        measured = self._measure(self.validation)
        corrupt = self._corrupt()
        if measured is None:
            progress.note("no validation image could be read; the newest weights count as the best")
            self._save_best()
            return
        better = measured.value < self.best
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best = measured.value
            self._save_best()
        row = {"step": self.done, **measured.row, "unreadable_images": len(corrupt)}
        if self.group.first:
            written = self.run.log(row)
            events.row(row)
            if measured.picture is not None and NO_EVENTS is None:
                events.image("validation", measured.picture(), self.done)
            self._tell(self.hooks.on_validate, {**written, "best": better})
        progress.note(
            f"step {self.done}: validation {measured.text}" + (" (best so far)" if better else "")
        )
        if self._out_of_patience() and self.done < self.config.NUM_TRAIN_ITERATIONS:
            progress.note(f"step {self.done}: stops early: {self._why_early()}")
            if self.group.first:
                self.run.log({"step": self.done, EARLY: self._why_early()})

    def _measure(self, split: Split) -> Validation | None:
        """Measure the averaged weights on a split; None where no image could be read."""
        predictions = self._predict(split, split.sampler.batches_per_epoch)
        spread = metrics.spread(predictions.errors())
        mean, median = spread.mean, spread.median
        if not spread.count:
            return None
        drawn = range(min(DRAWN, len(predictions)))
        title = f"validation, step {self.done}"
        return Validation(
            value=mean,
            row={
                "val_loss": predictions.loss,
                "val_error_mean_px": mean,
                "val_error_median_px": median,
            },
            text=f"error mean {self._score(mean)}, median {self._score(median)}",
            picture=partial(draw_instances, split.index, predictions, drawn, self.config, title),
        )

    def _score(self, value: float) -> str:
        """A validation's value for a person."""
        return f"{value:.2f} px"

    def _describe(self, item: int) -> str:
        """Name of an item of a batch, for messages."""
        return self.train.index.describe(item)

    def _predict(self, split: Split, batches: int) -> Predictions:
        """Keypoints of a split's first batches, of all ranks' parts, by the averaged weights."""
        model, precision = self.step.ema_model(), self.step.precision.dtype
        loaded = split.loader.batches(0, batches)
        own = predict(model, loaded, split.index, self.config, precision)[self.config.DECODE]
        return Predictions.merged(self.group.gathered(own))

    def _metadata(self) -> dict[str, str]:
        """Of the weights file."""
        return weights_metadata(self.config, self.done, self.best)

    def _save_best(self) -> None:
        if self.group.first:
            metadata = self._metadata()
            save_weights(self.run.best, self.step.ema_model().state_dict(), metadata)

    def _save(self) -> None:
        self._check_weights()
        corrupt = self._corrupt()
        if self.group.first:
            self.keeper.save(self.done, self._state(corrupt))

    def _state(self, corrupt: dict[int, str]) -> dict[str, Any]:
        return {
            "step": self.done,
            "best": self.best,
            "validations_without_improvement": self.stale,
            "corrupt": corrupt,
            **self.resume_fingerprint,
            **self.step.state(),
        }

    def _print(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
