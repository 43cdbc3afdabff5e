"""`fasthg data agreement`: how far human annotators are from each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasthg.cli.common import AsJson, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from fasthg.report.agreement.tables import Table

_ROWS = 30
"""Rows of a table that a terminal shows."""


def agreement(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT", help="Folder with project_config.yaml.")
    ],
    pixels_per_cm: Annotated[
        float | None, typer.Option(min=1e-9, help="Image px in a centimetre; adds errors in cm.")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the PCK bands drawn.")
    ] = None,
) -> None:
    """Compare the workers of a MARS project; prints OKS_SIGMAS measured on them."""
    from fasthg.data.agreement import measure, read_crowd
    from fasthg.files import write_text
    from fasthg.report.agreement.page import write
    from fasthg.report.agreement.tables import as_dict, tables
    from fasthg.runs.run_folder import plain

    result = measure(read_crowd(project), pixels_per_cm)
    if html is not None:
        write_text(html, write(result))
    if as_json:
        print_json(plain(as_dict(result)))
        return
    out = console()
    for table in tables(result):
        _print(out, table)
    if html is not None:
        out.print(f"\nwrote {html}", markup=False, soft_wrap=True)


def _print(out: Console, table: Table) -> None:
    from fasthg.runtime.tables import print_table

    out.print(f"\n{table.title}", markup=False)
    if table.rows:
        print_table(out, table.head, table.rows[:_ROWS])
        if len(table.rows) > _ROWS:
            out.print(f"and {len(table.rows) - _ROWS} more; --json and --html list all")
    for line in (*table.notes, *([table.line] if table.line else [])):
        out.print(line, markup=False, soft_wrap=True)
