"""Line charts as pixels, for files that others read as PNG; pages have `chart`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fasthg.drawing import lettering
from fasthg.drawing.marks import Pixels, draw_line, fine
from fasthg.drawing.palette import Rgb
from fasthg.report.chart import Axis

_LEFT, _TOP, _RIGHT, _BELOW = 60, 36, 18, 34  # px about a plot
_SMALL, _TITLE = 14, 16  # px, height of letters
_RULE, _FRAME = (228, 228, 228), (120, 120, 120)
_DASH, _PITCH = 6, 16  # px, of a dashed line


@dataclass(frozen=True)
class Line:
    """Points (points,) each, with what the legend says of them; an empty name is left out."""

    x: ArrayLike
    y: ArrayLike
    colour: Rgb
    name: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines, (points,) each."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    colour: Rgb


def panel(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    size: tuple[int, int] = (320, 260),
    legend: bool = False,
) -> Pixels:
    """One chart on white paper, without the names of its axes.

    Args:
        title: above it.
        lines, bands: the first lies below; bands lie below lines.
        size: width and height of the plot, px, without what stands about it.
        legend: whether the names of lines stand in its right lower corner.

    Returns:
        uint8 RGB (height, width, 3).
    """
    width, height = size
    paper = np.full((_TOP + height + _BELOW, _LEFT + width + _RIGHT, 3), 255, np.uint8)
    right, bottom = _LEFT + width, _TOP + height

    def px(across: ArrayLike, up: ArrayLike) -> NDArray[np.float64]:
        both = _LEFT + x.share(across) * width, bottom - y.share(up) * height
        return np.stack(both, axis=-1)

    for value, text in x.ticks():
        at = px([value], [y.low])[0][0]
        cv2.line(paper, fine((at, _TOP)), fine((at, bottom)), _RULE, 1, cv2.LINE_AA, 4)
        left = at - lettering.text_width(text, _SMALL) / 2
        lettering.draw_text(paper, (left, bottom + 7), text, _SMALL, lettering.INK, rim=None)
    for value, text in y.ticks():
        at = px([x.low], [value])[0][1]
        cv2.line(paper, fine((_LEFT, at)), fine((right, at)), _RULE, 1, cv2.LINE_AA, 4)
        left = _LEFT - 8 - lettering.text_width(text, _SMALL)
        place = (left, at - 0.62 * _SMALL)
        lettering.draw_text(paper, place, text, _SMALL, lettering.INK, rim=None)
    for band in bands:
        outline = np.concatenate([px(band.x, band.low), px(band.x, band.high)[::-1]])
        tinted = paper.copy()
        corners = np.array([fine(point) for point in outline], np.int32)
        cv2.fillPoly(tinted, [corners], band.colour, cv2.LINE_AA, 4)
        paper[:] = cv2.addWeighted(tinted, 0.25, paper, 0.75, 0)
    for line in lines:
        _stroke(paper, px(line.x, line.y), line.colour, line.dashed)
    cv2.rectangle(paper, (_LEFT, _TOP), (right, bottom), _FRAME, 1)
    lettering.draw_text(paper, (_LEFT, 10), title, _TITLE, lettering.INK, rim=None)
    if legend:
        _legend(paper, right - 10, bottom - 10, [line for line in lines if line.name])
    return paper


def _stroke(paper: Pixels, points: NDArray[np.float64], colour: Rgb, dashed: bool) -> None:
    """A line of 2 px through points (points, 2), px, broken where one is NaN; where dashed, which
    needs all points, _DASH of every _PITCH px."""
    if dashed:
        along = np.r_[0.0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
        for start in np.arange(0.0, along[-1], _PITCH):
            at = np.linspace(start, min(start + _DASH, along[-1]), 4)
            piece = np.stack([np.interp(at, along, points[:, k]) for k in (0, 1)], axis=-1)
            draw_line(paper, piece, colour, 2, rim=None)
        return
    draw_line(paper, points, colour, 2, rim=None)


def _legend(paper: Pixels, right: int, bottom: int, lines: Sequence[Line]) -> None:
    step = lettering.line_height(_SMALL)
    left = right - 34 - max((lettering.text_width(line.name, _SMALL) for line in lines), default=0)
    for number, line in enumerate(reversed(lines)):
        y = bottom - (number + 1) * step
        middle = y + 0.62 * _SMALL
        ends = np.array([[left, middle], [left + 26, middle]])
        _stroke(paper, ends, line.colour, line.dashed)
        at = (left + 34, y)
        lettering.draw_text(paper, at, line.name, _SMALL, lettering.INK, rim=None)
