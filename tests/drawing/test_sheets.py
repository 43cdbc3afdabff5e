"""Text, legends, crops and sheets."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg import geometry
from fasthg.drawing import lettering
from fasthg.drawing.crops import sheet, square_crop
from fasthg.drawing.palette import PALETTE


@pytest.mark.parametrize("level", [0, 255])
def test_text_is_seen_on_white_and_on_black(level: int) -> None:
    image = np.full((30, 120, 3), level, np.uint8)
    width = lettering.draw_text(image, (5, 5), "left ear", 12)
    changed = np.nonzero((np.abs(image.astype(int) - level) > 180).any(axis=(0, 2)))[0]
    assert 5 <= changed.min() <= 8 and abs(changed.max() - (5 + width)) <= 3


def test_text_that_begins_outside_is_cut_off() -> None:
    image = np.zeros((30, 20, 3), np.uint8)
    lettering.draw_text(image, (-30, -4), "a long line of text", 12)
    lettering.draw_text(image, (5, 400), "below", 12)
    assert image.any()


def test_lines_are_as_wide_as_asked_and_lose_nothing() -> None:
    text = "m4s1/img0063 of a_very_long_name_without_any_blank_in_it.png"
    lines = lettering.wrap(text, 13, 90)
    assert all(lettering.text_width(line, 13) <= 90 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    short = lettering.shorten(text, 13, 90)
    assert short.startswith("...") and text.endswith(short[3:])
    assert lettering.text_width(short, 13) <= 90


def test_a_legend_shows_each_colour_at_its_name() -> None:
    names = [f"part number {k}" for k in range(7)]
    image = np.full((200, 300, 3), 255, np.uint8)
    height = lettering.draw_legend(image, (10, 10), names, PALETTE, 14, 280)
    places, _ = lettering.legend_layout(names, 14, 280)
    assert max(y for _, y in places) < height
    assert (image[10 + height :] == 255).all() and (image[:, 292:] == 255).all()
    for (x, y), colour in zip(places, PALETTE, strict=True):
        patch = image[10 + y : 10 + y + 16, 10 + x : 10 + x + 13].reshape(-1, 3)
        assert (patch == colour).all(axis=1).any()


@pytest.mark.parametrize("side", [340, 25])
def test_a_crop_shows_a_spot_where_its_map_says(side: int) -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[90:110, 140:160] = 255
    crop, to_crop = square_crop(image, (120, 80, 220, 130), 0.2, side)
    assert crop.shape == (side, side, 3)
    y, x = np.mgrid[:side, :side] + 0.5
    weight = crop[..., 0].astype(float)
    found = [(x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()]
    wanted = geometry.apply(np.array([[150.0, 100.0]]), to_crop)[0]
    assert found == pytest.approx(wanted.tolist(), abs=0.5)


def test_a_crop_beyond_the_image_is_grey() -> None:
    image = np.full((50, 50, 3), 255, np.uint8)
    crop, _ = square_crop(image, (-10, -10, 10, 10), 0.0, 40)
    assert (crop[2, 2] == 127).all() and (crop[-2, -2] == 255).all()


def test_pictures_of_a_sheet_are_aligned_and_whole() -> None:
    cells = [(np.full((50, 200, 3), (250, 3, 40 * k), np.uint8), f"picture {k}") for k in range(5)]
    paper = sheet(cells, 2, ["title", "what is shown"], ["snout"], [PALETTE[0]])
    corners = []
    for picture, _ in cells:
        y, x = np.nonzero((paper == picture[0, 0]).all(axis=2))
        corners.append((x.min(), y.min()))
        rows, columns = slice(y.min(), y.min() + 50), slice(x.min(), x.min() + 200)
        assert (paper[rows, columns] == picture[0, 0]).all()
    xs, ys = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    assert len(xs) == 2 and len(ys) == 3
    # Captions of dark letters on white stand below each picture.
    for x, y in corners:
        assert paper[y + 52 : y + 70, x : x + 80].min() < 90


def test_a_sheet_without_pictures() -> None:
    paper = sheet([], 4, ["nothing"])
    assert paper.min() < 90 and paper.shape[1] >= lettering.text_width("nothing", 16)
