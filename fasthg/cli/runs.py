"""Verbs that work on a run: train, eval."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import (
    AsJson,
    Overrides,
    configure,
    console,
    first_argument,
    print_json,
    refuse_ranks,
)
from fasthg.errors import ConfigError
from fasthg.runtime.output import lasting_output


@lasting_output()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="YAML file, folder of records with a config.yaml, or preset."
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on in this run folder.")
    ] = None,
    locator: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Train the locator alone, for a run that has none."),
    ] = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Do not evaluate at the end.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try two steps; print memory and time of the whole run."),
    ] = False,
) -> None:
    """Train a network, then evaluate its best weights and write report.html.

    Without CONFIG: with --resume as the run was, otherwise as the MARS project around says.
    """
    if hasattr(signal, "SIGUSR1"):
        # The training saves on this signal; before and after it, the signal would end the process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from fasthg.api.settings import settings_of

    config, keys = first_argument(config, overrides)
    out = console()
    if dry_run and resume is not None:
        raise ConfigError("--dry-run: give a CONFIG and no --resume")
    if dry_run:
        refuse_ranks("--dry-run")
    if locator is not None and (config is not None or resume is not None or dry_run):
        raise ConfigError("--locator: give a RUN and no CONFIG, --resume or --dry-run")
    settings = settings_of(config, keys, resume or locator)
    # These take seconds, which a mistake in the configuration need not wait for.
    if dry_run:
        from fasthg.training.profile import dry_run as try_out

        configure(settings.config)
        if try_out(settings.config, out, source=settings.source) is None:
            raise typer.Exit(130)
        return
    if locator is not None:
        from fasthg.runs.run_folder import RunFolder
        from fasthg.training.trainer import add_locator

        configure(settings.config)
        ended = add_locator(settings.config, out, RunFolder.open(locator))
        if ended.signal is not None:
            out.print(f"stopped; go on with: fasthg train --locator {locator}")
            raise typer.Exit(128 + ended.signal)
        return
    from fasthg.api.training import run_training

    result = run_training(settings, out, resume, evaluate=not no_eval, own_process=True)
    if result.signal is not None:
        if not result.rank:
            out.print(f"stopped at step {result.step}; go on with: --resume {result.path}")
        raise typer.Exit(128 + result.signal)


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Run folder or .safetensors; left out: newest of runs/ or the MARS project.",
        ),
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None, typer.Option(help="TFRecord glob; may be given several times.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; a name for --data otherwise.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="argmax, quarter, dark, plateau, or all of them: all.")
    ] = None,
    boxes: Annotated[
        str,
        typer.Option(help="given in the annotations; found: also those that the locator finds."),
    ] = "given",
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="Where all files go; default: eval/<split> in the run, beside a weights file.",
        ),
    ] = None,
    with_report: Annotated[
        bool, typer.Option("--report", help="Also write the run's report.html, of this split.")
    ] = False,
    frame: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also picture this frame and its heatmaps, from 0."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the best weights of a run, or a file's; writes metrics, predictions and plots."""
    from fasthg import report
    from fasthg.interop.mars_project import newest_run, relocation_overrides
    from fasthg.report import evaluate as evaluation
    from fasthg.runs.run_folder import RunFolder
    from fasthg.runs.weights import trained

    run, keys = first_argument(run, overrides)
    folder = newest_run(keys, Path()) if run is None else trained(Path(run))
    run_folder = folder if isinstance(folder, RunFolder) else None
    settings = folder.config([*(relocation_overrides(run_folder) if run_folder else []), *keys])
    chosen = split or ("data" if data else evaluation.default_split(settings))
    if chosen is None:
        raise ConfigError(f"{folder.path}: its DATA names no split; give --data GLOB")
    configure(settings)
    if with_report and not run_folder:
        raise ConfigError(f"--report: is a run's page, {folder.path} is of none; leave it out")
    measured = evaluation.evaluate_run(
        *(folder, settings, chosen, data), decode=decode, boxes=boxes, out=out_folder, frame=frame
    )
    paths = []
    if with_report and run_folder:
        paths.append(report.write(run_folder, settings, measured, out_folder))
    if frame is not None:
        paths += report.picture_frame(folder, settings, measured, frame)
    if not data and out_folder is None:
        paths += report.write_performance(settings, measured)
    if as_json:
        print_json(measured.metrics)
        return
    out = console()
    if run is None:
        out.print(f"run      {folder.path}", markup=False, highlight=False, soft_wrap=True)
    measured.print(out)
    for path in paths:
        out.print(str(path), highlight=False, soft_wrap=True)
