"""The training loop: batches in, steps, validation, checkpoints, logs; stops cleanly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fasthg import metrics
from fasthg.checkpoint import (
    CheckpointKeeper,
    NoCheckpoint,
    load_newest,
    load_weights,
    save_state,
    save_weights,
)
from fasthg.config import Config, inert_keys
from fasthg.data.loader import loader_choice
from fasthg.data.split import Split, open_split
from fasthg.environment import describe_environment
from fasthg.errors import ConfigError, DataError, FasthgError
from fasthg.feed import Feeder
from fasthg.inference import Predictions, predict
from fasthg.initial import Start, starting_weights
from fasthg.memory import is_out_of_memory, out_of_memory
from fasthg.model import build_model
from fasthg.pictures import as_array, draw_instances, part_colors
from fasthg.progress import ProgressLine
from fasthg.reporter import Reporter
from fasthg.resume import circumstances, differences, refuse_another_plan
from fasthg.run import RunFolder
from fasthg.signals import Signals
from fasthg.step import TrainStep, choose_device
from fasthg.summary import Summary
from fasthg.weights import weights_metadata

PICTURED = 8
"""Validation instances drawn for TensorBoard."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    run: RunFolder
    step: int
    signal: int | None = None
    """The signal that ended it early."""


class Training:
    """One run from its first or resumed step to its end.

    Args:
        config: the resolved configuration.
        run: an existing run folder.
        console: where progress goes.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        train: Split,
        validation: Split | None,
        run: RunFolder,
        console: Console,
    ) -> None:
        self.config = config
        self.device = device
        self.train = train
        self.validation = validation
        self.run = run
        self.console = console
        self.step = TrainStep(config, build_model(config).to(device), device)
        self.circumstances = circumstances(
            config,
            train.index.fingerprint(),
            None if validation is None else validation.index.fingerprint(),
            device,
            {
                "loader": train.loader.name,
                "precision": str(self.step.precision).removeprefix("torch."),
                "step": self.step.mode.name,
            },
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
            path, state, damaged = load_newest(self.run.checkpoints)
        except NoCheckpoint:
            self.run.truncate_log(0)
            say(f"no checkpoint in {self.run.path} yet: from the beginning", highlight=False)
            self.begin(starting_weights(self.config))
            return
        for error in damaged:
            say(f"{error}; {path.name} serves", highlight=False, soft_wrap=True)
        refuse_another_plan(path, state, self.circumstances)
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
        self.run.truncate_log(self.done)
        if state["validation"] != self.circumstances["validation"]:
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
        for line in differences(state, self.circumstances):
            say(f"changed  {line}", markup=False, highlight=False, soft_wrap=True)

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
        say(f"step     {self.step.mode.name} ({self.step.mode.reason})", highlight=False)
        say(f"loader   {loader} ({reason})", highlight=False)
        for key, why in inert_keys(config):
            say(f"no effect: {key}: {why}", markup=False, highlight=False, soft_wrap=True)

    def fit(self) -> Outcome:
        """Train to NUM_TRAIN_ITERATIONS or until a signal; then save."""
        config = self.config
        total = config.NUM_TRAIN_ITERATIONS
        summary = Summary(self.run.path, purge_step=self.done + 1)
        progress = ProgressLine(self.console, total)
        reporter = Reporter(config, self.run, summary, progress, self._refuse_nan)
        meter = reporter.meter
        try:
            with Signals() as signals, progress:
                batches = Feeder(self.train.loader.batches(self.done, total), self.device)
                while self.done < total and signals.stop is None:
                    batch = next(batches)
                    result = self.step(batch, self.done)
                    self.done += 1
                    meter.add(len(batch), batches.waited)
                    logged = self.done % config.LOG_EVERY_N_STEPS == 0 or self.done in (1, total)
                    reporter.note(self.done, result, batch.instance, logged=logged)
                    validates = self.done % config.VALIDATE_EVERY_N_STEPS == 0 or self.done == total
                    wanted = signals.save_wanted()
                    saves = (self.keeper.due() or wanted) and self.done < total
                    if validates or saves:
                        reporter.report()
                        paused = time.monotonic()
                        if validates:
                            self._validate(summary, progress)
                        if saves:
                            self._save()
                        if wanted:
                            progress.note(f"step {self.done}: saved, as SIGUSR1 asks")
                        meter.pause(time.monotonic() - paused)
                reporter.report()
                self._save()
                if not self.run.best.exists():
                    self._save_best()
        finally:
            summary.close()
        if self.train.loader.corrupt:
            count = len(self.train.loader.corrupt)
            progress.note(f"{count} unreadable image{'s were' if count > 1 else ' was'} skipped")
        return Outcome(self.run, self.done, signals.stop if self.done < total else None)

    def _refuse_nan(self, step: int, losses: Tensor, instances: Tensor) -> None:
        """Stop where a loss `(stacks, batch)` of a step is not a number, naming the images."""
        if torch.isfinite(losses).all():
            return
        rows = (~torch.isfinite(losses)).any(0).nonzero().ravel().tolist()
        names = "; ".join(self.train.index.describe(int(instances[r])) for r in rows[:3])
        path = self.run.checkpoints / "diverged.pt"
        found = {"losses_step": step, "losses": losses.cpu(), "instances": instances}
        try:
            save_state(path, {**self._state(), **found})
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
        predictions = predict(
            self.step.ema_model(),
            part.loader.batches(0, part.planner.batches_per_epoch),
            part.index,
            self.config,
            self.step.precision,
        )[self.config.DECODE]
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
            "unreadable_images": len(self.train.loader.corrupt),
        }
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
        metadata = weights_metadata(self.config, self.done, self.best)
        save_weights(self.run.best, self.step.ema_model().state_dict(), metadata)

    def _save(self) -> None:
        self._check_weights()
        self.keeper.save(self.done, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.done,
            "best": self.best,
            "corrupt": dict(self.train.loader.corrupt),
            **self.circumstances,
            **self.step.state(),
        }


@contextlib.contextmanager
def open_data(config: Config, device: torch.device) -> Iterator[tuple[Split, Split | None]]:
    """The splits to train on and to validate with, if any; nothing has been written yet.

    Raises:
        ConfigError, DataError: the data, or what only the end of a run would use, is no good.
    """
    if config.DATA.TRAIN is None:
        raise ConfigError("DATA.TRAIN: not set; give a glob of TFRecord files or MARS_PROJECT")
    part_colors(config)
    metrics.oks_sigmas(config.PARTS.NAMES, config.OKS_SIGMAS)
    with contextlib.ExitStack() as stack:
        first = open_split(config, config.DATA.TRAIN, device, training=True)
        stack.callback(first.close)
        validation = None
        if config.DATA.VAL is not None:
            validation = open_split(config, config.DATA.VAL, device, training=False)
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
) -> Outcome:
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
    device = choose_device(config.DEVICE)
    with open_data(config, device) as (first, validation):
        start = starting_weights(config) if resume is None else None
        run = RunFolder.create(config, source, stem) if resume is None else RunFolder.open(resume)
        with run.locked(), _explained(config, device):
            training = Training(config, device, first, validation, run, console)
            if resume is not None:
                training.resume()
                run.write_config(config)
            training.announce()
            training.begin(start)
            run.write_json("env.json", describe_environment())
            if training.done >= config.NUM_TRAIN_ITERATIONS:
                console.print("nothing left to do: raise NUM_TRAIN_ITERATIONS to train on")
                return Outcome(run, training.done)
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
