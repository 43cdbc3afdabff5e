"""Tables in terminals of any width: every number is there in full."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fasthg.runtime.tables import print_table

HEAD = ["part", "mean", "median", "≤2px"]
ROWS = [["left ear", "12345.67", "8.90", "81%"], ["nose", "1.00", "", "100%"]]


def printed(width: int, *, text_last: bool = False, rows: list[list[str]] = ROWS) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width)
    print_table(console, HEAD, rows, text_last=text_last)
    return out.getvalue()


@pytest.mark.parametrize("width", [12, 20, 34, 35, 60, 120])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= max(width, 15), "the longest item"
    for row in ROWS:
        assert [cell for cell in row if cell not in text] == []


def test_columns_that_do_not_fit_follow_below() -> None:
    assert printed(32).splitlines()[0].split() == HEAD
    lines = [line.split() for line in printed(31).splitlines()]
    assert lines[0] == ["part", "mean", "median"] and lines[3:5] == [[], ["part", "≤2px"]]
    assert lines[5] == ["left", "ear", "81%"]


def test_where_two_columns_do_not_fit_each_row_is_a_block() -> None:
    assert printed(17).splitlines() == [
        "left ear",
        "  mean 12345.67",
        "  median 8.90",
        "  ≤2px 81%",
        "nose",
        "  mean 1.00",
        "  ≤2px 100%",
    ]


def test_a_text_at_the_end_breaks_into_lines() -> None:
    rows = [["a", "1", "2", "BATCH_SIZE 8, RANDOM_SEED 1, INITIAL_LEARNING_RATE 0.002"]]
    for width in (24, 50):
        text = printed(width, text_last=True, rows=rows)
        assert len(text.splitlines()) > 2
        assert [word for word in rows[0][3].split() if word not in text.split()] == []
