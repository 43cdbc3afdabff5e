"""`fasthg runs`: the trainings of a folder, one line each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasthg.cli.common import AsJson, console, print_json

if TYPE_CHECKING:
    from fasthg.runs.listing import RunSummary


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Folder with run folders, or one of them.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs: step, best validation error, test error, and in what they differ."""
    from fasthg.runs.listing import ABSENT, differences, run_folders, shown, summarise, told
    from fasthg.runtime.tables import print_table

    found = [summarise(path) for path in run_folders(folder)]
    differing = differences([run.keys for run in found])
    if as_json:
        named = [
            {key: value for key, value in keys.items() if value is not ABSENT} for keys in differing
        ]
        print_json(
            [{**run.as_json(), "differs": keys} for run, keys in zip(found, named, strict=True)]
        )
        return
    out = console()
    if not found:
        out.print(f"{folder}: no run in it", markup=False, soft_wrap=True)
        return
    rows = [
        [*_cells(run), told(keys)] for run, keys in zip(found, differing, strict=True) if run.state
    ]
    head = ["run", "step", "state", "best val", "test mean", "median", "minutes", "differs"]
    if not any(differing):
        head, rows = head[:-1], [row[:-1] for row in rows]
    if rows:
        print_table(out, head, rows, text_last=any(differing))
        out.print("errors in image px; best val: least mean error of the validations")
    if any(ABSENT in keys.values() for keys in differing):
        out.print(f"{shown(ABSENT)}: the key has no effect there, or its version did not know it")
    for run in found:
        if run.problem:
            out.print(f"{run.name}: {run.problem}", markup=False, soft_wrap=True)
    if any(run.split == "val" for run in found):
        out.print("val beside an error: of the validation data, as none was evaluated on test")


def _cells(run: RunSummary) -> list[str]:
    total = "?" if run.total is None else run.total
    return [
        run.name,
        f"{run.step} of {total}",
        str(run.state),
        _number(run.best_px),
        f"{'val ' if run.split == 'val' else ''}{_number(run.mean_px)}",
        _number(run.median_px),
        "-" if run.seconds is None else f"{run.seconds / 60:.1f}",
    ]


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "-"
