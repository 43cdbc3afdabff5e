"""How far a prediction is, in numbers and on a terminal or in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fasthg.inference.video import progress
from fasthg.inference.video.progress import Advance, Shown


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_of_a_film_and_of_all() -> None:
    clock = Clock()
    advance = Advance([100, 300], clock)
    advance.begin()
    assert advance.rate is None and advance.left() is None
    clock.now = 5
    advance.reached(50, 50)
    assert (advance.rate, advance.left(), advance.left(films=True)) == (10, 5, 35)
    assert advance.line() == (
        "50 of 100 frames, 10.0 a second, 5 s left; film 1 of 2, 35 s left for all"
    )
    clock.now = 10
    advance.reached(100, 100)
    advance.end()
    advance.begin()
    # Before its first frames it is taken to be as fast as the films before it.
    assert (advance.rate, advance.left()) == (10, 30)
    clock.now = 12
    # Of rows that were there nothing is learnt.
    advance.reached(140, 40)
    assert (advance.rate, advance.left()) == (20, 8)


def test_a_film_of_unknown_length_and_one_that_was_done() -> None:
    clock = Clock()
    advance = Advance([80, None], clock)
    advance.begin()
    advance.end()
    advance.begin()
    clock.now = 2
    advance.reached(30, 30)
    assert advance.line() == "30 frames, 15.0 a second; film 2 of 2"


def test_a_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(), io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    with Shown(Advance([9000], clock), ["film.mp4"], Console(file=text, width=120)) as shown:
        shown.begin()
        for second in range(1, 151):
            clock.now = second
            shown.reached(20 * second, 20 * second)
        shown.end()
    assert text.getvalue().splitlines() == [
        "film.mp4: 1200 of 9000 frames, 20.0 a second, 6 min 30 s left",
        "film.mp4: 2400 of 9000 frames, 20.0 a second, 5 min 30 s left",
    ]


@pytest.mark.parametrize("films", [1, 2])
def test_a_terminal_gets_bars_for_the_film_and_for_several(films: int) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60)
    names = ["first.mp4", "second.mp4"][:films]
    with Shown(Advance([100] * films), names, console) as shown:
        shown.begin()
        shown.reached(50, 50)
        shown._bars.refresh()
    shown_text = text.getvalue()
    assert "first.mp4" in shown_text and "50/100" in shown_text
    assert ("film 1/2" in shown_text) == (films == 2)


def test_a_long_name_leaves_room_for_the_numbers() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60)
    with Shown(Advance([100]), ["2024-01-03_a_very_long_name_of_cam1.mp4"], console) as shown:
        shown.begin()
        shown.reached(50, 50)
        shown._bars.refresh()
    assert "_of_cam1.mp4" in text.getvalue() and "50/100" in text.getvalue()
    assert "left" in text.getvalue()
