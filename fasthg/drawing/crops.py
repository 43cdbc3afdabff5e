"""Square crops around an animal, and pictures side by side on a sheet."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg import geometry
from fasthg.drawing import lettering
from fasthg.drawing.marks import Pixels
from fasthg.drawing.palette import Rgb

_BEYOND = (127, 127, 127)
_GAP, _NAME = 12, 14  # px
CAPTION = 13
"""Height of the letters of captions, px."""


def square_crop(
    image: Pixels, box: Sequence[float], margin: float, side: int
) -> tuple[Pixels, NDArray[np.float64]]:
    """The image around a box, mid-grey beyond its border.

    Args:
        image: uint8 (height, width, 3), in any order of channels.
        box: x1 y1 x2 y2, image px.
        margin: image shown around the box on each side, as a fraction of its longer side.
        side: of the crop, px.

    Returns:
        The crop, uint8 (side, side, 3), and the affine map (2, 3) from image px to its px.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    half = (0.5 + margin) * max(x2 - x1, y2 - y1, 8.0)
    scale = side / (2 * half)
    left, top = (x1 + x2) / 2 - half, (y1 + y2) / 2 - half
    to_crop = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    warp = to_crop
    if scale < 0.5:
        # A warp reads single px; a large image is averaged first.
        height, width = image.shape[:2]
        small = (max(1, round(2 * scale * width)), max(1, round(2 * scale * height)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        warp = to_crop * np.array([width / small[0], height / small[1], 1.0])
    crop = cv2.warpAffine(
        *(image, geometry.from_pixel_centres(warp), (side, side)),
        flags=cv2.INTER_CUBIC,
        borderValue=_BEYOND,
    )
    return crop, to_crop


def sheet(
    cells: Sequence[tuple[Pixels, str]],
    columns: int,
    head: Sequence[str] = (),
    names: Sequence[str] = (),
    colours: Sequence[Rgb] = (),
) -> Pixels:
    """Pictures of one size side by side on white paper, with captions, a head and a legend.

    Args:
        cells: pictures, uint8 RGB (height, width, 3), all of one size, each with its caption.
        columns: pictures in a line.
        head: lines above them; the first is the title.
        names, colours: of the parts, for the legend; without them there is none.

    Returns:
        uint8 RGB (height, width, 3).
    """
    height, width = cells[0][0].shape[:2] if cells else (0, 320)
    columns = max(1, min(columns, len(cells)))
    wide = max(columns * (width + _GAP) + _GAP, 420)
    inner = wide - 2 * _GAP
    top = [
        (line, 16 if k == 0 else CAPTION)
        for k, text in enumerate(head)
        for line in lettering.wrap(text, 16 if k == 0 else CAPTION, inner)
    ]
    captions = [lettering.wrap(text, CAPTION, width) for _, text in cells]
    lines = [range(at, min(at + columns, len(cells))) for at in range(0, len(cells), columns)]
    step = lettering.line_height(CAPTION)
    deep = [height + 4 + step * max(len(captions[k]) for k in line) + _GAP for line in lines]
    legend = lettering.legend_layout(names, _NAME, inner)[1] + _GAP if names else 0
    above = sum(lettering.line_height(size) for _, size in top)
    paper = np.full((_GAP + above + 4 + legend + sum(deep) + 2, wide, 3), 255, np.uint8)
    y = _GAP
    for number, (text, size) in enumerate(top):
        ink = lettering.INK if number == 0 else lettering.GREY
        lettering.draw_text(paper, (_GAP, y), text, size, ink, rim=None)
        y += lettering.line_height(size)
    y += 4
    if names:
        lettering.draw_legend(paper, (_GAP, y), names, colours, _NAME, inner)
    y += legend
    for line, tall in zip(lines, deep, strict=True):
        for place, k in enumerate(line):
            x = _GAP + place * (width + _GAP)
            paper[y : y + height, x : x + width] = cells[k][0]
            for below, text in enumerate(captions[k]):
                at = (x, y + height + 4 + below * step)
                lettering.draw_text(paper, at, text, CAPTION, lettering.INK, rim=None)
        y += tall
    return paper
