"""The truth of a synthetic film: who is where in each frame, and when animals cross.

One CSV file, a row for each frame and animal, none where the animal is absent:

    frame,animal,class,x1,y1,x2,y2,<part>_x,<part>_y,<part>_v,...

Frames count from 0. Coordinates are px of the film in `geometry`'s frame (origin at the top left
corner of the top left pixel), boxes with x2, y2 exclusive. v: 0 outside the image, 1 covered by
another animal, 2 visible; parts outside have their coordinates as well. `fasthg predict --boxes`
takes the file as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import box_around
from fasthg.errors import DataError
from fasthg.geometry import box_iou

Float = npt.NDArray[np.float64]

CROSSING = 0.2
"""IoU of their boxes above which two animals cross."""

_FIRST = ("frame", "animal", "class", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Truth:
    """animals, classes: one name an animal; parts: names.

    boxes: (frames, animals, 4) float64 x1 y1 x2 y2, px. keypoints: (frames, animals, parts, 2)
    float64, px. Both NaN where an animal is absent. visibility: (frames, animals, parts) uint8,
    0 where it is absent or the part is outside, 1 covered, 2 visible.
    """

    animals: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]
    boxes: Float
    keypoints: Float
    visibility: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Crossing:
    """animals: numbers of the two; first, last: frames, both included."""

    animals: tuple[int, int]
    first: int
    last: int


def box_of(keypoints: Float, size: tuple[int, int]) -> Float:
    """The box of one animal, (4,) float64 x1 y1 x2 y2 in px; see `box_around`.

    keypoints: (parts, 2) px. size: width and height of the image. Parts outside count as on its
    border. NaN where all are outside: the animal is absent.
    """
    if not inside(keypoints, size).any():
        return np.full(4, np.nan)
    scale = np.array(size, np.float64)
    return box_around(keypoints / scale).astype(np.float64) * np.tile(scale, 2)


def inside(keypoints: Float, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(...,) whether points (..., 2) in px lie in an image of (width, height)."""
    within = (keypoints >= 0) & (keypoints < np.array(size))
    return np.asarray(within.all(axis=-1))


def header(parts: Sequence[str]) -> str:
    """The first line."""
    return ",".join([*_FIRST, *(f"{part}_{axis}" for part in parts for axis in "xyv")]) + "\n"


def row(
    frame: int,
    animal: str,
    kind: str,
    box: Float,
    keypoints: Float,
    visibility: npt.NDArray[np.uint8],
) -> str:
    """The line of an animal; kind: its class. Shapes as in `Truth`, of one animal."""
    parts = (f"{x:.3f},{y:.3f},{v}" for (x, y), v in zip(keypoints, visibility, strict=True))
    return ",".join([str(frame), animal, kind, *(f"{edge:.3f}" for edge in box), *parts]) + "\n"


def read_truth(path: Path, frames: int | None = None) -> Truth:
    """Read what `row` wrote; animals in the order of their names.

    frames: of the film, where the last ones may be without animals; default: up to the last row.

    Raises:
        DataError: the file cannot be read, a column is missing or a value is no number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise DataError(f"{path}: {reason}; check the path") from None
    lines = csv.reader(text.splitlines())
    columns = tuple(next(lines, ()))
    parts = tuple(name.removesuffix("_x") for name in columns[len(_FIRST) :: 3])
    if columns != tuple(header(parts).rstrip("\n").split(",")):
        raise DataError(f"{path}: not the columns of a film's truth; render the film again")
    rows = []
    for line in lines:
        try:
            if len(line) != len(columns):
                raise ValueError
            rows.append((int(line[0]), line[1], line[2], [float(value) for value in line[3:]]))
        except ValueError:
            raise DataError(
                f"{path}:{lines.line_num}: not {len(columns)} values of a film's truth; "
                "render the film again"
            ) from None
    kinds = dict(sorted((animal, kind) for _, animal, kind, _ in rows))
    numbers = {animal: number for number, animal in enumerate(kinds)}
    last = max((frame for frame, *_ in rows), default=-1)
    shape = (max(last + 1, frames or 0), len(kinds))
    boxes = np.full((*shape, 4), np.nan)
    points = np.full((*shape, len(parts), 3), np.nan)
    for frame, animal, _, values in rows:
        at = frame, numbers[animal]
        boxes[at] = values[:4]
        points[at] = np.reshape(values[4:], (len(parts), 3))
    visibility = np.nan_to_num(points[..., 2]).astype(np.uint8)
    return Truth(
        tuple(kinds), tuple(kinds.values()), parts, boxes, points[..., :2].copy(), visibility
    )


def crossings(boxes: Float, threshold: float = CROSSING, gap: int = 5) -> list[Crossing]:
    """When the boxes of two animals overlap, ordered by first frame.

    boxes: (frames, animals, 4), as in `Truth`. threshold: IoU above which two animals cross.
    gap: crossings of one pair with at most this number of frames between them are one.
    """
    found = []
    for pair in combinations(range(boxes.shape[1]), 2):
        with np.errstate(invalid="ignore"):
            cross = box_iou(boxes[:, pair[0]], boxes[:, pair[1]]) > threshold
        found += [Crossing(pair, first, last) for first, last in _runs(cross, gap)]
    return sorted(found, key=lambda crossing: (crossing.first, crossing.animals))


def _runs(flags: npt.NDArray[np.bool_], gap: int) -> Iterator[tuple[int, int]]:
    """First and last index of each run of True; runs at most `gap` apart are joined."""
    places = np.flatnonzero(flags)
    if not len(places):
        return
    ends = np.flatnonzero(np.diff(places) > gap + 1)
    firsts = places[np.concatenate([[0], ends + 1])]
    lasts = places[np.concatenate([ends, [len(places) - 1]])]
    yield from zip(firsts.tolist(), lasts.tolist(), strict=True)
