"""What is drawn into the frames of a source: parts, skeleton, boxes, names, trails, legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasthg.config import Config
from fasthg.drawing import lettering
from fasthg.drawing.marks import (
    BLACK,
    DISC,
    RING,
    WHITE,
    Mark,
    bgr,
    draw_box,
    draw_line,
    draw_marks,
    put,
)
from fasthg.drawing.palette import Rgb, animal_colours, part_colours
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.row_store import Rows

Floats = NDArray[np.float64]

_RADIUS = 0.022  # of a part's disc, as a share of the animal
_LEAST, _MOST = 1 / 450, 1 / 110  # of its radius, as shares of the frame's longer side
_HOLLOW = 3.2  # px, least radius of a ring, which is a disc otherwise
_LETTERS = 1 / 70  # height of letters, as a share of the frame's longer side
_TOO_LARGE = 0.2  # share of the frame from which there is no legend,
_HIDES = 0.02  # and share of the parts that it may hide
_SHADE = 0.45  # what a legend's ground keeps of the frame below it
TOP_LEFT, TOP_RIGHT, BOTTOM_RIGHT, BOTTOM_LEFT = range(4)


@dataclass(frozen=True)
class Style:
    """How parts are drawn, P of them."""

    parts: tuple[str, ...]
    """Names."""
    colours: tuple[Rgb, ...]
    """Red, green, blue, 0 to 255, of each part."""
    skeleton: tuple[tuple[int, int], ...]
    """Pairs of parts, from 0, that a line joins."""
    confidence: float
    """Least score of a part that is drawn solid; others are hollow and have no line."""
    trail: int = 0
    """Over how many frames before it an animal's way is drawn; never in images."""

    @classmethod
    def of(cls, config: Config, confidence: float, trail: int = 0) -> Style:
        """Names, colours and skeleton of a configuration.

        Raises:
            ConfigError: an entry of PARTS.COLORS is no colour.
        """
        parts = config.PARTS
        skeleton = tuple((int(a), int(b)) for a, b in parts.SKELETON)
        return cls(parts.NAMES, tuple(part_colours(parts)), skeleton, confidence, trail)


