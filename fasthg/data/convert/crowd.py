"""Labels of several workers merged: left/right swaps are repaired, then the median is taken."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def repair_swaps(workers: Array, pairs: Sequence[tuple[int, int]]) -> tuple[Array, int]:
    """Exchange a worker's left and right part where that agrees better with the other workers.

    workers: (workers, parts, 2), any unit, NaN where a worker left a part out; pairs: indices of
    parts. For a worker, keeping a pair costs the distances of the two points to the medians of the
    other workers' points, exchanging it the distances to the opposite medians. The worker who gains
    most is exchanged first, and medians are taken anew, until nobody gains: so two wrong workers of
    five do not pull the right ones over. Each worker is exchanged at most once a pair. Fewer than
    three workers who labelled both parts cannot outvote anybody: their labels stay.

    Returns a repaired copy and the number of exchanges.
    """
    workers = workers.copy()
    swaps = 0
    for pair in pairs:
        both = np.flatnonzero(np.isfinite(workers[:, list(pair)]).all(axis=(1, 2)))
        if len(both) < 3:
            continue
        points = workers[both][:, list(pair)]
        untouched = np.ones(len(both), bool)
        while True:
            gain = np.where(untouched, _gain(points), 0)
            best = int(gain.argmax())
            if gain[best] <= 1e-9:
                break
            points[best] = points[best, ::-1]
            untouched[best] = False
            swaps += 1
        workers[both[:, None], list(pair)] = points
    return workers, swaps


def _gain(points: Array) -> Array:
    """How much each worker's exchange would shorten its distances; points (workers, 2, 2)."""
    count = len(points)
    others = points[(np.arange(count)[:, None] + np.arange(1, count)) % count]
    medians = np.median(others, axis=1)
    keep = np.hypot(*np.moveaxis(points - medians, -1, 0)).sum(axis=1)
    exchange = np.hypot(*np.moveaxis(points[:, ::-1] - medians, -1, 0)).sum(axis=1)
    return np.asarray(keep - exchange)


def consensus(workers: Array) -> Array:
    """Median over workers by coordinate: (workers, parts, 2) to (parts, 2), NaN where nobody
    labelled a part."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.asarray(np.nanmedian(workers, axis=0))
