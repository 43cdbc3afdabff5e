"""The training loop: batches in, steps, validation, checkpoints, logs; stops cleanly."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fasthg import metrics
from fasthg.config import Config, dump_config, inert_keys
from fasthg.data.loader import available_cores, loader_choice
from fasthg.data.prefetch import Prefetcher
from fasthg.data.split import Split, open_split
from fasthg.errors import ConfigError, DataError, EnvironmentFault, FasthgError
from fasthg.inference.plots import as_array, draw_instances, part_colors
from fasthg.inference.predictor import Predictions, predict
from fasthg.model import build_model
from fasthg.runs.checkpoint import (
    CheckpointKeeper,
    NoCheckpoint,
    load_newest,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import weights_metadata
from fasthg.runtime.device import choose_device
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup, open_process_group
from fasthg.runtime.progress import ProgressLine
from fasthg.runtime.signals import Signals
from fasthg.train.elastic import Restarts
from fasthg.train.environment import describe_environment
from fasthg.train.finetune import Start, starting_weights
from fasthg.train.logging import MetricLogger
from fasthg.train.memory import is_out_of_memory, out_of_memory
from fasthg.train.resume import differences, refuse_another_plan, resume_fingerprint
from fasthg.train.step import TrainStep
from fasthg.train.tensorboard import Summary

PICTURED = 8
"""Validation instances drawn for TensorBoard."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    run: RunFolder
    step: int
    signal: int | None = None
    """The signal that ended it early."""
    rank: int = 0
    """Of this process; what follows a training is the work of rank 0."""


class ControlRequests(NamedTuple):
    """What is asked of a training between two steps."""

    stop: int | None
    """The signal that asks for the end."""
    save: bool
    """SIGUSR1 asks for a save."""
    due: bool
    """SAVE_INTERVAL_SECS have passed."""


