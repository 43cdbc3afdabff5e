"""How doubtful the poses of each frame are, from the poses of films alone.

A measure is first, for each part, by how many robust standard deviations (1.4826 times the median
absolute deviation) it exceeds the median; a frame has that of its most doubtful animal. From that
comes the surprise: -ln of the share of all frames that are at least as doubtful. A frame's doubt is
the sum of the surprises of its measures, as in Fisher's method of combining tests. Where deviations
are added, measures with long tails, such as jumps, drown the others; where ranks are added, one
very rare value counts for little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import minimum_spanning_tree

from fasthg.inference.video.row_store import Rows

Array = npt.NDArray[np.float64]

SCORE, MISSING, JUMP, SHAPE, UNSTABLE = "score", "missing", "jump", "shape", "unstable"
REASONS = (SCORE, MISSING, JUMP, SHAPE, UNSTABLE)
WORST = 0.25
"""Share of the parts, the most doubtful ones, whose mean is that of a pose: one leg is enough."""
SCORE_FLOOR = 0.05
"""Least standard deviation of a score, so that a film of sure poses has no doubtful ones."""
JUMP_FLOOR = 0.02
"""The same for a part's jump, in body lengths."""
SHAPE_FLOOR = 0.1
"""The same for the logarithm of the distance between two parts."""
ABSENT = 5.0
"""Seconds after which a missing animal may have left the picture."""
ABSENT_SHARE = 0.25
"""Share of the doubt that remains of a missing animal then."""


@dataclass(frozen=True)
class Doubts:
    """Doubts of a film's frames, each from 0 to the logarithm of the number of all frames."""

    measures: dict[str, Array]
    """Reason -> (frames,)."""
    places: dict[str, list[str]]
    """Reason -> what it is about in each frame: the part, bone or animal."""

    def total(self) -> Array:
        """(frames,) the sum of the measures."""
        total: Array = np.sum(list(self.measures.values()), axis=0)
        return total

    def reason(self, frame: int) -> tuple[str, str]:
        """The strongest reason of a frame, and what it is about; empty without any."""
        name = max(self.measures, key=lambda each: self.measures[each][frame])
        if self.measures[name][frame] <= 0:
            return "", ""
        return name, self.places[name][frame]


def robust(values: Array, usual: Array, floor: float) -> Array:
    """By how many robust standard deviations `values` exceed the median of `usual`, from 0.

    values: (..., parts). usual: (n, parts), NaN where nothing is known. floor: least deviation.
    What is NaN, or a column without usual values, gives 0.
    """
    known = np.isfinite(usual).any(axis=0)
    filled = np.where(known, usual, 0.0)
    median = np.nanmedian(filled, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(filled - median), axis=0)
    above = (values - median) / np.maximum(spread, floor)
    return np.where(known, np.nan_to_num(above).clip(0), 0.0)


def worst(doubts: Array) -> Array:
    """Of poses, (..., parts) doubts: the mean of the most doubtful quarter of the parts, (...)."""
    count = max(1, round(WORST * doubts.shape[-1]))
    found: Array = np.sort(doubts, axis=-1)[..., -count:].mean(axis=-1)
    return found


def body_length(rows: Rows) -> float:
    """Median root of the animals' boxes' areas in a film, px; 1 without any animal."""
    sides = rows.boxes[..., 2:] - rows.boxes[..., :2]
    lengths = np.sqrt(np.prod(sides, axis=-1))
    return float(np.nanmedian(lengths)) if np.isfinite(lengths).any() else 1.0


def doubts(films: Sequence[Rows]) -> list[Doubts]:
    """Doubts of the poses of films, all of the same animals and parts.

    Scores are compared with those of all films, so that a film in which they are low has many
    doubtful frames; motion and shape with their own film's, as frame rates and cameras differ.
    """
    scores = np.concatenate([rows.scores.reshape(-1, len(rows.parts)) for rows in films])
    usual = 1 - scores.astype(np.float64)
    found = [_of_film(rows, usual) for rows in films]
    ends = np.cumsum([len(rows) for rows in films])[:-1]
    for name in found[0].measures:
        joined = surprise(np.concatenate([each.measures[name] for each in found]))
        for each, own in zip(found, np.split(joined, ends), strict=True):
            each.measures[name] = own
    return found


def surprise(values: Array) -> Array:
    """(n,) -ln of the share of the values that are at least as great as each."""
    ordered = np.sort(values)
    shares = 1 - np.searchsorted(ordered, values, side="left") / max(len(values), 1)
    found: Array = -np.log(shares)
    return found


