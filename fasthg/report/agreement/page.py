"""An Agreement as one HTML file: bands of PCK, then the tables."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from fasthg import html
from fasthg.data.agreement.measure import Agreement
from fasthg.report.agreement.tables import tables
from fasthg.report.chart import BLUE, STYLE, Axis, Chart, charts
from fasthg.words import counted

_STYLE = f"""<style>{STYLE}
.wide {{ white-space: nowrap; }}
pre {{ white-space: pre-wrap; }}
p.note {{ max-width: 60rem; }}
</style>"""


def write(agreement: Agreement) -> str:
    """The page's text."""
    return html.page("Human agreement", _body(agreement))


def _body(agreement: Agreement) -> Iterator[str]:
    yield _STYLE
    yield html.note(
        f"{agreement.source}: {counted(agreement.animals, 'animal')}. Share of labels within a "
        "radius of the median of the other workers: line, the middle worker of each label; band, "
        "from its worst to its best."
    )
    yield charts(list(_bands(agreement)), "17rem")
    for table in tables(agreement):
        yield html.heading(table.title)
        if table.rows:
            yield html.table(table.head, table.rows)
        yield from map(html.note, table.notes)
        if table.line is not None:
            yield html.note("Paste into the configuration:")
            yield f"<pre><code>{escape(table.line)}</code></pre>"


def _bands(agreement: Agreement) -> Iterator[Chart]:
    """A chart of all parts, then one of each; without a band where nobody labelled the part."""
    curves = np.roll(agreement.bands, 1, axis=2).transpose(2, 0, 1)
    for name, (low, middle, high) in zip(("all parts", *agreement.parts), curves, strict=True):
        across = Axis(0.0, float(agreement.radii[-1]), "radius, image px")
        chart = Chart(name, across, Axis(0.0, 1.0, "share of labels", percent=True), (250, 150))
        chart.band(agreement.radii, low, high, BLUE, "")
        chart.line(agreement.radii, middle, BLUE)
        yield chart
