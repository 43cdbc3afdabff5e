"""What `fasthg suggest` prints."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fasthg.cli.suggest import _print
from fasthg.inference.video.suggest.doubts import SCORE
from fasthg.inference.video.suggest.suggest import Suggestion, Suggestions


def printed(width: int, *films: str) -> str:
    frames = [
        Suggestion(film, frame, frame / 30, SCORE, "left front paw", 1.0)
        for film in range(len(films))
        for frame in (7, 104512)
    ]
    sources = [SimpleNamespace(path=Path(name)) for name in films]
    out = io.StringIO()
    _print(Console(file=out, width=width), Suggestions(sources, [], frames))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_no_number_and_no_name_is_cut(width: int) -> None:
    names = ("2031-02-03_cage4_top.mp4", "2031-02-03_cage4_side.mp4")
    text = printed(width, *names)
    assert [each for each in (*names, "104512", "3483.73 s", "0.23 s") if each not in text] == []


def test_one_film_is_not_named_and_its_frames_stand_below_each_other() -> None:
    assert [line.rstrip() for line in printed(60, "day1.mp4").splitlines()] == [
        "frame        time  why",
        "     7     0.23 s  low score: left front paw",
        "104512  3483.73 s  low score: left front paw",
    ]
