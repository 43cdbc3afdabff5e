"""Tables for a terminal, in which no number is ever cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Columns of the terminal between two of a table."""
_LEAST_TEXT = 24
"""Columns that a last column of text needs to be read."""


def print_table(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    text_last: bool = False,
) -> None:
    """Print a table; one that is wider than the console in parts, none of which cuts a cell.

    Columns that do not fit follow in a table below, which repeats the first one. With `text_last`,
    or where not even two columns fit, each row becomes a block of lines.

    Args:
        console: whose width counts.
        head: names of the columns; where all are empty no heading is printed.
        rows: a cell for each column. All columns but the first are numbers and stand to the right.
        text_last: the last column is text, which breaks into lines.
    """
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(head, *cells, strict=True)]
    if text_last:
        widths[-1] = min(widths[-1], _LEAST_TEXT)
    groups = _groups(widths, console.width)
    if not groups or (text_last and len(groups) > 1):
        print_blocks(console, head, cells)
        return
    for number, columns in enumerate(groups):
        if number:
            console.print()
        chosen = [0, *columns]
        _print_whole(
            console,
            [head[place] for place in chosen],
            [[row[place] for place in chosen] for row in cells],
            text_last,
        )


def _groups(widths: Sequence[int], width: int) -> list[list[int]]:
    """Places of the columns after the first that fit side by side with it; none if one does not."""
    groups: list[list[int]] = [[]]
    used = widths[0]
    for place, wide in enumerate(widths[1:], 1):
        if groups[-1] and used + _GAP + wide > width:
            groups.append([])
            used = widths[0]
        groups[-1].append(place)
        used += _GAP + wide
        if used > width:
            return []
    return groups


def _print_whole(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], text_last: bool
) -> None:
    table = Table(box=None, pad_edge=False, show_header=any(head))
    for place, name in enumerate(head):
        text = text_last and place == len(head) - 1
        table.add_column(
            Text(name),
            justify="right" if place and not text else "left",
            no_wrap=not text,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_blocks(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first cell of a row, and below it the others with their names, as many as fit a line."""
    for first, *others in rows:
        console.print(Text(first), soft_wrap=True)
        line = ""
        for name, cell in zip(head[1:], others, strict=True):
            item = f"{name} {cell}".strip()
            if not cell:
                continue
            if line and cell_len(line) + _GAP + cell_len(item) > console.width - _GAP:
                console.print(Text(f"{'':{_GAP}}{line}"), soft_wrap=True)
                line = ""
            line = f"{line}{'':{_GAP}}{item}" if line else item
        if line:
            # The last may be a text longer than a line.
            for part in Text(line).wrap(console, max(console.width - _GAP, 8)):
                console.print(Text(f"{'':{_GAP}}{part.plain.rstrip()}"), soft_wrap=True)
