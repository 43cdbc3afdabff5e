"""Rates and the status line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fasthg.runtime.progress import Meter, ProgressLine, duration


def test_duration() -> None:
    assert [duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_rates_leave_pauses_out() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    for _ in range(4):
        now[0] += 1.0
        meter.add(images=8, waited=0.25)
    now[0] += 10.0
    meter.pause(10.0)
    assert meter.rates() == pytest.approx((8.0, 1.0, 0.25))


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with ProgressLine(Console(file=out, width=40), total=100) as progress:
        progress.update(10, 1.5, 1e-3, 80.0, 0.1, 0.02)
    line = out.getvalue()
    assert line.count("\n") == 1
    assert "step 10/100" in line
    assert "ETA 0:09" in line
    assert "waiting for data 2%" in line


def test_one_line_that_rewrites_itself_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with ProgressLine(console, total=3) as progress:
        for step in (1, 2, 3):
            progress.update(step, 1.0, 1e-3, 1.0, 1.0, 0.0)
        progress.note("a line that stays")
    assert "\x1b[2K" in out.getvalue()
    assert "a line that stays" in out.getvalue()
