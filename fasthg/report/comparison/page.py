"""The page of a comparison, section by section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from fasthg import html, metrics
from fasthg.errors import FasthgError
from fasthg.files import write_text
from fasthg.html import Fixed
from fasthg.report import figures, provenance
from fasthg.report.accuracy import LEVEL, RESAMPLES, SEED, span
from fasthg.report.calibration import Floats
from fasthg.report.chart import STYLE, Axis, Chart, charts
from fasthg.report.comparison.measured import (
    Group,
    MeasuredRun,
    PairedDifference,
    groups,
    paired,
    read_runs,
)
from fasthg.report.provenance import Provenance
from fasthg.runs.listing import ABSENT, differences, shown
from fasthg.words import duration

# Okabe and Ito's palette again, for more groups than a run's own page has curves.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#5b5bd6", "#767676")
_DARK = ("#56b4e9", "#e69f00", "#1fc79b", "#e59ac4", "#f0e442", "#a5a5ff", "#9a9a9a")
_DASHES = (("", "solid"), ("6 3", "dashed"), ("2 3", "dotted"))
"""Of a line in a chart, and of its border in the legend."""
_RADII = 81  # of a PCK curve
_RADIUS = 20.0  # px, the largest of a PCK curve


def _variables(colours: Sequence[str]) -> str:
    return " ".join(f"--run{number}: {colour};" for number, colour in enumerate(colours))


_STYLE = f"""<style>{STYLE}{provenance.STYLE}
:root {{ {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
.wide {{ white-space: nowrap; }}
.beside {{ font-size: .86rem; }} .beside .wide {{ margin-top: .2rem; }}
p.note {{ max-width: 60rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 0; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .88rem; margin: .6rem 0; }}
.legend i {{ display: inline-block; width: 1.8em; vertical-align: .25em; margin-right: .5em; }}
</style>"""


def write(paths: Sequence[Path], out: Path) -> list[Group]:
    """Write the page of several evaluated runs; the first is the one that others are compared with.

    Raises:
        ConfigError, DataError: see `read_runs`.
        FasthgError: `out` cannot be written.
    """
    split, runs = read_runs(paths)
    found = groups(runs)
    names = [group.name for group in found]
    title = " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} others"
    write_text(out, html.page(f"{title}: comparison", _body(split, runs, found)))
    return found


def _body(split: str, runs: Sequence[MeasuredRun], found: Sequence[Group]) -> Iterator[str]:
    yield _STYLE
    yield from _summary(split, found)
    yield from _curves(split, found)
    yield from _by_part(split, found)
    yield from _differences_of_errors(split, found)
    yield from _configurations(runs)
    yield from _origins(runs)


def _summary(split: str, found: Sequence[Group]) -> Iterator[str]:
    rows = []
    for group in found:
        mean, low, high = group.errors(None)
        ends = group.interval[:, -1] if len(group.runs) == 1 else (low, high)
        seconds = [run.summary.seconds for run in group.runs]
        known = [value for value in seconds if value is not None]
        best = [run.summary.best_px for run in group.runs if run.summary.best_px is not None]
        steps = [run.summary.step for run in group.runs]
        rows.append(
            [
                group.name,
                Fixed(mean),
                span(*ends),
                Fixed(group.medians(None)),
                Fixed(float(np.mean(best)) if best else float("nan")),
                " to ".join(dict.fromkeys(map(str, (min(steps), max(steps))))),
                duration(float(np.mean(known))) if known else "-",
            ]
        )
    head = ["run", f"{split} mean, px", "range", "median", "best validation", "steps", "time"]
    yield html.table(head, rows)
    several = any(len(group.runs) > 1 for group in found)
    yield html.note(
        f"Errors on {split}, image px. Range of one run: {LEVEL:.0%} interval of the mean, "
        f"bootstrap over frames ({RESAMPLES} resamples, seed {SEED})"
        + (
            "; of seeds: from the least to the greatest of their means. Runs that differ in "
            "RANDOM_SEED alone are one group, whose numbers are means over its seeds."
            if several
            else "."
        )
    )
    other = [group.name for group in found[1:] if not group.runs[0].same_data(found[0].runs[0])]
    if other:
        yield html.note(
            f"The {split} data differ: those of {', '.join(other)} are not those of "
            f"{found[0].name}. Their errors tell nothing of which network is the better."
        )


def _colour(number: int) -> tuple[str, str, str]:
    """Colour of a group, dashes of its line, and the same as a border."""
    dashes = _DASHES[number // len(_LIGHT) % len(_DASHES)]
    return f"var(--run{number % len(_LIGHT)})", *dashes


def _legend(found: Sequence[Group]) -> str:
    """Above the charts, where there is room for many names."""
    entries = []
    for number, group in enumerate(found):
        colour, _, border = _colour(number)
        entries.append(
            f'<span><i style="border-top:3px {border} {colour}"></i>{escape(group.name)}</span>'
        )
    return f'<div class="legend">{"".join(entries)}</div>'


def _curves(split: str, found: Sequence[Group]) -> Iterator[str]:
    yield html.heading("Curves")
    yield _legend(found)
    drawn = [
        _course(found, "val_error_mean_px", "Mean validation error"),
        _course(found, "val_error_median_px", "Median validation error"),
        _pck(split, found),
    ]
    yield charts([chart for chart in drawn if chart is not None], "20rem")
    if any(len(group.runs) > 1 for group in found):
        yield html.note("Band: from the least to the greatest of the seeds; line: their mean.")


def _course(found: Sequence[Group], key: str, title: str) -> Chart | None:
    """A column of the logs by step, a line for each group; None where nobody logged it."""
    courses = [_over_seeds(group, key) for group in found]
    values = np.concatenate([course[1].ravel() for course in courses])
    if not values.size:
        return None
    last = max(float(steps.max(initial=1)) for steps, _ in courses)
    chart = Chart(title, Axis(0.0, last, "step"), Axis.around(values, "error, image px"))
    for number, (steps, seeds) in enumerate(courses):
        if steps.size:
            _draw(chart, number, steps, seeds)
    return chart


def _over_seeds(group: Group, key: str) -> tuple[Floats, Floats]:
    """(steps,) where all seeds have the column, and (seeds, steps) its values."""
    columns = [dict(zip(*figures.column(run.log, key), strict=True)) for run in group.runs]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    values = [[column[step] for step in steps] for column in columns]
    return np.array(steps, float), np.array(values, float).reshape(len(columns), -1)


def _pck(split: str, found: Sequence[Group]) -> Chart:
    """Labels of all parts within a radius."""
    radii = np.linspace(0.0, _RADIUS, _RADII)
    chart = Chart(
        f"Labels within a radius, {split}",
        Axis(0.0, _RADIUS, "radius, image px"),
        Axis(0.0, 1.0, "share of labels", percent=True),
    )
    for number, group in enumerate(found):
        seeds = np.array([metrics.pck(run.distances, radii)[:, -1] for run in group.runs])
        _draw(chart, number, radii, seeds)
    return chart


def _draw(chart: Chart, number: int, x: Floats, seeds: Floats) -> None:
    """The mean of the seeds as a line, with a band where there are several."""
    colour, dash, _ = _colour(number)
    if len(seeds) > 1:
        chart.band(x, seeds.min(axis=0), seeds.max(axis=0), colour, "")
    chart.line(x, seeds.mean(axis=0), colour, dash=dash)


def _by_part(split: str, found: Sequence[Group]) -> Iterator[str]:
    yield html.heading(f"Error by part, {split}")
    parts = list(dict.fromkeys(part for group in found for part in group.runs[0].parts))
    named = [*zip(parts, parts, strict=True), ("all parts", None)]
    head = ["mean, px"]
    for group in found:
        head += [group.name, "range" if len(group.runs) > 1 else "interval"]
    yield html.table(
        head, [[name, *(c for g in found for c in _mean(g, part))] for name, part in named]
    )
    medians = [[name, *(_median(group, part) for group in found)] for name, part in named]
    yield html.table(["median, px", *(group.name for group in found)], medians)


def _has(group: Group, part: str | None) -> bool:
    return part is None or part in group.runs[0].parts


def _mean(group: Group, part: str | None) -> list[object]:
    """Mean and range of a part, or of all."""
    if not _has(group, part):
        return [Fixed(float("nan")), "-"]
    parts = group.runs[0].parts
    mean, low, high = group.errors(part)
    column = len(parts) if part is None else parts.index(part)
    ends = (low, high) if len(group.runs) > 1 else group.interval[:, column]
    return [Fixed(mean), span(*ends)]


def _median(group: Group, part: str | None) -> Fixed:
    return Fixed(group.medians(part) if _has(group, part) else float("nan"))


def _differences_of_errors(split: str, found: Sequence[Group]) -> Iterator[str]:
    base = found[0]
    if len(found) < 2:
        return
    yield html.heading(f"Paired differences to {base.name}")
    pairs = [(group, paired(group, base)) for group in found[1:]]
    for group, difference in pairs:
        yield f"<h3>{escape(group.name)}</h3>"
        if difference is None:
            yield html.note(
                f"The {split} data of {group.name} and {base.name} differ; nothing can be paired."
            )
            continue
        rows = [*base.runs[0].parts, "all parts"]
        yield html.beside(
            charts([_chart_of_differences(rows, difference)], "20rem"),
            html.table(
                ["part, px", "difference", "interval", ""],
                [
                    [name, Fixed(mean), span(low, high), _verdict(low, high)]
                    for name, mean, (low, high) in zip(
                        rows, difference.mean, difference.ends.T, strict=True
                    )
                ],
            ),
        )
    if not any(difference for _, difference in pairs):
        return
    seeds = any(len(group.runs) > 1 for group in found)
    yield html.note(
        f"Mean over the same labels of the error less that of {base.name}: below 0 is better. "
        f"{LEVEL:.0%} interval: bootstrap over frames ({RESAMPLES} resamples, seed {SEED}). It "
        "tells of these frames and these weights; how far another seed would be off, only seeds do."
        + (" Errors of a group are averaged over its seeds for each label." if seeds else "")
    )


def _verdict(low: float, high: float) -> str:
    if not np.isfinite(low + high):
        return ""
    return "better" if high < 0 else "worse" if low > 0 else "no clear difference"


def _chart_of_differences(rows: Sequence[str], difference: PairedDifference) -> Chart:
    reach = float(np.nanmax(np.abs(np.r_[difference.ends.ravel(), difference.mean, 0.01])))
    limit = Axis.around([reach], "", log=False).high
    chart = Chart(
        f"Difference, {LEVEL:.0%} interval",
        Axis(-limit, limit, "difference of the mean error, px"),
        Axis(0.0, len(rows), ""),
        size=(300, 26 * len(rows)),
        rows=rows,
        left=20 + round(6.3 * max(map(len, rows))),
    )
    chart.at(0.0, "var(--grey)", "")
    told = [
        f"{name}: {mean:+.2f} px, {low:+.2f} to {high:+.2f}"
        for name, mean, (low, high) in zip(rows, difference.mean, difference.ends.T, strict=True)
    ]
    chart.intervals(difference.mean, difference.ends, "var(--blue)", told, emphasis=len(rows) - 1)
    return chart


def _configurations(runs: Sequence[MeasuredRun]) -> Iterator[str]:
    yield html.heading("Differences of configuration")
    differing = differences([run.keys for run in runs])
    keys = list(differing[0])
    if not keys:
        yield html.note("None but the names of the runs.")
        return
    rows = [[key, *(shown(own[key], 60) for own in differing)] for key in keys]
    yield html.table(["key", *(run.name for run in runs)], rows)
    if any(ABSENT in own.values() for own in differing):
        yield html.note(f"{shown(ABSENT)}: without effect there, or not known to its version.")


def _origins(runs: Sequence[MeasuredRun]) -> Iterator[str]:
    yield html.heading("Where they come from")
    for run in runs:
        yield f"<h3>{escape(run.name)}</h3>"
        try:
            config = run.run.config()
            yield provenance.lines(Provenance.of(run.run, config).facts(config))
        except FasthgError as error:
            yield html.note(f"Unknown: {error}")
