"""What a mean error hides: how sure it is, what confidence says of it, and exchanged sides.

NumPy only. Distances are those of `metrics.errors`: NaN where unlabelled, inf where only the
prediction is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_DRAWS = 1 << 22
"""Draws held at a time."""


def bootstrap_mean(
    distances: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Floats:
    """Percentile interval of the mean error when whole clusters are drawn anew.

    Labels of one frame err together, so frames are resampled, not labels (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapters 8 and 13).

    Args:
        distances: (instances, parts) in any unit.
        clusters: (instances,) what is drawn as a whole, such as the frame of each instance.
        resamples, seed: number of resamples and of the generator.
        level: share of resampled means inside, 0..1.

    Returns:
        (2, parts + 1): lower and upper end for each part, then for all; NaN where fewer than two
        clusters have a label with a prediction.
    """
    values = np.asarray(distances, float)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    number = len(names)
    found = np.isfinite(values)
    totals, labels = np.zeros((2, number, values.shape[1] + 1))
    np.add.at(totals[:, :-1], cluster, np.where(found, values, 0.0))
    np.add.at(labels[:, :-1], cluster, found)
    totals[:, -1], labels[:, -1] = totals.sum(axis=1), labels.sum(axis=1)

    generator = np.random.default_rng(seed)
    means = np.full((resamples, totals.shape[1]), np.nan)
    at_once = max(1, _DRAWS // max(number, 1))
    for start in range(0, resamples if number else 0, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number) * 1.0
        count = times @ labels
        np.divide(times @ totals, count, out=means[start : start + rows], where=count > 0)
    ends = np.full((2, totals.shape[1]), np.nan)
    known = (labels > 0).sum(axis=0) >= 2
    tail = (1 - level) / 2
    if known.any():
        ends[:, known] = np.nanquantile(means[:, known], [tail, 1 - tail], axis=0)
    return ends


@dataclass(frozen=True)
class Calibration:
    """Errors by confidence, in bins of about as many labels each, the lowest confidence first.

    Attributes:
        edges: (bins + 1,) confidence.
        count: (bins,) labels with a confidence in the bin; its upper edge belongs to the next.
        quartiles: (3, bins) 25, 50 and 75 % of the errors; NaN where nothing was predicted.
        beyond: (bins,) share of labels farther off than the radius, or not predicted; 0..1.
    """

    edges: Floats
    count: Ints
    quartiles: Floats
    beyond: Floats


def calibration(
    distances: ArrayLike, confidence: ArrayLike, radius: float, bins: int = 10
) -> Calibration:
    """Whether a low confidence warns of a large error.

    Args:
        distances: (instances, parts).
        confidence: (instances, parts), such as the height of the heatmap's peak.
        radius: in the unit of the distances; an error on it is not beyond.
        bins: at most; equal confidences share one, so there may be fewer, or none without labels.
    """
    errors, score = np.asarray(distances, float).ravel(), np.asarray(confidence, float).ravel()
    used = ~np.isnan(errors) & np.isfinite(score)
    errors, score = errors[used], score[used]
    if errors.size == 0:
        return Calibration(np.zeros(1), np.zeros(0, np.int64), np.zeros((3, 0)), np.zeros(0))
    # An edge between two labels lies on the upper one.
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1), method="higher"))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    row = np.minimum(np.searchsorted(edges, score, side="right") - 1, len(edges) - 2)
    groups = [errors[row == number] for number in range(len(edges) - 1)]
    return Calibration(
        edges=edges,
        count=np.array([len(group) for group in groups]),
        quartiles=np.stack([_quartiles(group) for group in groups], axis=1),
        beyond=np.array([np.mean(group > radius) for group in groups]),
    )


def _quartiles(errors: Floats) -> Floats:
    finite = errors[np.isfinite(errors)]
    return np.percentile(finite, [25, 50, 75]) if finite.size else np.full(3, np.nan)


@dataclass(frozen=True)
class Exchange:
    """Exchanged sides of one pair (a, b), counted in instances.

    Attributes:
        judged: both parts are labelled and predicted.
        first: the predicted a lies nearer to the labelled b than to the labelled a.
        second: the predicted b lies nearer to the labelled a than to the labelled b.
        both: first and second at once; counted in these as well.
    """

    judged: int
    first: int
    second: int
    both: int


def exchanges(
    predictions: ArrayLike,
    labels: ArrayLike,
    visibility: ArrayLike,
    pairs: Sequence[Sequence[int]],
) -> list[Exchange]:
    """How often left is predicted where right is, for each pair of parts.

    Args:
        predictions, labels: (instances, parts, 2) x, y in image px; NaN where there is none.
        visibility: (instances, parts); 0 marks a part as unlabelled.
        pairs: two rows of parts each.
    """
    predicted, true = np.asarray(predictions, float), np.asarray(labels, float)
    known = (np.asarray(visibility) > 0) & np.isfinite(true + predicted).all(axis=2)

    def strays(part: int, other: int) -> NDArray[np.bool_]:
        to_own, to_other = (
            np.linalg.norm(predicted[:, part] - true[:, k], axis=1) for k in (part, other)
        )
        return known[:, part] & known[:, other] & (to_other < to_own)

    found = []
    for a, b in pairs:
        first, second = strays(a, b), strays(b, a)
        counts = ((known[:, a] & known[:, b]), first, second, first & second)
        found.append(Exchange(*(int(rows.sum()) for rows in counts)))
    return found


def histogram_of_oks(similarity: ArrayLike, bins: int = 20) -> tuple[Floats, Ints]:
    """Edges (bins + 1,) from 0 to 1 and the instances (bins,) in each bin; NaN is left out.

    similarity: (instances,) from `metrics.oks`. A value on an edge belongs to the bin above, 1 to
    the last.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    values = np.asarray(similarity, float)
    row = np.minimum(np.searchsorted(edges, values[~np.isnan(values)], side="right"), bins) - 1
    return edges, np.bincount(row, minlength=bins).astype(np.int64)
