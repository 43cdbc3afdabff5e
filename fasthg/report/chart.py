"""Charts as inline SVG: axes with units; lines, bands, bars and intervals in the page's scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Okabe and Ito's palette; against a dark page its lighter members.
BLUE, ORANGE, GREEN, GREY = "var(--blue)", "var(--orange)", "var(--green)", "var(--grey)"
STYLE = """
:root { --blue: #0072b2; --orange: #d55e00; --green: #009e73; --grey: #767676; }
@media (prefers-color-scheme: dark) {
  :root { --blue: #56b4e9; --orange: #e69f00; --green: #1fc79b; --grey: #9a9a9a; }
}
.charts { display: grid; gap: 1.2rem 1.6rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--wide, 22rem)), 1fr)); }
.charts svg { width: 100%; height: auto; max-width: 34rem; }
.charts text { font: 11px system-ui, sans-serif; fill: currentColor; }
.charts text.title { font-size: 12.5px; font-weight: 600; }
.charts text.name { fill-opacity: .75; }
.charts .rule { stroke: currentColor; stroke-opacity: .16; fill: none; }
"""
_LEFT, _RIGHT, _TOP, _LEGEND, _BELOW = 58, 16, 26, 18, 44
_CHARACTER, _NAME, _TICK = 7, 18, 7
"""Px of a digit in the widest of the usual fonts; of a y axis's upright name with its gap; and
between tick labels and the plot."""
_DECADES = 1.5
"""Powers of ten from which an axis is logarithmic where that is left open."""


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with its name and unit; `percent` writes shares."""

    low: float
    high: float
    name: str
    log: bool = False
    percent: bool = False

    @classmethod
    def around(cls, values: ArrayLike, name: str, *, log: bool | None = None) -> Axis:
        """From 0 to the largest finite value; logarithmic, unless `log` says, where values above 0
        span more than 1.5 decades."""
        finite = np.asarray(values, float).ravel()
        finite = finite[np.isfinite(finite)]
        high = float(finite.max(initial=0.0)) or 1.0
        low = float(finite[finite > 0].min(initial=high))
        if log or (log is None and high / low > 10**_DECADES):
            return cls(low, max(high, low * 1.01), name, log=True)
        step = _step(high)
        return cls(0.0, math.ceil(high / step - 1e-9) * step, name)

    def share(self, values: ArrayLike) -> Floats:
        """Where values lie, 0 at `low` and 1 at `high`; limited to that, NaN for NaN."""
        at = np.asarray(values, float)
        if self.log:
            at = np.log(np.maximum(at, self.low) / self.low) / math.log(self.high / self.low)
        else:
            at = (at - self.low) / (self.high - self.low)
        return np.clip(at, 0.0, 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the scale with their text."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = math.log10(self.high / self.low) < 2
            values = [m * 10.0**power for power in powers for m in ((1, 2, 5) if few else (1,))]
        else:
            step = _step(self.high - self.low)
            first = math.ceil(self.low / step - 1e-9)
            values = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        inside = [v for v in values if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
        return [(v, f"{v:.0%}" if self.percent else _text(v)) for v in inside]


def _step(span: float) -> float:
    """A round distance of ticks: four to six of them."""
    scale = 10.0 ** math.floor(math.log10(span / 4))
    return next(m * scale for m in (1, 2, 2.5, 5, 10) if span / (m * scale) <= 6)


def _text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.5e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.6g}"


class Chart:
    """One chart; what is drawn first lies below.

    Args:
        title: above the chart.
        x, y: its axes.
        size: width and height of the plot in px, without what stands about it. Long tick labels
            of a named y axis take from the width, so that charts side by side are equally wide.
        rows: names along a y axis from 0 to their number, the first on top, instead of ticks.
        left: px for what stands left of the plot.
    """

    def __init__(
        self,
        title: str,
        x: Axis,
        y: Axis,
        size: tuple[int, int] = (330, 190),
        rows: Sequence[str] = (),
        left: int = _LEFT,
    ) -> None:
        self.title, self.x, self.y = title, x, y
        self.rows = rows
        longest = max((len(text) for _, text in y.ticks()), default=0)
        needed = _NAME + _CHARACTER * longest + _TICK if y.name and not rows else 0
        self.left = max(left, needed)
        self.size = (size[0] - (self.left - left), size[1])
        self._marks: list[str] = []
        self._legend: list[tuple[str, str]] = []

    def line(self, x: ArrayLike, y: ArrayLike, colour: str, name: str = "", dash: str = "") -> None:
        """A line through points (points,) each, broken where one is NaN."""
        px, py = self._px(x, y)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        for run in _runs(np.isfinite(px + py)):
            points = _points(px[run], py[run])
            if len(points.split()) == 1:
                self._marks.append(f'<circle r="2" fill="{colour}" {_at(px[run][0], py[run][0])}/>')
            self._marks.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" '
                f'stroke-linejoin="round"{dashed}/>'
            )
        self._name(colour, name)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, name: str) -> None:
        """What lies between two lines, all (points,), where none is NaN."""
        px, bottom = self._px(x, low)
        _, top = self._px(x, high)
        for run in _runs(np.isfinite(px + bottom + top)):
            outline = _points(np.r_[px[run], px[run][::-1]], np.r_[bottom[run], top[run][::-1]])
            self._marks.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity=".25"/>')
        self._name(f"{colour};opacity:.4", name)

    def bars(self, edges: ArrayLike, heights: ArrayLike, colour: str, told: Sequence[str]) -> None:
        """Bars between edges (bars + 1,), each with a text for the pointer."""
        left, _ = self._px(edges, np.zeros(np.size(edges)))
        _, top = self._px(np.zeros(np.size(heights)), heights)
        bottom = _TOP + _LEGEND + self.size[1]
        for number, text in enumerate(told):
            if math.isfinite(top[number]):
                width = max(left[number + 1] - left[number] - 1, 0.8)
                self._marks.append(
                    f'<rect x="{left[number] + 0.5:.1f}" y="{top[number]:.1f}" width="{width:.1f}" '
                    f'height="{bottom - top[number]:.1f}" fill="{colour}" fill-opacity=".85">'
                    f"<title>{escape(text)}</title></rect>"
                )

    def intervals(
        self, middle: ArrayLike, ends: Floats, colour: str, told: Sequence[str], emphasis: int
    ) -> None:
        """For each row a dot and its interval, ends (2, rows); row `emphasis` is drawn bolder."""
        y = np.arange(len(told)) + 0.5
        x, py = self._px(middle, y)
        low, high = (self._px(end, y)[0] for end in ends)
        for row, text in enumerate(told):
            if not math.isfinite(x[row]):
                continue
            bold = row == emphasis
            line = ""
            if math.isfinite(low[row] + high[row]):
                line = (
                    f'<path d="M{low[row]:.1f} {py[row]:.1f}H{high[row]:.1f}" stroke="{colour}" '
                    f'stroke-width="{4 if bold else 2.4}" stroke-linecap="round"/>'
                )
            self._marks.append(
                f"<g>{line}<circle {_at(x[row], py[row])} r='{6 if bold else 4.5}' "
                f"fill='{colour}'/><title>{escape(text)}</title></g>"
            )

    def at(self, x: float, colour: str, name: str) -> None:
        """A dashed line across the chart."""
        px = float(self._px([x], [0.0])[0][0])
        self._marks.append(
            f'<path d="M{px:.1f} {_TOP + _LEGEND}v{self.size[1]}" stroke="{colour}" '
            'stroke-dasharray="3 3"/>'
        )
        self._name(colour, name)

    def svg(self) -> str:
        """The chart's element."""
        width, height = self.size
        right, bottom = self.left + width, _TOP + _LEGEND + height
        parts = [f'<text class="title" x="0" y="14">{escape(self.title)}</text>']
        at = float(self.left)
        for colour, name in self._legend:
            parts.append(
                f'<rect x="{at:.0f}" y="{_TOP + 1}" width="14" height="5" style="fill:{colour}"/>'
                f'<text class="name" x="{at + 19:.0f}" y="{_TOP + 8}">{escape(name)}</text>'
            )
            at += 38 + 6.2 * len(name)
        for value, text in self.x.ticks():
            px = self.left + float(self.x.share(value)) * width
            parts.append(
                f'<path class="rule" d="M{px:.1f} {_TOP + _LEGEND}v{height}"/>'
                f'<text x="{px:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
            )
        y_ticks = [(row + 0.5, name) for row, name in enumerate(self.rows)] or self.y.ticks()
        for value, text in y_ticks:
            py = float(self._px([self.x.low], [value])[1][0])
            parts.append(
                f'<path class="rule" d="M{self.left} {py:.1f}H{right}"/>'
                f'<text x="{self.left - _TICK}" y="{py + 4:.1f}" text-anchor="end">'
                f"{escape(text)}</text>"
            )
        middle = _TOP + _LEGEND + height / 2
        parts += self._marks
        parts.append(
            f'<text class="name" x="{self.left + width / 2:.0f}" y="{bottom + 36}" '
            f'text-anchor="middle">{escape(self.x.name)}</text>'
        )
        if self.y.name:
            parts.append(
                f'<text class="name" transform="translate(11 {middle:.0f}) rotate(-90)" '
                f'text-anchor="middle">{escape(self.y.name)}</text>'
            )
        box = f"0 0 {right + _RIGHT} {bottom + _BELOW}"
        return (
            f'<svg viewBox="{box}" role="img" aria-label="{escape(self.title)}">'
            + "".join(parts)
            + "</svg>"
        )

    def _px(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        width, height = self.size
        down = self.y.share(y) if self.rows else 1 - self.y.share(y)
        return self.left + self.x.share(x) * width, _TOP + _LEGEND + down * height

    def _name(self, colour: str, name: str) -> None:
        if name:
            self._legend.append((colour, name))


def charts(drawn: Sequence[Chart], least: str = "22rem") -> str:
    """Charts side by side, each at least so wide."""
    inside = "\n".join(f"<div>{chart.svg()}</div>" for chart in drawn)
    return f'<div class="charts" style="--wide:{least}">{inside}</div>'


def _runs(known: NDArray[np.bool_]) -> list[slice]:
    """Stretches of True."""
    turns = np.flatnonzero(np.diff(np.r_[False, known, False].astype(np.int8)))
    return [slice(int(a), int(b)) for a, b in turns.reshape(-1, 2)]


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _at(x: float, y: float) -> str:
    return f'cx="{x:.1f}" cy="{y:.1f}"'
