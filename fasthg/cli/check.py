"""`fasthg data check`: what would spoil training quietly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import (
    AsJson,
    ConfigPath,
    Overrides,
    configure,
    console,
    print_json,
    read_config,
)
from fasthg.errors import ConfigError


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="RUN...",
            help="Also name labels that the networks of these runs contradict.",
        ),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with images of the worst.")
    ] = None,
) -> None:
    """Look for damaged records and images, doubtful labels and repeated frames; exit 1 if any.

    Of the runs of --with, those not trained on a frame judge its labels, if there are any.
    """
    from fasthg.config.sides import flip_doubts
    from fasthg.data.check import check as examine
    from fasthg.data.check import page
    from fasthg.drawing.palette import part_colours
    from fasthg.files import write_text
    from fasthg.runtime.tables import print_table

    # The shell makes of --with runs/* several words, of which the option takes the first.
    words = overrides or []
    more = [Path(word) for word in words if runs and "=" not in word]
    settings = read_config(config, [word for word in words if not runs or "=" in word])
    splits = {s: getattr(settings.DATA, s.upper()) for s in ("train", "val", "test")}
    splits = {split: patterns for split, patterns in splits.items() if patterns}
    if not splits:
        raise ConfigError(f"{config}: DATA names no split; set DATA.TRAIN to a glob")
    parts = settings.PARTS
    report, indices = examine(
        splits, parts.NUM_PARTS, names=parts.NAMES, pairs=parts.LEFT_RIGHT_PAIRS
    )
    report.notes += flip_doubts(settings)
    if runs:
        from fasthg.report.label_errors import contradicted, look

        configure(settings)
        seen, notes = look([*runs, *more], settings, indices)
        report.problems += contradicted(indices, seen, parts)
        report.notes += notes
    if html is not None:
        write_text(html, page.write(report, indices, part_colours(parts)))
    if as_json:
        print_json(report.as_json())
    else:
        out = console()
        print_table(out, ["", *report.splits], report.table())
        for line in report.lines():
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        if html is not None:
            out.print(f"wrote {html}", markup=False)
    if report.problems:
        raise typer.Exit(1)
