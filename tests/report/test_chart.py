"""Charts whose texts stand clear of each other."""

from __future__ import annotations

import re

import pytest

from fasthg.report.chart import BLUE, Axis, Chart

DIGIT_PX = 6.999
"""Of DejaVu Sans, the widest usual font, at 11 px."""
NAME_ENDS_PX = 14
"""The axis's name stands upright on x = 11, and letters such as g go below that line."""


@pytest.mark.parametrize("peak", [10.0, 0.005, 0.0025, 0.00125])
def test_the_name_of_the_y_axis_is_clear_of_its_ticks(peak: float) -> None:
    axis = Axis.around([peak], "learning rate, a step", log=False)
    chart = Chart("Learning rate", Axis(0, 100, "step"), axis)
    chart.line([0, 100], [0, peak], BLUE)
    svg = chart.svg()
    ticks = re.findall(r'<text x="(\d+)" y="[\d.]+" text-anchor="end">([^<]+)<', svg)
    assert len(ticks) >= 4
    assert min(int(x) - DIGIT_PX * len(text) for x, text in ticks) > NAME_ENDS_PX
    assert svg.startswith('<svg viewBox="0 0 404 '), "as wide as the charts beside it"
