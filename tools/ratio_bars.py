"""Bars of ratios as an SVG file that follows the reader's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_LABEL, _PLOT, _RIGHT = 330, 420, 60  # px: names, bars, and the figures behind them
_ROW, _HEAD, _AXIS = 22, 34, 40  # px
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px } .tick { font-size: 11px; fill: #57606a }
.bar { fill: #0072B2 } .gpu { fill: #E69F00 } .rule { stroke: #d0d7de } .one { stroke: #57606a }
.whisker { stroke: #24292f; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .tick { fill: #8d96a0 } .rule { stroke: #30363d } .one { stroke: #8d96a0 }
  .bar { fill: #56B4E9 } .whisker { stroke: #e6edf3 }
}
"""


class Bar(NamedTuple):
    """A ratio, with its quartiles where they are known."""

    label: str
    ratio: float
    spread: tuple[float, float] | None = None


class Panel(NamedTuple):
    """Bars of one machine."""

    title: str
    bars: Sequence[Bar]
    gpu: bool = False


def ratio_bars(panels: Sequence[Panel], axis: str) -> str:
    """An SVG of horizontal bars from 1, on a logarithmic axis: twice as fast and half as fast are
    equally far from 1.

    Args:
        panels: one below the other.
        axis: what the ratio is.
    """
    values = [v for panel in panels for bar in panel.bars for v in (bar.ratio, *(bar.spread or ()))]
    low, high = min(0.9, *values) / 1.05, max(1.1, *values) * 1.1

    def x(value: float) -> float:
        return _LABEL + _PLOT * math.log(value / low) / math.log(high / low)

    ticks = [
        step * 10**power
        for power in range(-2, 4)
        for step in (1, 2, 5)
        if low < step * 10**power < high
    ]
    parts, top = [], 0
    for panel in panels:
        bottom = top + _HEAD + _ROW * len(panel.bars)
        parts.append(f'<text class="title" x="4" y="{top + 20}">{escape(panel.title)}</text>')
        for tick in ticks:
            kind = "one" if tick == 1 else "rule"
            parts.append(f'<path class="{kind}" d="M{x(tick):.1f} {top + _HEAD - 4}V{bottom}"/>')
        for number, bar in enumerate(panel.bars):
            y = top + _HEAD + _ROW * number
            start, width = min(x(1), x(bar.ratio)), abs(x(bar.ratio) - x(1))
            end = x(max(1, bar.ratio, *(bar.spread or ())))
            parts.append(
                f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>'
                f'<rect class="{"gpu" if panel.gpu else "bar"}" x="{start:.1f}" y="{y + 3}" '
                f'width="{width:.1f}" height="{_ROW - 7}"/>'
                f'<text x="{end + 6:.1f}" y="{y + 14}">{bar.ratio:.3g}x</text>'
            )
            if bar.spread:
                left, right = map(x, bar.spread)
                middle = y + 3 + (_ROW - 7) / 2
                parts.append(
                    f'<path class="whisker" d="M{left:.1f} {middle - 3}v6M{left:.1f} {middle}'
                    f'H{right:.1f}M{right:.1f} {middle - 3}v6"/>'
                )
        top = bottom
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{top + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks
    ]
    middle = _LABEL + _PLOT / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{top + 32}" text-anchor="middle">{escape(axis)}</text>'
    )
    width, height = _LABEL + _PLOT + _RIGHT, top + _AXIS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )
