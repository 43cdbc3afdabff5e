"""Charts as pixels: lines and bands lie where their axes say."""

from __future__ import annotations

import numpy as np

from fasthg.report.chart import Axis
from fasthg.report.raster import Band, Line, panel

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_lines_and_bands_lie_where_the_axes_say() -> None:
    x, y = Axis(0.0, 10.0, ""), Axis(0.0, 1.0, "")
    band = Band([0, 10], [0.2, 0.2], [0.4, 0.4], BLUE)
    paper = panel("nose", x, y, [Line([0, 10], [0.75, 0.75], RED)], [band], (300, 200)).astype(int)
    rows, columns = np.nonzero((paper[..., 0] - paper[..., 1]) > 100)
    top, left = 36, 60
    assert abs(rows.mean() + 0.5 - (top + 0.25 * 200)) < 1
    assert columns.min() <= left + 1 and columns.max() >= left + 298
    tinted = np.nonzero(paper[:, left + 100, 2] - paper[:, left + 100, 0] > 40)[0]
    assert abs(tinted.min() - (top + 0.6 * 200)) <= 2 and abs(tinted.max() - (top + 160)) <= 2


def test_a_dashed_line_has_gaps() -> None:
    x, y = Axis(0.0, 10.0, ""), Axis(0.0, 1.0, "")
    paper = panel("", x, y, [Line([0, 10], [0.5, 0.5], RED, dashed=True)], (), (300, 200))
    row = paper[36 + 100].astype(int)
    drawn = (row[:, 0] - row[:, 1])[60:360] > 100
    assert 0.3 < drawn.mean() < 0.75


def test_the_legend_names_the_lines() -> None:
    x, y = Axis(0.0, 10.0, ""), Axis(0.0, 1.0, "")
    lines = [Line([0, 10], [0, 1], RED, "model")]
    with_names = panel("", x, y, lines, legend=True)
    without = panel("", x, y, lines)
    rows, columns = np.nonzero((with_names != without).any(axis=2))
    assert len(rows) and rows.min() > 36 + 150 and columns.min() > 60 + 200
