"""Errors by film: which recording is hard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fasthg import html, metrics
from fasthg.data.convert.common import video_of
from fasthg.html import Fixed
from fasthg.report import calibration, figures
from fasthg.report.accuracy import LEVEL, RESAMPLES, SEED, Known, span
from fasthg.report.chart import charts
from fasthg.words import counted

SHOWN = 30
"""Films in the table, those with the largest errors."""


def film_of_row(known: Known) -> list[str]:
    """The film of each row of the predictions, by the frame's id; empty where it tells none."""
    index = known.evaluation.index
    return [
        video_of(index.image_id(int(record)))
        for record in index.record[known.evaluation.predictions.instance]
    ]


def by_film(known: Known) -> Iterator[str]:
    """Chart and table of the films' errors; nothing where the frames' ids tell fewer than two, or
    as many as there are frames."""
    films = np.array(film_of_row(known), dtype=object)
    names = [name for name in dict.fromkeys(films) if name]
    if len(names) < 2 or len(names) * 2 > known.frames:
        return
    frames = known.evaluation.index.record[known.evaluation.predictions.instance]
    found = []
    for name in names:
        rows = np.flatnonzero(films == name)
        distances = known.distances[rows]
        spread = metrics.spread(distances)
        if not spread.count:
            continue
        parts = [metrics.spread(column).mean for column in distances.T]
        ends = calibration.bootstrap_mean(
            distances, frames[rows], resamples=RESAMPLES, seed=SEED, level=LEVEL
        )[:, -1]
        worst = known.names[int(np.nanargmax(parts))]
        found.append((name, spread, ends, len(np.unique(frames[rows])), len(rows), worst))
    found.sort(key=lambda row: -row[1].mean)
    shown = found[:SHOWN]
    yield html.heading("Error by film")
    drawn = figures.errors(
        [name for name, *_ in shown],
        np.array([spread.mean for _, spread, *_ in shown]),
        np.array([ends for _, _, ends, *_ in shown]).T,
        "px",
        LEVEL,
        of_all=False,
    )
    rows_shown = [
        [
            *(name, Fixed(spread.mean), span(*ends), Fixed(spread.median), Fixed(spread.p90)),
            *(worst, number, animals),
        ]
        for name, spread, ends, number, animals, worst in shown
    ]
    head = ["film, px", "mean", "interval", "median", "90 %", "worst part", "frames", "animals"]
    yield html.beside(charts([drawn], "20rem"), html.table(head, rows_shown))
    more = f" {counted(len(found) - SHOWN, 'film')} with smaller errors left out." * (
        len(found) > SHOWN
    )
    yield html.note(
        "A film is the folder of a frame's name, or the name before its number. Intervals as "
        f"above, over the frames of one film.{more}"
    )