class Training:
    """One run from its first or resumed step to its end.

    Args:
        config: the resolved configuration.
        run: an existing run folder.
        console: where progress goes.
        group: the processes that train together. All call the same methods; the first one writes.
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
    ) -> None:
        self.config = config
        self.device = device
        self.group = group
        self.train = train
        self.validation = validation
        self.run = run
        self.console = console
        self.step = TrainStep(config, build_model(config).to(device), device, group)
        self.resume_fingerprint = resume_fingerprint(
            config,
            train.index.fingerprint(),
            None if validation is None else validation.index.fingerprint(),
            device,
            {
                "loader": train.loader.name,
                "precision": str(self.step.precision).removeprefix("torch."),
                "step": self.step.mode.name,
            },
            group.size,
        )
        self.done = 0
        self.best = float("inf")
        self.keeper = CheckpointKeeper(
            run.checkpoints,
            config.SAVE_INTERVAL_SECS,
            config.MAX_TO_KEEP,
            config.KEEP_CHECKPOINT_EVERY_N_HOURS,
        )

    def begin(self, start: Start | None) -> None:
        """Start from given weights, where there are any, and say what was taken."""
        if start is not None:
            self.step.start_from(start.tensors)
            for line in start.lines():
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def resume(self) -> None:
        """Go on from the run's newest checkpoint that can be read; before the first, begin anew.

        Raises:
            DataError: none can be read, or it is of other data, another network or optimiser.
        """
        say = self.console.print
        try:
            path, state, damaged = self._newest()
        except NoCheckpoint:
            if self.group.first:
                self.run.truncate_log(0)
            say(f"no checkpoint in {self.run.path} yet: from the beginning", highlight=False)
            self.begin(starting_weights(self.config))
            return
        for error in damaged:
            say(f"{error}; {path.name} has_kernel", highlight=False, soft_wrap=True)
        refuse_another_plan(path, state, self.resume_fingerprint)
        try:
            self.step.load_state(state)
        except (RuntimeError, ValueError, KeyError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{path}: does not fit this configuration ({cause}); "
                "resume with the run's own NUM_STACKS, FEATURES, STEM_FEATURES and PARTS"
            ) from error
        self.done, self.best = int(state["step"]), float(state["best"])
        self.train.loader.corrupt.update(state["corrupt"])
        if self.group.first:
            self.run.truncate_log(self.done)
        if state["validation"] != self.resume_fingerprint["validation"]:
            say("changed  DATA.VAL: the best so far does not count any more", highlight=False)
            self.best = float("inf")
        elif self.run.best.exists():
            try:
                load_weights(self.run.best)
            except DataError as error:
                say(f"{error}; the next ones count as the best", highlight=False, soft_wrap=True)
                self.best = float("inf")
        say(
            f"resumed {path}: weights, averages, optimiser, schedule and place in the data at step "
            f"{self.done}; best so far {self.best:.2f} px",
            highlight=False,
            soft_wrap=True,
        )
        for line in differences(state, self.resume_fingerprint):
            say(f"changed  {line}", markup=False, highlight=False, soft_wrap=True)

    def refuse_other_weights(self) -> None:
        """Refuse to begin where a process has other weights than the first.

        Raises:
            EnvironmentFault: it has; they would drift further apart.
        """
        if not self.group.active:
            return
        sums = self.group.gathered(zlib.crc32(self.step.flat.values.cpu().numpy().data))
        for rank, found in enumerate(sums):
            if found != sums[0]:
                raise EnvironmentFault(
                    f"rank {rank} begins with other weights than rank 0; install the same torch "
                    "on every machine"
                )

    def _newest(self) -> tuple[Path, dict[str, Any], list[DataError]]:
        """`load_newest`; the first process looks, which renames what is damaged, for all."""
        found: tuple[Path, dict[str, Any], list[DataError]] | DataError | None = None
        if self.group.first:
            try:
                found = load_newest(self.run.checkpoints)
            except DataError as error:
                found = error
        told = (found[0], found[2]) if isinstance(found, tuple) else found
        answer = self.group.gathered(told)[0]
        if isinstance(answer, DataError):
            raise answer
        path, damaged = answer
        return path, found[1] if isinstance(found, tuple) else load_state(path), damaged

    def announce(self) -> None:
        """Print what will be done, with what, and which keys have no effect."""
        config, say = self.config, self.console.print
        loader, reason = loader_choice(config, self.device)
        parameters = sum(p.numel() for p in self.step.model.parameters())
        trained = sum(p.numel() for p in self.step.flat.parameters)
        frozen = f" ({parameters - trained:,} of them frozen)" if trained < parameters else ""
        precision = str(self.step.precision).removeprefix("torch.")
        say(f"run      {self.run.path}", highlight=False)
        validation = f", {len(self.validation.index)} for validation" if self.validation else ""
        say(f"data     {len(self.train.index)} instances{validation}", highlight=False)
        say(
            f"network  {config.NUM_STACKS} stacks, {config.FEATURES} features, "
            f"{parameters:,} weights{frozen}, {precision} on {self.device}",
            highlight=False,
        )
        if self.group.active:
            together = "together" if config.BATCHNORM_SYNC else "each for itself"
            say(
                f"ranks    {self.group.size} processes of BATCH_SIZE {config.BATCH_SIZE}: "
                f"{config.BATCH_SIZE * self.group.size} instances a step; batch norm {together}",
                highlight=False,
            )
        say(f"step     {self.step.mode.name} ({self.step.mode.reason})", highlight=False)
        say(f"loader   {loader} ({reason})", highlight=False)
        for key, why in inert_keys(config):
            say(f"no effect: {key}: {why}", markup=False, highlight=False, soft_wrap=True)

    def fit(self) -> TrainResult:
        """Train to NUM_TRAIN_ITERATIONS or until a signal; then save."""
        config, group = self.config, self.group
        total = config.NUM_TRAIN_ITERATIONS
        summary = Summary(self.run.path if group.first else None, purge_step=self.done + 1)
        progress = ProgressLine(self.console, total)
        reporter = MetricLogger(config, self.run, summary, progress, self._refuse_nan, group)
        meter = reporter.meter
        try:
            with progress, Signals(patient=group.active, note=progress.note) as signals:
                batches = Prefetcher(self.train.loader.batches(self.done, total), self.device)
                requests = self._control_requests(signals)
                while self.done < total and not requests.stop:
                    batch = next(batches)
                    result = self.step(batch, self.done)
                    self.done += 1
                    meter.add(len(batch), batches.waited)
                    logged = self.done % config.LOG_EVERY_N_STEPS == 0 or self.done in (1, total)
                    reporter.note(self.done, result, batch.instance, logged=logged)
                    if self.done % config.VALIDATE_EVERY_N_STEPS == 0 or self.done == total:
                        reporter.report()
                        paused = time.monotonic()
                        self._validate(summary, progress)
                        meter.pause(time.monotonic() - paused)
                    requests = self._control_requests(signals)
                    if (requests.due or requests.save) and self.done < total:
                        reporter.report()
                        paused = time.monotonic()
                        self._save()
                        meter.pause(time.monotonic() - paused)
                    if requests.save:
                        progress.note(f"step {self.done}: saved, as SIGUSR1 asks")
                reporter.report()
                self._save()
                if group.first and not self.run.best.exists():
                    self._save_best()
        finally:
            summary.close()
        count = len(self._corrupt())
        if count:
            progress.note(f"{count} unreadable image{'s were' if count > 1 else ' was'} skipped")
        signal = requests.stop if self.done < total else None
        return TrainResult(self.run, self.done, signal, group.rank)

    def _control_requests(self, signals: Signals) -> ControlRequests:
        """What the signals of all processes and the first one's clock ask for."""
        asked = (signals.stop or 0, signals.save_wanted(), self.group.first and self.keeper.due())
        stop, save, due = self.group.largest(*asked)
        return ControlRequests(int(stop) or None, bool(save), bool(due))

    def _corrupt(self) -> dict[int, str]:
        """Records whose image cannot be used, of all processes."""
        found: dict[int, str] = {}
        for one in self.group.gathered(dict(self.train.loader.corrupt)):
            found.update(one)
        return found

    def _refuse_nan(self, step: int, losses: Tensor, instances: Tensor) -> None:
        """Stop where a loss `(stacks, batch)` of a step is not a number, naming the images."""
        if torch.isfinite(losses).all():
            return
        rows = (~torch.isfinite(losses)).any(0).nonzero().ravel().tolist()
        names = "; ".join(self.train.index.describe(int(instances[r])) for r in rows[:3])
        path = self.run.checkpoints / "diverged.pt"
        found = {"losses_step": step, "losses": losses.cpu(), "instances": instances}
        try:
            corrupt = dict(self.train.loader.corrupt)
            save_state(path, {**self._state(corrupt), **found})
            kept = f"state and losses are in {path}"
        except FasthgError as error:
            kept = str(error)
        raise DataError(
            f"step {step}: the loss is not finite for {len(rows)} of {len(instances)} images "
            f"({names}); {kept}; {self._after_divergence()}"
        )

    def _after_divergence(self) -> str:
        remedy = "lower INITIAL_LEARNING_RATE or set GRADIENT_CLIP_NORM"
        if not self.run.last.exists():
            return f"{remedy} and train again"
        return f"{remedy}, then: --resume {self.run.path}"

    def _check_weights(self) -> None:
        """Keep diverged weights out of checkpoints: the older ones are worth more."""
        if not self.step.is_finite():
            raise DataError(f"step {self.done}: weights are not finite; {self._after_divergence()}")

    def _validate(self, summary: Summary, progress: ProgressLine) -> None:
        self._check_weights()
        if self.validation is None:
            self._save_best()
            return
        part = self.validation
        own = predict(
            self.step.ema_model(),
            part.loader.batches(0, part.sampler.batches_per_epoch),
            part.index,
            self.config,
            self.step.precision,
        )[self.config.DECODE]
        predictions = Predictions.merged(self.group.gathered(own))
        corrupt = self._corrupt()
        distances = predictions.errors()
        spread = metrics.spread(distances)
        mean, median = spread.mean, spread.median
        if not spread.count:
            progress.note("no validation image could be read; the newest weights count as the best")
            self._save_best()
            return
        better = mean < self.best
        if better:
            self.best = mean
            self._save_best()
        row = {
            "step": self.done,
            "val_loss": predictions.loss,
            "val_error_mean_px": mean,
            "val_error_median_px": median,
            "unreadable_images": len(corrupt),
        }
        if self.group.first:
            self.run.log(row)
            summary.row(row)
            self._picture(summary, predictions)
        progress.note(
            f"step {self.done}: validation error mean {mean:.2f} px, median {median:.2f} px"
            + (" (best so far)" if better else "")
        )

    def _picture(self, summary: Summary, predictions: Predictions) -> None:
        assert self.validation is not None
        rows = range(min(PICTURED, len(predictions)))
        title = f"validation, step {self.done}"
        figure = draw_instances(self.validation.index, predictions, rows, self.config, title)
        summary.image("validation", as_array(figure), self.done)

    def _save_best(self) -> None:
        if not self.group.first:
            return
        metadata = weights_metadata(self.config, self.done, self.best)
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
            "corrupt": corrupt,
            **self.resume_fingerprint,
            **self.step.state(),
        }