def _of_film(rows: Rows, usual: Array) -> Doubts:
    """The measures in robust standard deviations."""
    parts, animals = rows.parts, rows.animals
    several = len(animals) > 1

    def named(values: Array, names: Sequence[str]) -> list[str]:
        """The most doubtful entry of (frames, animals, names)."""
        flat = values.reshape(len(values), -1).argmax(axis=1)
        return [
            f"{names[i % len(names)]}{f' of {animals[i // len(names)]}' if several else ''}"
            for i in flat.tolist()
        ]

    by_score = robust(1 - rows.scores.astype(np.float64), usual, SCORE_FLOOR)
    by_jump = _jumps(rows)
    by_shape, bones = _shapes(rows)
    by_missing = _missing(rows)
    names = [f"{parts[a]}-{parts[b]}" for a, b in bones] or [""]
    measures = {
        SCORE: worst(by_score).max(axis=1),
        MISSING: by_missing.max(axis=1),
        JUMP: worst(by_jump).max(axis=1),
        SHAPE: worst(by_shape).max(axis=1),
    }
    places = {
        SCORE: named(by_score, parts),
        MISSING: [animals[i] for i in by_missing.argmax(axis=1).tolist()],
        JUMP: named(by_jump, parts),
        SHAPE: named(by_shape, names),
    }
    return Doubts(measures, places)


def _jumps(rows: Rows) -> Array:
    """(frames, animals, parts): how far a part is from the middle between the frames around it.

    That tells the frame of a jump there and back from its neighbours, and leaves steady motion out.
    Beside a gap nothing is known.
    """
    points = rows.keypoints
    nothing = np.full_like(points[:1], np.nan)
    before = np.concatenate([nothing, points[:-1]])
    after = np.concatenate([points[1:], nothing])
    length = body_length(rows)
    far: Array = np.hypot(*np.moveaxis(points - (before + after) / 2, -1, 0)) / length
    usual = far.reshape(-1, far.shape[-1])
    return robust(far, usual, JUMP_FLOOR)


def _shapes(rows: Rows) -> tuple[Array, list[tuple[int, int]]]:
    """(frames, animals, bones): how unusual the distances between parts are, and these bones.

    Bones are the pairs of parts whose distance varies least, as many as join all parts: the minimum
    spanning tree of the spread of the logarithm of the distance.
    """
    points = rows.keypoints
    parts = points.shape[2]
    if parts < 2 or not np.isfinite(points).any():
        return np.zeros((*points.shape[:2], 1)), []
    first, second = np.triu_indices(parts, 1)
    apart = np.hypot(*np.moveaxis(points[:, :, first] - points[:, :, second], -1, 0))
    # A pixel more: parts that lie on one another have no shape.
    logs = np.log(apart + 1)
    usual = logs.reshape(-1, len(first))
    median = np.nanmedian(usual, axis=0)
    spread = np.nanmedian(np.abs(usual - median), axis=0)
    weights = np.zeros((parts, parts))
    weights[first, second] = spread + 1e-6  # zero is no edge
    chosen = minimum_spanning_tree(weights).toarray() > 0
    bones = np.flatnonzero(chosen[first, second])
    # Too short is as unusual as too long.
    deviation = np.abs(logs - median)[..., bones]
    deviations = deviation.reshape(-1, len(bones))
    found = robust(deviation, deviations, SHAPE_FLOOR)
    return found, list(zip(first[bones].tolist(), second[bones].tolist(), strict=True))


def _missing(rows: Rows) -> Array:
    """(frames, animals): 1 for an animal without a row in a frame that could be decoded.

    In gaps longer than ABSENT, where the animal may not be in the picture, it is less.
    """
    there: npt.NDArray[np.bool_] = np.all(np.isfinite(rows.keypoints), axis=(2, 3))
    decoded = rows.sizes[:, 0] > 0
    found = np.where(there | ~decoded[:, None], 0.0, 1.0)
    times = np.where(np.isfinite(rows.times), rows.times, np.arange(len(rows)))
    for animal in range(there.shape[1]):
        seen = np.flatnonzero(there[:, animal])
        edges = np.concatenate([[-1], seen, [len(rows)]])
        for start, end in zip(edges[:-1] + 1, edges[1:], strict=True):
            if end > start and times[end - 1] - times[start] > ABSENT:
                found[start:end, animal] *= ABSENT_SHARE
    return found