class Painter:
    """Draws the rows of one source into its frames.

    Sizes follow the frame and the animal. Legend and number of the frame are in the corners where
    fewest parts are: over the whole of a film, in each image for itself.
    """

    def __init__(self, rows: Rows, style: Style) -> None:
        self.rows, self.style = rows, style
        self._colours = [bgr(colour) for colour in style.colours]
        self._animals = [bgr(colour) for colour in animal_colours(len(rows.animals))]
        self._layouts: dict[tuple[Any, ...], _Layout] = {}
        self._film = not rows.names
        self._sizes = animal_sizes(rows.keypoints, rows.boxes)
        self._centres = centres(rows)

    def draw(self, frame: Frame) -> NDArray[np.uint8]:
        """A copy of a frame's image with its row drawn in; the frame must have an image.

        Returns BGR uint8 (height, width, 3).
        """
        assert frame.image is not None
        image = frame.image.copy()
        number, long = frame.number, max(image.shape[:2])
        layout = self._layout(number, image.shape[1], image.shape[0])
        self._trails(image, number)
        for animal, colour in enumerate(self._animals):
            draw_box(image, self.rows.boxes[number, animal].tolist(), colour)
        marks: list[Mark] = []
        for animal in range(len(self._animals)):
            size = self._sizes[number, animal]
            if self._film:
                size = layout.animals[animal]
            radius = max(1.6, float(np.clip(_RADIUS * size, _LEAST * long, _MOST * long)))
            marks += self._pose(image, number, animal, radius)
        draw_marks(image, marks)
        if len(self._animals) > 1:
            for animal in range(len(self._animals)):
                self._tag(image, number, animal, layout.letters)
        for drawn, (left, top) in layout.ready:
            put(image, left, top, *drawn)
        self._caption(image, frame, layout)
        return image

    def _pose(self, image: NDArray[Any], number: int, animal: int, radius: float) -> list[Mark]:
        """Draw an animal's skeleton and return the marks of its parts."""
        points = self.rows.keypoints[number, animal]
        sure = self.rows.scores[number, animal] >= self.style.confidence
        width = 1 if radius < 4 else round(radius / 2.5)
        for a, b in self.style.skeleton:
            if sure[a] and sure[b]:
                draw_line(image, points[[a, b]], WHITE, width)
        return [
            Mark(DISC, x, y, colour, radius)
            if solid
            else Mark(RING, x, y, colour, max(_HOLLOW, 1.3 * radius))
            for (x, y), solid, colour in zip(points.tolist(), sure, self._colours, strict=True)
        ]

    def _trails(self, image: NDArray[Any], number: int) -> None:
        if not self.style.trail or not self._film:
            return
        way = self._centres[max(0, number - self.style.trail) : number + 1]
        for animal, colour in enumerate(self._animals):
            if len(way) > 1:
                draw_line(image, way[:, animal], colour)

    def _tag(self, image: NDArray[Any], number: int, animal: int, letters: int) -> None:
        """The animal's name on its colour, above its box."""
        x1, y1, *_ = self.rows.boxes[number, animal].tolist()
        if not np.isfinite(x1 + y1):
            return
        name, colour = self.rows.animals[animal], self._animals[animal]
        width, height = lettering.text_width(name, letters) + 6, lettering.line_height(letters)
        left = round(min(max(x1, 0), image.shape[1] - width))
        top = round(min(max(y1 - height, 0), image.shape[0] - height))
        image[max(top, 0) : top + height, max(left, 0) : left + width] = colour
        ink = BLACK if sum(colour) > 380 else WHITE
        lettering.draw_text(image, (left + 3, top), name, letters, ink, rim=None)

    def _caption(self, image: NDArray[Any], frame: Frame, layout: _Layout) -> None:
        text = caption(frame)
        x, y = layout.caption
        if layout.right:
            x -= lettering.text_width(text, layout.letters)
        lettering.draw_text(image, (x, y), text, layout.letters)

    def _layout(self, number: int, width: int, height: int) -> _Layout:
        key = (width, height) if self._film else (width, height, number)
        if key not in self._layouts:
            rows = slice(None) if self._film else slice(number, number + 1)
            points = self.rows.keypoints[rows].reshape(-1, 2)
            made = _Layout(self.style, self._colours, points, width, height)
            made.animals = np.nan_to_num(typical_sizes(self._sizes[rows]), nan=0.0)
            if not self._film:
                self._layouts.clear()
            self._layouts[key] = made
        return self._layouts[key]


class _Layout:
    """Where legend and caption are in frames of one size."""

    animals: Floats
    """(animals,) px, their sizes in a film."""

    def __init__(
        self, style: Style, colours: Sequence[Rgb], points: Floats, width: int, height: int
    ) -> None:
        long = max(width, height)
        self.letters = letters = int(np.clip(round(_LETTERS * long), 12, 32))
        gap = letters // 2
        self.ready: list[tuple[tuple[Floats, Floats], tuple[int, int]]] = []
        free = [TOP_LEFT, BOTTOM_LEFT, TOP_RIGHT, BOTTOM_RIGHT]
        inner = letters + max(lettering.text_width(name, letters) for name in style.parts) + 1
        tall = lettering.legend_layout(style.parts, letters, inner)[1]
        if tall > 0.6 * height:
            inner = 2 * inner + letters
            tall = lettering.legend_layout(style.parts, letters, inner)[1]
        panel = (inner + 2 * gap, tall + gap)
        if panel[0] * panel[1] < _TOO_LARGE * width * height and panel[1] < height:
            corner = quietest(points, panel, (width, height), free[::-1])
            hides = hidden(points, panel, (width, height), corner)
            if hides <= _HIDES * np.isfinite(points[:, 0]).sum():
                free.remove(corner)
                drawn = _ready(
                    lambda image: _legend(image, style.parts, colours, letters, inner), panel
                )
                self.ready.append((drawn, place(corner, panel, (width, height), 0)))
        text = (9 * letters, lettering.line_height(letters))
        corner = quietest(points, text, (width, height), free)
        self.right = corner in (TOP_RIGHT, BOTTOM_RIGHT)
        x, y = place(corner, text, (width, height), gap)
        self.caption = (x + text[0] if self.right else x, y)


