"""An Agreement as one HTML file: bands drawn as SVG, then the tables."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from fasthg import html
from fasthg.data.agreement.crowd import Floats
from fasthg.data.agreement.measure import Agreement
from fasthg.report.agreement.tables import tables

_WIDTH, _HEIGHT = 260, 170  # of a plot, in its own px
_LEFT, _TOP, _BELOW = 36, 24, 34
_BAND = "#0072b2"  # Okabe and Ito's blue
_STYLE = """<style>
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .6rem; }
.plots text { font: 11px system-ui, sans-serif; fill: currentColor; }
.plots .axis { stroke: currentColor; stroke-opacity: .25; fill: none; }
</style>"""


def write(agreement: Agreement) -> str:
    """The page's text."""
    return html.page("Human agreement", _body(agreement))


def _body(agreement: Agreement) -> Iterator[str]:
    yield _STYLE
    yield html.note(
        f"{agreement.source}: {agreement.animals} animals. Share of labels within a radius of the "
        "median of the other workers: line, the middle worker of each label; band, from its worst "
        "to its best."
    )
    names = ("all", *agreement.parts)
    curves = np.roll(agreement.bands, 1, axis=2).transpose(2, 0, 1)
    plots = (_plot(n, agreement.radii, c) for n, c in zip(names, curves, strict=True))
    yield '<div class="plots">' + "\n".join(plots) + "</div>"
    for table in tables(agreement):
        yield html.heading(table.title)
        if table.rows:
            yield html.table(table.head, table.rows)
        yield from map(html.note, table.notes)


def _plot(name: str, radii: Floats, curves: Floats) -> str:
    """One part's band. radii: (radii,) px; curves: (3, radii) shares: min, median, max."""
    label = f'<text x="{_LEFT}" y="14" font-weight="600">{escape(name)}</text>'
    x = _LEFT + radii / radii[-1] * _WIDTH
    y = _TOP + (1 - curves) * _HEIGHT
    axes = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = _TOP + (1 - share) * _HEIGHT
        axes.append(f'<path class="axis" d="M{_LEFT} {at:.1f}h{_WIDTH}"/>')
        axes.append(f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for radius in radii[:: (len(radii) - 1) // 4]:
        at = _LEFT + radius / radii[-1] * _WIDTH
        unit = " px" if radius == radii[-1] else ""
        axes.append(
            f'<text x="{at:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">'
            f"{radius:g}{unit}</text>"
        )
    band = ""
    if np.isfinite(curves).all():
        outline = np.concatenate([[x, y[0]], [x[::-1], y[2, ::-1]]], axis=1)
        band = (
            f'<polygon points="{_points(outline)}" fill="{_BAND}" fill-opacity=".3"/>'
            f'<polyline points="{_points(np.stack([x, y[1]]))}" fill="none" stroke="{_BAND}" '
            'stroke-width="2"/>'
        )
    size = f"0 0 {_LEFT + _WIDTH + 20} {_TOP + _HEIGHT + _BELOW}"
    return f'<svg viewBox="{size}" role="img">{label}{"".join(axes)}{band}</svg>'


def _points(xy: Floats) -> str:
    """`(2, points)` as the attribute of a line."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in xy.T)
