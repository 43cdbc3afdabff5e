"""A Preview as one image file, or as one HTML file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fasthg import html
from fasthg.config import Parts
from fasthg.data.preview.crops import Crop, Preview
from fasthg.drawing.marks import (
    DISC,
    RING,
    SQUARE,
    WHITE,
    Mark,
    Pixels,
    draw_line,
    draw_marks,
    fine,
)
from fasthg.drawing.palette import Rgb, part_colours

_INK, _GREY = (25, 25, 25), (110, 110, 110)
_SIDE = 256  # px, the least side of a crop shown; smaller ones are enlarged by a whole factor
_LABEL, _GAP, _LINE = 210, 18, 19  # px: column of names, space between, height of a line
_RADII = {DISC: 4.5, RING: 6.5, SQUARE: 3.5}  # px
_COLUMNS = "repeat(auto-fill, minmax(26rem, 1fr))"  # of the page, each for a pair
_BEYOND = "White line: the border of the image; beyond it its edge pixels are repeated."


@dataclass(frozen=True)
class PartMark:
    """How a part is drawn: in its colour; the parts of a pair differ in shape."""

    colour: Rgb
    shape: str


def part_marks(parts: Parts) -> list[PartMark]:
    """For each part: a disc for the first of a pair, a ring for the second, or a square."""
    shape: dict[int, str] = {}
    for left, right in parts.LEFT_RIGHT_PAIRS:
        shape |= {left: DISC, right: RING}
    return [
        PartMark(colour, shape.get(part, SQUARE)) for part, colour in enumerate(part_colours(parts))
    ]


def draw(crop: Crop, styles: Sequence[PartMark]) -> Pixels:
    """The crop with its targets: a mark on each keypoint and a circle of one sigma about it.

    A thin white line is the border of the image, where the crop leaves it.
    Returns uint8 (side, side, 3) RGB, enlarged by a whole factor to at least 256 px.
    """
    scale = -(-_SIDE // len(crop.image))
    image = np.ascontiguousarray(crop.image.repeat(scale, axis=0).repeat(scale, axis=1))
    if crop.border is not None:
        draw_line(image, np.concatenate([crop.border, crop.border[:1]]) * scale, WHITE, rim=None)
    for style, point, radius in zip(styles, crop.keypoints, crop.radii, strict=True):
        if np.isfinite(point).all():
            around = round(radius * scale * 16)
            cv2.circle(image, fine(point * scale), around, style.colour, 1, cv2.LINE_AA, 4)
    draw_marks(
        image,
        [
            _mark(style, *(point * scale))
            for style, point in zip(styles, crop.keypoints, strict=True)
        ],
    )
    return image


def _mark(style: PartMark, x: float, y: float) -> Mark:
    return Mark(style.shape, float(x), float(y), style.colour, _RADII[style.shape])


class _Sheet:
    """A white image that grows downwards."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.image = Image.new("RGB", (width, 64), WHITE)
        self.pen = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(15)
        self.bottom = _GAP

    def reserve(self, height: int) -> None:
        if self.bottom + height > self.image.height:
            taller = Image.new("RGB", (self.width, 2 * (self.bottom + height)), WHITE)
            taller.paste(self.image)
            self.image, self.pen = taller, ImageDraw.Draw(taller)

    def wrapped(self, text: str, width: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if not lines[-1] or self.pen.textlength(longer, self.font) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def text(self, x: int, y: int, text: str, width: int, ink: tuple[int, int, int] = _INK) -> int:
        """Write lines of at most `width` px below (x, y); returns their height in px."""
        lines = self.wrapped(text, width)
        self.reserve(y + len(lines) * _LINE - self.bottom)
        for number, line in enumerate(lines):
            self.pen.text((x, y + number * _LINE), line, ink, self.font)
        return len(lines) * _LINE

    def png(self) -> bytes:
        return _png(np.asarray(self.image)[: self.bottom + _GAP])


def _png(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _pair(before: Crop, after: Crop, styles: Sequence[PartMark]) -> Pixels:
    """Both crops side by side, a white line between them."""
    left, right = draw(before, styles), draw(after, styles)
    return np.concatenate([left, np.full_like(left[:, :2], 255), right], axis=1)


def _notes(preview: Preview, parts: Parts) -> list[str]:
    names = parts.NAMES
    pairs = ", ".join(f"{names[a]} and {names[b]}" for a, b in parts.LEFT_RIGHT_PAIRS)
    flip = (
        f"A flip exchanges the names of {pairs or 'no parts'}. A disc must be on the same side of "
        "the animal in both pictures."
    )
    off = ", ".join(f"{name} ({key})" for name, key in preview.off.items())
    crops = [*preview.before, *(crop for row in preview.rows for crop in row.crops)]
    return [
        "Each animal before and after. Thin circles: one sigma of the target. Of a pair the first "
        "part is a disc, the second a ring; parts without a partner are squares.",
        *([] if "flip" in preview.off else [flip]),
        *([_BEYOND] if any(crop.border is not None for crop in crops) else []),
        f"Off: {off or 'none'}.",
        *(f"Replaced by the next: {reason}." for reason in preview.replaced),
    ]


def _legend(sheet: _Sheet, parts: Parts, styles: Sequence[PartMark]) -> None:
    """Marks with names, in lines over the sheet's width."""
    sheet.reserve(2 * _LINE)
    x = _GAP
    for name, style in zip(parts.NAMES, styles, strict=True):
        width = 26 + int(sheet.pen.textlength(name, sheet.font)) + 2 * _GAP
        if x > _GAP and x + width > sheet.width:
            x, sheet.bottom = _GAP, sheet.bottom + _LINE + 6
            sheet.reserve(2 * _LINE)
        patch = np.full((_LINE, _LINE, 3), 190, np.uint8)
        draw_marks(patch, [_mark(style, _LINE / 2, _LINE / 2)])
        sheet.image.paste(Image.fromarray(patch), (x, sheet.bottom))
        sheet.pen.text((x + 26, sheet.bottom), name, _INK, sheet.font)
        x += width
    sheet.bottom += _LINE + _GAP


def as_png(preview: Preview, parts: Parts, title: str) -> bytes:
    """The contact sheet: a row an augmentation, a pair before and after an instance."""
    styles = part_marks(parts)
    side = len(draw(preview.before[0], styles))
    wide = 2 * side + 2
    sheet = _Sheet(_GAP + _LABEL + len(preview.before) * (wide + _GAP))
    sheet.bottom += sheet.text(_GAP, sheet.bottom, title, sheet.width)
    for note in _notes(preview, parts):
        sheet.bottom += sheet.text(_GAP, sheet.bottom, note, sheet.width - 2 * _GAP, _GREY)
    sheet.bottom += _GAP // 2
    _legend(sheet, parts, styles)
    lefts = [_GAP + _LABEL + number * (wide + _GAP) for number in range(len(preview.before))]
    sheet.bottom += max(
        sheet.text(x, sheet.bottom, name, wide, _GREY)
        for x, name in zip(lefts, preview.instances, strict=True)
    )
    for row in preview.rows:
        sheet.bottom += _GAP // 2
        sheet.reserve(side + 2)
        top = sheet.bottom
        for x, before, after in zip(lefts, preview.before, row.crops, strict=True):
            sheet.image.paste(Image.fromarray(_pair(before, after, styles)), (x, top))
        height = sheet.text(_GAP, top, row.name, _LABEL - _GAP)
        sheet.text(_GAP, top + height, row.share, _LABEL - _GAP, _GREY)
        sheet.bottom += side + 3
        sheet.bottom += max(
            sheet.text(x, sheet.bottom, crop.told, wide)
            for x, crop in zip(lefts, row.crops, strict=True)
        )
    return sheet.png()


def as_page(preview: Preview, parts: Parts, title: str) -> str:
    """The contact sheet as one HTML file with embedded images."""
    return html.page(title, _body(preview, parts))


def _body(preview: Preview, parts: Parts) -> Iterator[str]:
    styles = part_marks(parts)
    yield f"<style>.pictures {{ grid-template-columns: {_COLUMNS}; }}</style>"
    yield from map(html.note, _notes(preview, parts))
    legend = _Sheet(560)
    _legend(legend, parts, styles)
    yield html.pictures([(legend.png(), "")], "png")
    for row in preview.rows:
        yield html.heading(row.name)
        yield html.note(row.share)
        yield html.pictures(
            (
                (_png(_pair(before, after, styles)), f"{crop_name}: {after.told}")
                for crop_name, before, after in zip(
                    preview.instances, preview.before, row.crops, strict=True
                )
            ),
            "png",
        )
