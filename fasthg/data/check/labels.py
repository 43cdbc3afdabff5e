"""Checks of labels: boxes, parts and areas that are possible but doubtful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fasthg.data.check.problems import (
    BOX_OUTSIDE,
    IDENTICAL,
    OUTSIDE_BOX,
    OUTSIDE_IMAGE,
    SWAPPED,
    TINY,
    UNLABELLED,
    WRONG_AREA,
    Problem,
)
from fasthg.data.index.record_index import RecordIndex

_TINY_PX = 16
_TOLERANCE_PX = 1.0
_SAME_PX = 0.5
# An animal covers part of the square around it; other units are off by orders of magnitude. A mask
# may reach beyond a box that is tight around parts on one line.
_AREA_SHARES = (0.01, 4.0)
# A pair's order counts as known where this share of the animals agrees, and as contradicted where
# the angle is clear: views from the side have no order to check.
_AGREEMENT = 0.8
_CLEAR = 0.3


def doubtful(
    index: RecordIndex, split: str, names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> Iterator[Problem]:
    """Problems of every animal's labels; names and pairs (indices of parts) as in PARTS."""
    yield from _outside(index, split, names)
    yield from _boxes(index, split)
    yield from _areas(index, split)
    yield from _identical(index, split, names, pairs)
    yield from _swapped(index, split, names, pairs)


def _size(index: RecordIndex) -> np.ndarray:
    """(instances, 2) width and height of each animal's image, px."""
    return np.stack([index.width, index.height], axis=1)[index.record].astype(np.float32)


def _problem(
    kind: str,
    index: RecordIndex,
    split: str,
    instance: int,
    detail: str,
    parts: tuple[int, ...] = (),
    weight: float = 0.0,
) -> Problem:
    record = int(index.record[instance])
    return Problem(kind, split, index.describe(instance), detail, record, instance, parts, weight)


def _beyond(index: RecordIndex, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(instances, parts) px by which a part lies outside of low..high, (instances, 2) px; NaN where
    it is unlabelled."""
    points = index.keypoints
    return np.maximum(low[:, None] - points, points - high[:, None]).max(axis=2)


def _outside(index: RecordIndex, split: str, names: Sequence[str]) -> Iterator[Problem]:
    size = _size(index)
    box = index.bbox * np.tile(size, 2)
    points = index.keypoints
    off_image = _beyond(index, np.zeros_like(size), size)
    off_box = _beyond(index, box[:, :2], box[:, 2:])
    # NaN fails both comparisons: unlabelled parts are outside of nothing.
    outside = off_image > _TOLERANCE_PX
    for kind, px, flagged in (
        (OUTSIDE_IMAGE, off_image, outside),
        (OUTSIDE_BOX, off_box, (off_box > _TOLERANCE_PX) & ~outside),
    ):
        for instance in np.flatnonzero(flagged.any(axis=1)).tolist():
            parts = np.flatnonzero(flagged[instance]).tolist()
            x, y = points[instance, :, 0], points[instance, :, 1]
            detail = ", ".join(f"{names[p]} at {x[p]:.0f},{y[p]:.0f}" for p in parts)
            weight = float(px[instance][flagged[instance]].max())
            yield _problem(kind, index, split, instance, detail, tuple(parts), weight)


def _boxes(index: RecordIndex, split: str) -> Iterator[Problem]:
    size = _size(index)
    box = index.bbox * np.tile(size, 2)
    margin = _TOLERANCE_PX
    beyond = ((box < -margin) | (box > np.tile(size, 2) + margin)).any(axis=1)
    longer = (box[:, 2:] - box[:, :2]).max(axis=1)
    empty = (index.visibility == 0).all(axis=1)
    for kind, flags in ((BOX_OUTSIDE, beyond), (TINY, longer < _TINY_PX), (UNLABELLED, empty)):
        for instance in np.flatnonzero(flags).tolist():
            edges = " ".join(f"{edge:.0f}" for edge in box[instance])
            yield _problem(kind, index, split, instance, f"box {edges} px")


def _areas(index: RecordIndex, split: str) -> Iterator[Problem]:
    size = _size(index)
    longer = ((index.bbox[:, 2:] - index.bbox[:, :2]) * size).max(axis=1)
    share = index.area / np.maximum(longer**2, 1e-6)
    low, high = _AREA_SHARES
    for instance in np.flatnonzero((share < low) | (share > high)).tolist():
        detail = (
            f"{index.area[instance]:.4g} px² in a square of {longer[instance]:.0f} px a side; "
            "areas are px², or shares of the image"
        )
        weight = abs(float(np.log(max(share[instance], 1e-9))))
        yield _problem(WRONG_AREA, index, split, instance, detail, weight=weight)


def _identical(
    index: RecordIndex, split: str, names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> Iterator[Problem]:
    for first, second in pairs:
        apart = index.keypoints[:, first] - index.keypoints[:, second]
        distance = np.hypot(apart[:, 0], apart[:, 1])
        for instance in np.flatnonzero(distance <= _SAME_PX).tolist():
            x, y = index.keypoints[instance, first]
            detail = f"{names[first]} and {names[second]} at {x:.1f},{y:.1f}"
            yield _problem(IDENTICAL, index, split, instance, detail, (first, second))


def _swapped(
    index: RecordIndex, split: str, names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> Iterator[Problem]:
    """Animals whose left lies on the other side than in most others.

    Seen from above, the turn from (first part - second part) to (a part on the midline - the pair's
    middle) has the same sense in every animal; the part on the midline that is farthest from the
    pair is used. Sense and clarity are those of the sine between the two vectors.
    """
    paired = {part for pair in pairs for part in pair}
    middle = [part for part in range(index.num_parts) if part not in paired]
    # A part outside the image is wrong by itself, and says nothing of the others.
    beyond = _beyond(index, np.zeros((len(index), 2)), _size(index)) > _TOLERANCE_PX
    keypoints = np.where(beyond[..., None], np.nan, index.keypoints)
    for first, second in pairs:
        across = keypoints[:, first] - keypoints[:, second]
        centre = (keypoints[:, first] + keypoints[:, second]) / 2
        along = keypoints[:, middle] - centre[:, None]
        lengths = np.hypot(along[..., 0], along[..., 1])
        seen = np.isfinite(across).all(axis=1)
        labelled = np.isfinite(lengths[seen])
        if not labelled.any():
            continue
        # Where parts are seldom labelled, the one that says most often where the animal points.
        reach = np.where(labelled, lengths[seen], 0).sum(axis=0)
        far = int(reach.argmax())
        along, length = along[:, far], lengths[:, far]
        cross = across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]
        sine = cross / np.maximum(np.hypot(across[:, 0], across[:, 1]) * length, 1e-6)
        sense = 1.0 if (sine > 0).sum() >= (sine < 0).sum() else -1.0
        if (sine * sense > 0).sum() < _AGREEMENT * np.isfinite(sine).sum():
            continue
        for instance in np.flatnonzero(sine * sense < -_CLEAR).tolist():
            weight = float(-sine[instance] * sense)
            pair = f"{names[first]} and {names[second]}"
            yield _problem(SWAPPED, index, split, instance, pair, (first, second), weight)