def _legend(
    image: NDArray[Any], names: Sequence[str], colours: Sequence[Rgb], letters: int, inner: int
) -> None:
    image[:] = image * _SHADE
    gap = letters // 2
    lettering.draw_legend(image, (gap, gap // 2), names, colours, letters, inner, WHITE)


def _ready(paint: Callable[[NDArray[Any]], None], size: tuple[int, int]) -> tuple[Floats, Floats]:
    """A drawing kept ready for `marks.put`: what `paint` adds and keeps, px by px."""
    black = np.zeros((size[1], size[0], 3), np.float32)
    white = np.full_like(black, 255)
    paint(black)
    paint(white)
    return np.minimum(black, 255.4), (white - black) / 255


def caption(frame: Frame) -> str:
    """Name of an image, or number of a frame and its time."""
    if frame.name:
        return frame.name
    if not np.isfinite(frame.time):
        return f"frame {frame.number}"
    minutes, seconds = divmod(frame.time, 60)
    return f"frame {frame.number}  {int(minutes)}:{seconds:05.2f}"


def quietest(
    points: Floats, size: tuple[int, int], frame: tuple[int, int], corners: Sequence[int]
) -> int:
    """The corner where a rectangle hides fewest points; the first of several.

    points: (points, 2) px, NaN where there is none. size, frame: widths and heights, px.
    """
    return min(corners, key=lambda corner: hidden(points, size, frame, corner))


def hidden(points: Floats, size: tuple[int, int], frame: tuple[int, int], corner: int) -> int:
    """How many points a rectangle in a corner hides; as `quietest`."""
    left, top = place(corner, size, frame, 0)
    x, y = points[:, 0] - left, points[:, 1] - top
    return int(((x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])).sum())


def place(corner: int, size: tuple[int, int], frame: tuple[int, int], gap: int) -> tuple[int, int]:
    """Left and top, px, of a rectangle in a corner, `gap` px from the border."""
    right, bottom = frame[0] - size[0] - gap, frame[1] - size[1] - gap
    return (
        right if corner in (TOP_RIGHT, BOTTOM_RIGHT) else gap,
        bottom if corner in (BOTTOM_LEFT, BOTTOM_RIGHT) else gap,
    )


def animal_sizes(keypoints: Floats, boxes: Floats) -> Floats:
    """(frames, animals) px: the longer side of the parts, or of the box where there is one part.

    keypoints: (frames, animals, parts, 2) image px; boxes: (frames, animals, 4) x1 y1 x2 y2. NaN
    where both are.
    """
    known = np.isfinite(keypoints)
    high = np.where(known, keypoints, -np.inf).max(axis=2)
    low = np.where(known, keypoints, np.inf).min(axis=2)
    extent = (high - low).max(axis=2)
    box = (boxes[..., 2:] - boxes[..., :2]).max(axis=2)
    return np.asarray(np.where(np.isfinite(extent) & (extent > 0), extent, box))


def centres(rows: Rows) -> Floats:
    """(frames, animals, 2) px: mean of an animal's parts, weighted by their scores; NaN where it
    has none."""
    known = np.isfinite(rows.keypoints.sum(axis=3))
    scores = np.asarray(np.maximum(rows.scores, 1e-6), np.float64)
    weights = np.where(known, scores, 0.0)[:, :, :, None]
    total = np.where(known[:, :, :, None], rows.keypoints, 0.0) * weights
    with np.errstate(invalid="ignore"):
        return np.asarray(total.sum(axis=2) / weights.sum(axis=2))


def typical_sizes(sizes: Floats) -> Floats:
    """(animals,) medians of (frames, animals) px, NaN left out."""
    found = ([size for size in column if np.isfinite(size)] for column in sizes.T.tolist())
    return np.array([float(np.median(each)) if len(each) else np.nan for each in found])