@contextlib.contextmanager
def open_data(
    config: Config, device: torch.device, group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[tuple[Split, Split | None]]:
    """The splits to train on and to validate with, if any; nothing has been written yet.

    group: the processes of which each has its part.

    Raises:
        ConfigError, DataError: the data, or what only the end of a run would use, is no good.
    """
    patterns = config.DATA.TRAIN
    if patterns is None:
        raise ConfigError("DATA.TRAIN: not set; give a glob of TFRecord files or MARS_PROJECT")
    part_colors(config)
    metrics.oks_sigmas(config.PARTS.NAMES, config.OKS_SIGMAS)
    own = {"rank": group.rank, "ranks": group.size}
    if group.local_size > 1:
        share = max(available_cores() // group.local_size, 1)
        threads = min(config.NUM_INPUT_THREADS, share)
        config = config.model_copy(update={"NUM_INPUT_THREADS": threads})
    with contextlib.ExitStack() as stack:
        first = open_split(config, patterns, device, training=True, **own)
        stack.callback(first.close)
        validation = None
        if config.DATA.VAL is not None:
            validation = open_split(config, config.DATA.VAL, device, training=False, **own)
            stack.callback(validation.close)
            if not validation.index.visibility.any():
                raise DataError(
                    f"{config.DATA.VAL}: no labelled part; leave DATA.VAL unset or label it"
                )
        yield first, validation


def train(
    config: Config,
    console: Console,
    *,
    source: Path | None = None,
    stem: str = "run",
    resume: Path | None = None,
) -> TrainResult:
    """Train as `config` says.

    Args:
        config: the resolved configuration.
        console: where progress goes.
        source: the configuration file, copied into the run folder.
        stem: names the run folder with the time where RUN_NAME is null.
        resume: an existing run folder to go on in.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    with open_process_group(config.DEVICE) as group:
        device = choose_device(config.DEVICE)
        if group.active and device.type == "cuda":
            device = torch.device("cuda", group.local_rank)
        restarts = Restarts(Path(config.RUNS_DIR)) if group.active else None
        if restarts is not None and group.first and not restarts.count:
            restarts.forget()  # of an older job of that name
        with open_data(config, device, group) as (first, validation):
            _refuse_other_data(group, config, first, validation)
            start = starting_weights(config) if resume is None else None
            run, resumed = _open_run(config, source, stem, resume, group, restarts)
            alone = run.locked() if group.first else contextlib.nullcontext()
            with alone, _explained(config, device):
                training = Training(config, device, first, validation, run, console, group)
                if resumed:
                    training.resume()
                training.announce()
                if not resumed:
                    training.begin(start)
                training.refuse_other_weights()
                outcome = _run(training, resumed)
        if restarts is not None and group.first and outcome.signal is None:
            restarts.forget()
        return outcome


def _refuse_other_data(
    group: ProcessGroup, config: Config, train: Split, validation: Split | None
) -> None:
    """Refuse to begin where a process has another configuration or other data than the first."""
    if not group.active:
        return
    validation_data = None if validation is None else validation.index.fingerprint()
    own = {
        "configuration": dump_config(config),
        "training data": train.index.fingerprint(),
        "validation data": validation_data,
    }
    every = group.gathered(own)
    for rank, other in enumerate(every):
        for name, value in other.items():
            if value != every[0][name]:
                raise DataError(
                    f"rank {rank} has another {name} than rank 0; give every machine the same files"
                )


def _open_run(
    config: Config,
    source: Path | None,
    stem: str,
    resume: Path | None,
    group: ProcessGroup,
    restarts: Restarts | None,
) -> tuple[RunFolder, bool]:
    """The run folder, which the first process makes for all, and whether it is gone on in."""
    found = None
    if group.first:
        if resume is None and restarts is not None:
            resume = restarts.find()
        run = RunFolder.create(config, source, stem) if resume is None else RunFolder.open(resume)
        if restarts is not None:
            restarts.note(run.path)
        found = run.path, resume is not None
    path, resumed = group.gathered(found)[0]
    if not group.first and not path.is_dir():
        raise DataError(
            f"{path}: rank 0 made it, rank {group.rank} has none; put RUNS_DIR where "
            "every machine sees it"
        )
    return RunFolder(path), resumed


def _run(training: Training, resumed: bool) -> TrainResult:
    run, config = training.run, training.config
    if training.group.first:
        if resumed:
            run.write_config(config)
        run.write_json("env.json", describe_environment())
    if training.done >= config.NUM_TRAIN_ITERATIONS:
        training.console.print("nothing left to do: raise NUM_TRAIN_ITERATIONS to train on")
        return TrainResult(run, training.done, rank=training.group.rank)
    return training.fit()


@contextlib.contextmanager
def _explained(config: Config, device: torch.device) -> Iterator[None]:
    """Memory that is full becomes an error that says what helps."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, device, error) from error
        raise
