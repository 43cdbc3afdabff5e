"""The least sure frames of a film on one sheet: what to look at before its poses are trusted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg import geometry
from fasthg.drawing.crops import sheet, square_crop
from fasthg.drawing.marks import DISC, RING, WHITE, Mark, bgr, draw_line, draw_marks
from fasthg.files import write_bytes
from fasthg.inference.video.frame import Frame, Source
from fasthg.inference.video.painter import Style, animal_sizes, caption, typical_sizes
from fasthg.inference.video.row_store import Rows

Floats = NDArray[np.float64]

COUNT = 20
"""Frames on a sheet."""
_COLUMNS = 5
_SIDE, _RADIUS, _MARGIN = 300, 4.5, 0.35  # px, px, share of the animal about it
_STILL = 0.1  # of an animal's length, a jump that is none
_SPREAD = 2  # frames chosen are apart by the film's length / (_SPREAD * their number)


@dataclass(frozen=True)
class Doubt:
    """An animal in a frame whose pose may be wrong."""

    frame: int
    animal: int
    score: float
    """Mean score of its parts."""
    jump: float
    """Farthest that a part is from the middle of its places in the frames before and after, as a
    share of the animal's length; NaN where one of them is missing."""
    by_jump: bool
    """Whether it was chosen for its jump."""


def write_contact_sheet(
    source: Source, rows: Rows, path: Path, style: Style, count: int = COUNT
) -> bool:
    """Write a PNG of the `count` least sure poses of a source, and say whether there are any.

    The source is read once more, up to the last of them.

    Raises:
        FasthgError: the file cannot be written.
    """
    chosen = {doubt.frame: doubt for doubt in least_sure(rows, count)}
    if not chosen:
        return False
    usual = np.nan_to_num(typical_sizes(animal_sizes(rows.keypoints, rows.boxes)))
    pictures: dict[int, tuple[NDArray[np.uint8], str]] = {}
    with closing(source.frames(rows.skipped)) as frames:  # type: ignore[type-var]
        for frame in frames:
            doubt = chosen.get(frame.number)
            if doubt is not None and frame.image is not None:
                crop = _crop(frame, doubt, rows, style, float(usual[doubt.animal]))
                pictures[frame.number] = (crop[..., ::-1], _told(frame, doubt, rows))
            if frame.number >= max(chosen):
                break
    why = "a low mean score" if rows.names else "a low mean score and for a jump, apart in time"
    head = [
        f"{rows.source.name}: the {len(pictures)} least sure poses of "
        f"{len(rows) - rows.skipped} frames",
        f"Chosen for {why}. Disc: score of {style.confidence:g} and more; ring: less.",
    ]
    cells = [pictures[number] for number in sorted(pictures)]
    picture = sheet(cells, _COLUMNS, head, style.parts, style.colours)
    write_bytes(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    return True


def least_sure(rows: Rows, count: int) -> list[Doubt]:
    """Poses with the lowest mean scores, and those that jump farthest, in turn; the first is first.

    Frames are apart by a share of the film's length, by less only where there are too few.
    """
    known = np.isfinite(rows.keypoints.sum(axis=3))
    there = known.sum(axis=2) > 0
    total = np.where(known, rows.scores, 0.0).sum(axis=2)
    scores = np.where(there, total / np.maximum(known.sum(axis=2), 1), np.inf)
    jumps = _jumps(rows)
    orders = [
        np.argsort(scores, axis=None, kind="stable")[: int(there.sum())],
        np.argsort(-np.nan_to_num(jumps), axis=None, kind="stable")[: int((jumps > _STILL).sum())],
    ]
    found: list[Doubt] = []
    gap = max(1, len(rows) // max(1, _SPREAD * count))
    while True:
        _choose(found, orders, scores, jumps, count, gap)
        if len(found) >= count or gap == 1:
            return found
        gap = max(1, gap // 2)


def _choose(
    found: list[Doubt],
    orders: list[NDArray[np.intp]],
    scores: Floats,
    jumps: Floats,
    count: int,
    gap: int,
) -> None:
    """Add to `found` from both orders in turn what is at least `gap` frames from all there."""
    animals = scores.shape[1]
    taken = np.zeros(len(scores), bool)
    for doubt in found:
        taken[max(0, doubt.frame - gap + 1) : doubt.frame + gap] = True
    nexts = [iter(order.tolist()) for order in orders]
    turn, over = len(found) % 2, [False, False]
    while len(found) < count and not all(over):
        for place in nexts[turn]:
            frame, animal = divmod(place, animals)
            if not taken[frame]:
                score, jump = float(scores[frame, animal]), float(jumps[frame, animal])
                found.append(Doubt(frame, animal, score, jump, by_jump=turn == 1))
                taken[max(0, frame - gap + 1) : frame + gap] = True
                break
        else:
            over[turn] = True
        turn = 1 - turn


def _jumps(rows: Rows) -> Floats:
    """(frames, animals) as `Doubt.jump`."""
    points = rows.keypoints
    jumps = np.full(points.shape[:2], np.nan)
    if rows.names or len(points) < 3:
        return jumps  # images follow no order in time
    off = points[1:-1] - (points[:-2] + points[2:]) / 2
    apart = np.hypot(off[..., 0], off[..., 1])
    farthest = np.where(np.isfinite(apart), apart, -np.inf).max(axis=2)
    farthest[np.isinf(farthest)] = np.nan
    jumps[1:-1] = farthest / typical_sizes(animal_sizes(points, rows.boxes))
    return jumps


def _told(frame: Frame, doubt: Doubt, rows: Rows) -> str:
    words = [caption(frame), f"score {doubt.score:.2f}"]
    if doubt.by_jump:
        words.append(f"jump {doubt.jump:.2f} lengths")
    if len(rows.animals) > 1:
        words.append(rows.animals[doubt.animal])
    return ", ".join(words)


def _crop(frame: Frame, doubt: Doubt, rows: Rows, style: Style, size: float) -> NDArray[np.uint8]:
    """The animal with its parts, BGR uint8 (_SIDE, _SIDE, 3). size: what is shown at least, px."""
    points = rows.keypoints[doubt.frame, doubt.animal]
    known = points[np.isfinite(points.sum(axis=1))]
    low, high = known.min(axis=0), known.max(axis=0)
    # A pose that has shrunk shows best at the animal's usual size.
    more = max(0.0, size - float((high - low).max())) / 2
    box = [*(low - more).tolist(), *(high + more).tolist()]
    assert frame.image is not None
    crop, to_crop = square_crop(frame.image, box, _MARGIN, _SIDE)
    shown = geometry.apply(points, to_crop)
    sure = rows.scores[doubt.frame, doubt.animal] >= style.confidence
    for a, b in style.skeleton:
        if sure[a] and sure[b]:
            draw_line(crop, shown[[a, b]], WHITE)
    marks = [
        Mark(DISC if solid else RING, x, y, bgr(rgb), _RADIUS)
        for (x, y), solid, rgb in zip(shown.tolist(), sure, style.colours, strict=True)
    ]
    draw_marks(crop, marks)
    return np.asarray(crop, np.uint8)
