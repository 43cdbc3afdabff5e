"""Candidates looked at once more: their pictures, and whether the poses stay under augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.config import Parts
from fasthg.config.sides import doubts as doubtful_sides
from fasthg.data.opencv_loader import Image
from fasthg.inference.video.frame import Frame, Source
from fasthg.inference.video.pipeline import ahead
from fasthg.inference.video.row_store import Rows
from fasthg.inference.video.suggest.doubts import worst

Array = npt.NDArray[np.float64]
Look = Callable[
    [Sequence[tuple[Image | None, Array]]],
    list[tuple[Array, Array]],
]
"""As `Predictor.look`."""

MOVED = ((1.15, 0.06, -0.04), (0.9, -0.05, 0.05))
"""Boxes of the other crops: side, and shift in x and y, times those of the box."""
_FRAME_SIDE, _CROP_SIDE = 24, 16
_AHEAD = 8


@dataclass(frozen=True)
class Seen:
    """What a frame looks like, and how far its poses moved."""

    frame_look: Array
    """(24 * 24,) shades of the frame, 0..1."""
    crop_look: Array
    """(animals * 16 * 16,) shades of the animals' boxes, 0 for a missing one."""
    moved: Array
    """(animals,) mean distance of the least stable quarter of the parts, as a share of the body's
    length; NaN for a missing animal."""
    place: tuple[int, int]
    """Animal and part that moved most."""
    labelled: bool
    """Whether the picture is one of the labelled ones."""


def wanted(source: Source, numbers: Sequence[int]) -> Mapping[int, Image]:
    """Pictures of some frames, BGR, of a source; those that cannot be decoded are left out."""
    return {
        frame.number: frame.image for frame in _frames(source, numbers) if frame.image is not None
    }


def look_again(
    source: Source,
    rows: Rows,
    numbers: Sequence[int],
    look: Look,
    parts: Parts,
    is_labelled: Callable[[Image], bool],
    progress: Callable[[int], None],
) -> dict[int, Seen]:
    """What some frames of a film look like; number -> what is seen. Undecodable ones are left out.

    Poses are made again in two other crops of each animal, larger and smaller and shifted, and in
    the mirrored frame, unless the names of the parts raise doubts about LEFT_RIGHT_PAIRS.
    """
    flips = not doubtful_sides(parts.NAMES, parts.LEFT_RIGHT_PAIRS)
    found = {}
    frames = ahead(_frames(source, numbers), _AHEAD)
    with closing(frames):
        for frame in frames:
            if frame.image is None:
                continue
            boxes, own = rows.boxes[frame.number], rows.keypoints[frame.number]
            there = np.flatnonzero(np.isfinite(boxes).all(axis=1))
            moved = np.full(len(boxes), np.nan)
            place = (0, 0)
            if len(there):
                others = _others(frame.image, boxes[there], look, parts, flips)
                lengths = np.sqrt(np.prod(boxes[there, 2:] - boxes[there, :2], axis=1))
                far = np.linalg.norm(others - own[there], axis=-1).mean(axis=0) / lengths[:, None]
                moved[there] = worst(far)
                animal, part = np.unravel_index(int(far.argmax()), far.shape)
                place = (int(there[animal]), int(part))
            grey = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
            found[frame.number] = Seen(
                frame_look=_shrunk(grey, _FRAME_SIDE),
                crop_look=np.concatenate([_crop(grey, box) for box in boxes]),
                moved=moved,
                place=place,
                labelled=is_labelled(frame.image),
            )
            progress(len(found))
    return found


def _frames(source: Source, numbers: Sequence[int]) -> Iterator[Frame]:
    asked = {*numbers}
    if not asked:
        return
    last = max(asked)
    for frame in source.frames(min(asked)):
        if frame.number in asked:
            yield frame
        if frame.number >= last:
            return


def _others(image: Image, boxes: Array, look: Look, parts: Parts, flips: bool) -> Array:
    """(changes, animals, parts, 2) poses of the same animals in changed crops, image px."""
    height, width = image.shape[:2]
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    limits = np.array([width, height] * 2, np.float64)
    poses = []
    for scale, *shift in MOVED:
        middle, half = centres + sides * shift, sides * scale / 2
        changed = np.concatenate([middle - half, middle + half], axis=1).clip(0, limits)
        poses.append(look([(image, changed)])[0][0])
    if flips:
        mirrored = np.ascontiguousarray(image[:, ::-1])
        edges = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        points = look([(mirrored, edges)])[0][0]
        points = np.stack([width - points[..., 0], points[..., 1]], axis=-1)
        order = list(range(points.shape[1]))
        for a, b in parts.LEFT_RIGHT_PAIRS:
            order[a], order[b] = b, a
        poses.append(points[:, order])
    return np.stack(poses)


def _shrunk(grey: Image, side: int) -> Array:
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return small.astype(np.float64).ravel() / 255


def _crop(grey: Image, box: Array) -> Array:
    """Shades of a box; 0 for a missing one, or one outside of the picture."""
    if np.isfinite(box).all():
        height, width = grey.shape
        x1, y1 = np.floor(box[:2]).astype(int).clip(0)
        x2, y2 = np.minimum(np.ceil(box[2:]).astype(int), [width, height])
        if x2 > x1 and y2 > y1:
            return _shrunk(np.ascontiguousarray(grey[y1:y2, x1:x2]), _CROP_SIDE)
    return np.zeros(_CROP_SIDE**2)
