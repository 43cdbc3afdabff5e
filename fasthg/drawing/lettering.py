"""Text on pictures, and legends: a dot of each part's colour with its name.

Pictures, colours and positions are as in `marks`. The font is that of Pillow; letters that it lacks
are shown as boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fasthg.drawing.marks import BLACK, DISC, WHITE, Mark, Pixels, draw_marks, put
from fasthg.drawing.palette import Rgb

_GAP = 0.9  # between entries of a legend, in heights of the letters
INK, GREY, PAPER = (25, 25, 25), (105, 105, 105), (255, 255, 255)
"""Of sheets: text, what is of less weight, and the ground."""


def line_height(size: int) -> int:
    """px from one line of text to the next. size: height of the letters, px."""
    return round(1.3 * size)


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """px that a line of text takes."""
    return int(np.ceil(_font(size).getlength(text)))


def draw_text(
    image: Pixels,
    at: tuple[float, float],
    text: str,
    size: int,
    ink: Rgb = WHITE,
    rim: Rgb | None = BLACK,
) -> int:
    """Write one line and return its width, px.

    at: left end and top of the line, px. size: height of the letters, px. rim: None for text on a
    ground of one colour.
    """
    if not text:
        return 0
    filled, rimmed, edge = _letters(text, size, rim is not None)
    added = np.zeros((*filled.shape, 3), np.float32)
    kept = np.ones((*filled.shape, 1), np.float32)
    for share, colour in ((rimmed, rim), (filled, ink)):
        if colour is not None:
            layer = share[..., None].astype(np.float32) / 255
            added = added * (1 - layer) + layer * np.array(colour, np.float32)
            kept = kept * (1 - layer)
    put(image, round(at[0]) - edge, round(at[1]) - edge, added + np.float32(0.5), kept)
    return text_width(text, size)


@lru_cache(maxsize=1024)
def _letters(text: str, size: int, rim: bool) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Coverage, uint8 (height, width), of the letters and of them with their rim; its width, px."""
    edge = max(1, round(size / 9)) if rim else 0
    shape = (text_width(text, size) + 2 * edge + 2, line_height(size) + 2 * edge)
    layers = []
    for stroke in (0, edge):
        layer = Image.new("L", shape)
        ImageDraw.Draw(layer).text((edge, edge), text, 255, _font(size), stroke_width=stroke)
        layers.append(np.asarray(layer))
    return layers[0], layers[1], edge


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` px, broken between words, and within one that is longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        while text_width(word, size) > width and len(word) > 1:
            most = next(
                n
                for n in range(len(word) - 1, 0, -1)
                if n == 1 or text_width(word[:n], size) <= width
            )
            lines[-1], word = word[:most], word[most:]
            lines.append("")
        lines[-1] = word
    return lines


def shorten(text: str, size: int, width: int) -> str:
    """The text, its beginning replaced by dots where it is wider than `width` px."""
    if text_width(text, size) <= width:
        return text
    ends = (f"...{text[start:]}" for start in range(1, len(text)))
    return next((end for end in ends if text_width(end, size) <= width), "")


def legend_layout(names: Sequence[str], size: int, width: int) -> tuple[list[tuple[int, int]], int]:
    """Left top corner of each entry of a legend, px, in lines of at most `width`; its height."""
    step, places, x, y = line_height(size), [], 0, 0
    for name in names:
        wide = size + text_width(name, size)
        if x and x + wide > width:
            x, y = 0, y + step
        places.append((x, y))
        x += wide + round(_GAP * size)
    return places, y + step


def draw_legend(
    image: Pixels,
    at: tuple[int, int],
    names: Sequence[str],
    colours: Sequence[Rgb],
    size: int,
    width: int,
    ink: Rgb = INK,
) -> int:
    """A disc of each colour and its name, in lines of at most `width` px; returns their height.

    at: left top corner, px. size: height of the letters, px.
    """
    places, height = legend_layout(names, size, width)
    for (x, y), name, colour in zip(places, names, colours, strict=True):
        middle = at[1] + y + 0.62 * size
        draw_marks(image, [Mark(DISC, at[0] + x + 0.4 * size, middle, colour, 0.27 * size)])
        draw_text(image, (at[0] + x + size, at[1] + y), name, size, ink, rim=None)
    return height
