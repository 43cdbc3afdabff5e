"""`fasthg report`: the page of a run anew, or one page of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import configure, console
from fasthg.errors import ConfigError


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders; with one, also overrides as KEY=VALUE."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="The page; default: report.html in the run, compare.html here for several.",
        ),
    ] = None,
) -> None:
    """Evaluate a run and write its page anew; of several evaluated runs, a page that compares them.

    The first of several is the one that the others are compared with. Runs that differ in
    RANDOM_SEED alone are drawn as one band.
    """
    keys = [word for word in runs if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in runs if word not in keys]
    if not paths:
        raise ConfigError("no RUN given; for example: fasthg report runs/mouse")
    if out is not None and out.is_dir():
        raise ConfigError(f"-o {out}: is a folder; give a file, such as {out / 'page.html'}")
    written = _one(paths[0], keys, out) if len(paths) == 1 else _several(paths, keys, out)
    console().print(str(written), markup=False, soft_wrap=True)


def _one(path: Path, keys: list[str], out: Path | None) -> Path:
    from fasthg import report as pages
    from fasthg.interop.mars_project import relocation_overrides
    from fasthg.report import evaluate as evaluation
    from fasthg.runs.run_folder import RunFolder

    run = RunFolder.open(path)
    settings = run.config([*relocation_overrides(run), *keys])
    split = evaluation.default_split(settings)
    if split is None:
        raise ConfigError(f"{path}: its DATA names no test or val; give DATA.TEST=GLOB")
    configure(settings)
    boxes = evaluation.boxes_to_measure(run, settings)
    measured = evaluation.evaluate_run(run, settings, split, None, boxes=boxes)
    return pages.write(run, settings, measured, file=out)


def _several(paths: list[Path], keys: list[str], out: Path | None) -> Path:
    from fasthg.report.comparison import write

    if keys:
        raise ConfigError(f"{keys[0]}: overrides go with one RUN; leave it out")
    target = out or Path("compare.html")
    write(paths, target)
    return target
