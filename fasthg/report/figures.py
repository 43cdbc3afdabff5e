"""The report's charts, each from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fasthg import metrics
from fasthg.report.calibration import Calibration, Floats, Ints
from fasthg.report.chart import BLUE, GREEN, GREY, ORANGE, Axis, Chart
from fasthg.report.human import Human

_POINTS = 400  # of a training curve
_RADII = 81  # of a PCK curve
_NAME = 26  # letters of a row's name
_ACROSS = 300  # px of rows of intervals; wider, a phone would show their text too small


def training(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss, learning rate and validation error by step, those of them that were logged."""
    steps = max((row["step"] for row in rows if "step" in row), default=0)
    along = Axis(0.0, float(max(steps, 1)), "step")
    found = []
    step, loss = column(rows, "loss")
    val_step, val_loss = column(rows, "val_loss")
    if step.size:
        # The sum over stacks, as logged; it falls by decades.
        chart = Chart("Loss", along, Axis.around(np.r_[loss, val_loss], "loss, all stacks"))
        x, middle, low, high = thinned(step, loss)
        if step.size > x.size:
            chart.band(x, low, high, BLUE, "least to greatest")
        chart.line(x, middle, BLUE, "training")
        chart.line(val_step, val_loss, ORANGE, "validation")
        found.append(chart)
    step, mean = column(rows, "val_error_mean_px")
    if step.size:
        at, median = column(rows, "val_error_median_px")
        axis = Axis.around(np.r_[mean, median], "error, image px")
        chart = Chart("Validation error", along, axis)
        chart.line(step, mean, ORANGE, "mean")
        chart.line(at, median, BLUE, "median")
        chart.at(float(step[np.argmin(mean)]), GREY, "best weights")
        found.append(chart)
    step, rate = column(rows, "learning_rate")
    if step.size:
        chart = Chart("Learning rate", along, Axis.around(rate, "learning rate, a step", log=False))
        x, middle, *_ = thinned(step, rate)
        chart.line(x, middle, GREEN)
        found.append(chart)
    return found


def column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Floats, Floats]:
    """(rows,) steps and (rows,) numbers of those rows that have the key; null is left out."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, values


def thinned(
    steps: Floats, values: Floats, points: int = _POINTS
) -> tuple[Floats, Floats, Floats, Floats]:
    """Step, mean, least and greatest value, (points,) each, of runs of neighbouring rows."""
    starts = np.unique(
        np.linspace(0, len(steps), min(points, len(steps)), endpoint=False, dtype=int)
    )
    count = np.diff(np.r_[starts, len(steps)])
    return (
        np.add.reduceat(steps, starts) / count,
        np.add.reduceat(values, starts) / count,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def errors(
    names: Sequence[str],
    means: Floats,
    ends: Floats,
    unit: str,
    level: float,
    *,
    of_all: bool = True,
) -> Chart:
    """Mean error and interval of each part, and of all, whose means are (parts + 1,).

    of_all: False for rows without one of all.
    """
    rows = [*names, "all parts"] if of_all else list(names)
    told = [
        f"{name}: {mean:.2f} {unit}, {level:.0%} interval {low:.2f} to {high:.2f}"
        for name, mean, low, high in zip(rows, means, *ends, strict=True)
    ]
    most = Axis.around(np.r_[means, ends[1]], f"mean error, {unit}", log=False)
    # Long names are cut at their beginning: ends of paths differ.
    rows = [name if len(name) <= _NAME else f"…{name[1 - _NAME :]}" for name in rows]
    left = 20 + round(6.3 * max(map(len, rows)))
    height = 26 * len(rows)
    chart = Chart(
        f"Mean error, {level:.0%} interval",
        most,
        Axis(0.0, len(rows), ""),
        size=(_ACROSS, height),
        rows=rows,
        left=left,
    )
    chart.intervals(means, ends, BLUE, told, emphasis=len(names) if of_all else -1)
    return chart


def pck(names: Sequence[str], distances: Floats, limit: float, human: Human | None) -> list[Chart]:
    """PCK over the radius for all parts, then for each; with the band of people where known."""
    radii = np.linspace(0.0, limit, _RADII)
    shares = metrics.pck(distances, radii)
    found = []
    for row, name in [(len(names), "all parts"), *enumerate(names)]:
        across = Axis(0.0, limit, "radius, image px")
        chart = Chart(name, across, Axis(0.0, 1.0, "share of labels", percent=True), (250, 150))
        band = human.band(name if row < len(names) else None) if human else None
        if human is not None and band is not None:
            inside = human.radii <= limit
            low, middle, high = band[:, inside]
            chart.band(human.radii[inside], low, high, ORANGE, "people")
            chart.line(human.radii[inside], middle, ORANGE, dash="4 3")
        chart.line(radii, shares[:, row], BLUE, "network" if band is not None else "")
        found.append(chart)
    return found


def oks(rule: str, edges: Floats, counts: Ints) -> Chart:
    """How many animals reach which similarity, under one area rule."""
    told = [
        f"OKS {low:.2f} to {high:.2f}: {count}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    most = Axis.around(counts, "animals", log=False)
    chart = Chart(f"OKS by {rule}", Axis(0.0, 1.0, "OKS"), most)
    chart.bars(edges, counts, BLUE, told)
    return chart


def confidence(found: Calibration, radius: float) -> list[Chart]:
    """Quartiles of the error, and the share beyond the radius, by the height of the peak."""
    across = Axis(*_range(found.edges), "height of the heatmap's peak")
    middle = (found.edges[1:] + found.edges[:-1]) / 2
    quartiles = Chart(
        "Error by confidence", across, Axis.around(found.quartiles, "error, image px")
    )
    quartiles.band(middle, found.quartiles[0], found.quartiles[2], BLUE, "25 to 75 %")
    quartiles.line(middle, found.quartiles[1], BLUE, "median")
    told = [
        f"{low:.2f} to {high:.2f}: {share:.1%} of {count} labels"
        for low, high, share, count in zip(
            found.edges[:-1], found.edges[1:], found.beyond, found.count, strict=True
        )
    ]
    most = Axis.around(found.beyond, "", log=False).high
    upward = Axis(0.0, min(most, 1.0), "share of labels", percent=True)
    beyond = Chart(f"Errors above {radius:g} px", across, upward)
    beyond.bars(found.edges, found.beyond, ORANGE, told)
    return [quartiles, beyond]


def _range(edges: Floats) -> tuple[float, float]:
    low, high = float(edges[0]), float(edges[-1])
    return (low, high) if high > low else (low - 0.5, high + 0.5)
