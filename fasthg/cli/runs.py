"""Verbs that work on a run: train, eval."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import AsJson, Overrides, console, print_json
from fasthg.errors import ConfigError


def train(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file in MARS's style.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on in this run folder.")
    ] = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Do not evaluate at the end.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try two steps; tell memory and time of the whole run."),
    ] = False,
) -> None:
    """Train a network, then evaluate its best weights and write report.html.

    With --resume, CONFIG may be left out: the run's own configuration is used.
    """
    if hasattr(signal, "SIGUSR1"):
        # While it trains it saves; before and after it would be the end.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from fasthg import evaluate as evaluation
    from fasthg import report
    from fasthg import train as training
    from fasthg.config import load_config
    from fasthg.run import RunFolder

    given = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        given.insert(0, config)
        config = None
    out = console()
    if dry_run:
        from fasthg.dry_run import dry_run as try_out

        if config is None or resume is not None:
            raise ConfigError("--dry-run: give a CONFIG and no --resume")
        if try_out(load_config(Path(config), given), out, source=Path(config)) is None:
            raise typer.Exit(130)
        return
    if config is not None:
        source = Path(config)
        settings = load_config(source, given)
        outcome = training.train(settings, out, source=source, stem=source.stem, resume=resume)
    elif resume is not None:
        settings = RunFolder.open(resume).config(given)
        outcome = training.train(settings, out, resume=resume)
    else:
        raise ConfigError("no CONFIG given; for example: fasthg train configs/demo.yaml")
    if outcome.signal is not None:
        out.print(f"stopped at step {outcome.step}; go on with: --resume {outcome.run.path}")
        raise typer.Exit(128 + outcome.signal)
    if no_eval:
        return
    split = evaluation.default_split(settings)
    if split is not None:
        found = evaluation.evaluate_run(outcome.run, settings, split, None)
        found.print(out)
        path = report.write(outcome.run, settings, found)
        out.print(str(path), highlight=False, soft_wrap=True)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
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
    with_report: Annotated[
        bool, typer.Option("--report", help="Also write the run's report.html, of this split.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the best weights of a run; writes metrics, predictions and pictures."""
    from fasthg import evaluate as evaluation
    from fasthg import report
    from fasthg.run import RunFolder

    folder = RunFolder.open(run)
    settings = folder.config(list(overrides or []))
    chosen = split or ("data" if data else evaluation.default_split(settings))
    if chosen is None:
        raise ConfigError(f"{run}: its DATA names no split; give --data GLOB")
    found = evaluation.evaluate_run(folder, settings, chosen, data, decode=decode)
    path = report.write(folder, settings, found) if with_report else None
    if as_json:
        print_json(found.metrics)
        return
    out = console()
    found.print(out)
    if path is not None:
        out.print(str(path), highlight=False, soft_wrap=True)
