"""Marks, lines and text on pictures, seen on white bedding and on black fur.

A picture is uint8 `(height, width, 3)` and is changed in place. Colours are in the order of its
channels: red, green, blue for RGB; `bgr` turns one around for pictures of OpenCV. Positions are px
from the corner of the top left pixel, whose centre is at 0.5, 0.5; what lies outside is cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fasthg.drawing.palette import Rgb

Pixels = NDArray[Any]

DISC, RING, CROSS, SQUARE = "disc", "ring", "cross", "square"
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_PHASES = 8  # positions of a mark within a pixel, each way
_FINE = 4  # binary digits of a position below 1 px, as OpenCV draws
_FAR = 9999  # px; OpenCV cannot draw everywhere


@dataclass(frozen=True)
class Mark:
    """A part in a picture."""

    shape: str
    """DISC, RING, CROSS or SQUARE."""
    x: float
    y: float
    colour: Rgb
    radius: float
    """Half its width without its rims, px."""


def bgr(colour: Rgb) -> Rgb:
    """A colour for a picture with its channels in the opposite order."""
    return colour[2], colour[1], colour[0]


def draw_marks(image: Pixels, marks: Iterable[Mark]) -> None:
    """Draw marks with a black rim and a white one about it.

    All rims come first, so that none hides another mark. Marks at NaN are left out.
    """
    shown = [mark for mark in marks if np.isfinite(mark.x + mark.y)]
    for rim in (True, False):
        for mark in shown:
            _draw_mark(image, mark, rim)


def _draw_mark(image: Pixels, mark: Mark, rim: bool) -> None:
    # In eighths of a px from the centre of the nearest pixel, for the sprite, and that pixel.
    fine = np.rint((np.clip([mark.x, mark.y], -1e6, 1e6) - 0.5) * _PHASES).astype(int)
    (column, row), (dx, dy) = (fine // _PHASES).tolist(), (fine % _PHASES).tolist()
    radius = round(mark.radius * _PHASES)
    added, kept = _sprite(mark.shape, radius, dx, dy, None if rim else mark.colour)
    half = len(added) // 2
    put(image, column - half, row - half, added, kept)


def put(image: Pixels, left: int, top: int, added: Pixels, kept: Pixels) -> None:
    """image = image * kept + added, where the two lie on the image; for drawings kept ready.

    left, top: of them on the image, px. added: (height, width, 3), grey levels and half of one,
    because writing to uint8 cuts off. kept: (height, width, 1), 0 to 1.
    """
    height, width = added.shape[:2]
    y1, y2 = max(top, 0), min(top + height, image.shape[0])
    x1, x2 = max(left, 0), min(left + width, image.shape[1])
    if y1 >= y2 or x1 >= x2:
        return
    rows, columns = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
    part = image[y1:y2, x1:x2]
    part[:] = part * kept[rows, columns] + added[rows, columns]


@lru_cache(maxsize=8192)
def _sprite(
    shape: str, radius: int, dx: int, dy: int, colour: Rgb | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a mark adds, (side, side, 3), and the share it keeps of what is below, (side, side, 1).

    radius, dx, dy: in eighths of a px, the latter two from the centre of the middle pixel. colour:
    None for the two rims.
    """
    size = radius / _PHASES
    rim = min(max(0.9, 0.22 * size), 2.5)
    half = int(np.ceil(size + 2 * rim)) + 2
    x = np.arange(-half, half + 1) - dx / _PHASES
    y = (np.arange(-half, half + 1) - dy / _PHASES)[:, None]
    away = _distance(shape, size, x, y)
    if colour is not None:
        layers = [(away, colour)]
    elif shape == RING:
        # The white rim lies outside alone, so that the ring stays open.
        inside = np.hypot(x, y) < size
        layers = [(np.where(inside, 9.0, away - 2 * rim), WHITE), (away - rim, BLACK)]
    else:
        layers = [(away - 2 * rim, WHITE), (away - rim, BLACK)]
    added = np.zeros((*away.shape, 3), np.float32)
    kept = np.ones((*away.shape, 1), np.float32)
    for distance, ink in layers:
        share = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        added = added * (1 - share) + share * np.array(ink)
        kept = kept * (1 - share)
    return (added + 0.5).astype(np.float32), kept.astype(np.float32)


def _distance(shape: str, size: float, x: Pixels, y: Pixels) -> NDArray[np.float64]:
    """px from a mark's border, below 0 inside; x (side,), y (side, 1): px from its centre."""
    width = max(1.3, 0.34 * size)
    if shape == DISC:
        return np.asarray(np.hypot(x, y) - size)
    if shape == RING:
        return np.asarray(abs(np.hypot(x, y) - size + width / 2) - width / 2)
    if shape == SQUARE:
        return np.asarray(np.maximum(abs(x), abs(y)) - size)
    if shape == CROSS:
        # Along the diagonals and across them; both arms are mirrored into one quadrant.
        along, across = abs(x + y) / np.sqrt(2), abs(x - y) / np.sqrt(2)
        along, across = np.maximum(along, across), np.minimum(along, across)
        reach = size * np.sqrt(2) - width / 2
        return np.asarray(np.hypot(np.maximum(along - reach, 0.0), across) - width / 2)
    raise ValueError(f"no mark {shape!r}")


def draw_line(
    image: Pixels, points: ArrayLike, colour: Rgb, width: int = 1, rim: Rgb | None = BLACK
) -> None:
    """A line through points (points, 2), with a rim of 1 px; broken where one is NaN.

    width: px.
    """
    xy = np.asarray(points, np.float64)
    turns = np.flatnonzero(np.diff(np.r_[False, np.isfinite(xy.sum(axis=1)), False].astype(int)))
    runs = [_sixteenths(xy[a:b]) for a, b in turns.reshape(-1, 2).tolist() if b - a > 1]
    for ink, wide in ((rim, width + 2), (colour, width)):
        if ink is not None:
            cv2.polylines(image, runs, False, ink, wide, cv2.LINE_AA, _FINE)


def draw_box(image: Pixels, box: Sequence[float], colour: Rgb) -> None:
    """A box x1 y1 x2 y2, px: 1 px inside it, a black rim outside; none where an edge is NaN."""
    if not np.isfinite(np.asarray(box, np.float64).sum()):
        return
    x1, y1, x2, y2 = np.clip(np.rint(box), -_FAR, _FAR).astype(int).tolist()
    right, bottom = max(x2 - 1, x1), max(y2 - 1, y1)
    cv2.rectangle(image, (x1 - 1, y1 - 1), (right + 1, bottom + 1), BLACK)
    cv2.rectangle(image, (x1, y1), (right, bottom), colour)


def fine(at: ArrayLike) -> tuple[int, int]:
    """A position as OpenCV draws it with `shift` 4: sixteenths of a px, from a pixel's centre."""
    x, y = _sixteenths(at).tolist()
    return x, y


def _sixteenths(at: ArrayLike) -> NDArray[np.int32]:
    """`fine` of positions (..., 2)."""
    shifted = (np.clip(np.asarray(at, np.float64), -_FAR, _FAR) - 0.5) * (1 << _FINE)
    return np.rint(shifted).astype(np.int32)
