"""Training from Python and from the command line: train, evaluate, write the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fasthg import report
from fasthg.api.settings import ConfigLike, Settings, as_overrides, settings_of
from fasthg.errors import ConfigError
from fasthg.report import evaluate as evaluation
from fasthg.runtime import process
from fasthg.runtime.device import choose_device
from fasthg.training import recipe, trainer
from fasthg.training.hooks import NO_HOOKS, Hook, Hooks, StopTraining

if TYPE_CHECKING:
    from fasthg.api.model import Model

__all__ = ["StopTraining", "Training", "run_training", "train"]


@dataclass(frozen=True)
class Training:
    """What a training left."""

    path: Path
    """The run folder."""
    step: int
    """Steps done."""
    signal: int | None
    """The signal that ended it early; SIGINT also where a hook raised `StopTraining`."""
    metrics: dict[str, Any] | None
    """Of the test split, or else of the validation split, as in `metrics.json`: error_px, pck, oks.
    None where it was stopped, not asked for, or there is neither."""
    files: tuple[Path, ...] = ()
    """Pages and pictures that were written."""
    rank: int = 0
    """Of this process; only rank 0 evaluates."""

    def load(self) -> Model:
        """The network with the run's best weights."""
        from fasthg.api.model import load

        return load(self.path)


def train(
    config: ConfigLike | None = None,
    /,
    *,
    resume: str | Path | None = None,
    evaluate: bool = True,
    on_log: Hook | None = None,
    on_validate: Hook | None = None,
    verbose: bool = True,
    own_process: bool = False,
    **overrides: Any,
) -> Training:
    """Train a network, then evaluate its best weights and write `report.html`.

    It works in any thread. In the main one, Ctrl-C saves and ends it; elsewhere a hook that raises
    `StopTraining` does, until the pose network has its last step. Locator and evaluation follow.

    Args:
        config: a YAML file, a folder of records that `convert` wrote, the name of a preset such as
            "small", a mapping of keys, or a Config. None: that of `resume`, or of the MARS project
            around the current directory.
        resume: a run folder in which to go on.
        evaluate: whether to evaluate at the end.
        on_log: called with the row of every logged step, such as `wandb.log`.
        on_validate: called with the row of every validation.
        verbose: print what the command line prints.
        own_process: let the training set what holds for the whole process: memory that is kept
            instead of given back, cuDNN's search, deterministic algorithms (see
            `runtime.process.configure_process`). A CPU then trains up to a third faster, and on a
            GPU DETERMINISTIC needs it. The command line does so.
        overrides: keys of the configuration, `NUM_TRAIN_ITERATIONS=400`; of a section
            `PARTS={"SIGMAS": [1, 1, 2]}`, which leaves its other keys as they are.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.

    Example:
        >>> run = fasthg.train("tfrecords", NUM_TRAIN_ITERATIONS=400)  # doctest: +SKIP
        >>> run.metrics["error_px"]["all"]["mean"]  # doctest: +SKIP
        2.31
    """
    for name, hook in (("on_log", on_log), ("on_validate", on_validate)):
        if hook is not None and not callable(hook):
            raise ConfigError(f"{name}: a {type(hook).__name__} cannot be called; give a function")
    resumed = None if resume is None else Path(resume)
    settings = settings_of(config, as_overrides(overrides), resumed)
    console = Console(highlight=False, quiet=not verbose)
    hooks = Hooks(on_log, on_validate)
    return run_training(
        *(settings, console, resumed),
        evaluate=evaluate,
        hooks=hooks,
        own_process=own_process,
    )


def run_training(
    settings: Settings,
    console: Console,
    resume: Path | None = None,
    *,
    evaluate: bool = True,
    hooks: Hooks = NO_HOOKS,
    own_process: bool = False,
) -> Training:
    """`train` of a resolved configuration, which prints to a console."""
    device = choose_device(settings.config.DEVICE)
    config, choices = recipe.resolved(settings.config, device)
    if own_process:
        process.configure_process(device, deterministic=config.DETERMINISTIC)
    for line in [*settings.lines, *choices]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    result = trainer.train(
        config,
        console,
        source=settings.source,
        stem=settings.stem,
        resume=resume,
        hooks=hooks,
    )
    metrics, paths = None, []
    split = evaluation.default_split(config)
    if evaluate and result.signal is None and result.rank == 0 and split is not None:
        boxes = evaluation.boxes_to_measure(result.run, config)
        measured = evaluation.evaluate_run(result.run, config, split, None, boxes=boxes)
        paths = [report.write(result.run, config, measured)]
        paths += report.write_performance(config, measured)
        measured.print(console)
        metrics = measured.metrics
        for path in paths:
            console.print(str(path), highlight=False, soft_wrap=True)
    return Training(
        *(result.run.path, result.step, result.signal, metrics, tuple(paths), result.rank)
    )
