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
    from fasthg.config import FOLDER_CONFIG, find_config, load_config
    from fasthg.interop.mars_project import project_config, relocation_overrides
    from fasthg.runs.run_folder import RunFolder

    config, keys = first_argument(config, overrides)
    out = console()
    if dry_run and resume is not None:
        raise ConfigError("--dry-run: give a CONFIG and no --resume")
    if dry_run:
        refuse_ranks("--dry-run")
    if locator is not None and (config is not None or resume is not None or dry_run):
        raise ConfigError("--locator: give a RUN and no CONFIG, --resume or --dry-run")
    if locator is not None:
        run = RunFolder.open(locator)
        settings = run.config([*relocation_overrides(run), *keys])
        configure(settings)
        from fasthg.training.trainer import add_locator

        ended = add_locator(settings, out, run)
        if ended.signal is not None:
            out.print(f"stopped; go on with: fasthg train --locator {run.path}")
            raise typer.Exit(128 + ended.signal)
        return
    source: Path | None
    if config is not None:
        path = find_config(config)
        settings, source = load_config(path, keys), path
        stem = path.parent.name if path.name == FOLDER_CONFIG else path.stem
    elif resume is not None:
        folder = RunFolder.open(resume)
        settings, source, stem = folder.config([*relocation_overrides(folder), *keys]), None, ""
    else:
        project = project_config(keys, Path())
        if project is None:
            raise ConfigError(
                "no CONFIG given, and no project_config.yaml here or above; for example: "
                "fasthg train configs/demo.yaml"
            )
        settings, source, stem = project.config, project.source, project.model
        for line in project.lines:
            out.print(line, markup=False, highlight=False, soft_wrap=True)

    # These take seconds, which a mistake in the configuration need not wait for.
    from fasthg import report
    from fasthg.inference.locator import locator_folder
    from fasthg.report import evaluate as evaluation
    from fasthg.training import trainer as training

    configure(settings)
    if dry_run:
        from fasthg.training.profile import dry_run as try_out

        if try_out(settings, out, source=source) is None:
            raise typer.Exit(130)
        return
    result = training.train(settings, out, source=source, stem=stem, resume=resume)
    if result.rank:
        raise typer.Exit(0 if result.signal is None else 128 + result.signal)
    if result.signal is not None:
        out.print(f"stopped at step {result.step}; go on with: --resume {result.run.path}")
        raise typer.Exit(128 + result.signal)
    if no_eval:
        return
    split = evaluation.default_split(settings)
    if split is not None:
        located = RunFolder(locator_folder(result.run.path)).best.exists()
        located = located and settings.EVAL_CROP == "training"
        measured = evaluation.evaluate_run(
            *(result.run, settings, split, None), boxes="found" if located else "given"
        )
        paths = [report.write(result.run, settings, measured)]
        paths += report.write_performance(settings, measured)
        measured.print(out)
        for path in paths:
            out.print(str(path), highlight=False, soft_wrap=True)


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Run folder or .safetensors file; in a MARS project its newest run."
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
    if boxes not in ("given", "found"):
        raise ConfigError(f"--boxes {boxes}: use given or found")
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
