"""Marks: where they lie, what colour they have, and that they are seen on any ground."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg.drawing.marks import (
    BLACK,
    CROSS,
    DISC,
    RING,
    SQUARE,
    WHITE,
    Mark,
    bgr,
    draw_box,
    draw_line,
    draw_marks,
)

ORANGE = (230, 159, 0)


def ground(level: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def centre(weight: np.ndarray) -> tuple[float, float]:
    """Centre of mass, px from the corner of the image."""
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


@pytest.mark.parametrize("shape", [DISC, RING, CROSS, SQUARE])
@pytest.mark.parametrize("at", [(30.0, 20.0), (30.25, 20.5), (41.87, 33.1)])
def test_a_mark_lies_at_its_position(shape: str, at: tuple[float, float]) -> None:
    image = ground(127)
    draw_marks(image, [Mark(shape, *at, (255, 0, 0), 4.0)])
    change = np.abs(image.astype(float) - 127).sum(axis=2)
    assert centre(change) == pytest.approx(at, abs=0.3)
    # The colour alone, whose symmetry the rims cannot make.
    red = (image[..., 0].astype(float) - image[..., 1]).clip(0)
    assert centre(red) == pytest.approx(at, abs=0.15)


def test_the_colour_is_that_of_the_part() -> None:
    image = ground(0)
    draw_marks(image, [Mark(DISC, 20.5, 20.5, ORANGE, 4.0)])
    assert tuple(image[20, 20].tolist()) == ORANGE
    assert bgr(ORANGE) == (0, 159, 230)


@pytest.mark.parametrize("shape", [DISC, RING, CROSS, SQUARE])
@pytest.mark.parametrize("colour", [WHITE, BLACK, ORANGE])
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("radius", [2.0, 6.0])
def test_every_mark_is_seen_on_white_and_on_black(
    shape: str, colour: tuple[int, int, int], level: int, radius: float
) -> None:
    image = ground(level)
    draw_marks(image, [Mark(shape, 30.0, 30.0, colour, radius)])
    contrast = np.abs(image.astype(int) - level).max(axis=2)
    assert (contrast > 150).sum() >= 8


def test_a_ring_and_the_place_below_it() -> None:
    image = ground(127)
    draw_marks(image, [Mark(RING, 30.5, 30.5, ORANGE, 7.0)])
    assert (image[30, 30] == 127).all()


def test_no_rim_hides_another_mark() -> None:
    image = ground(127)
    draw_marks(image, [Mark(DISC, 30.5, 30.5, ORANGE, 3.0), Mark(DISC, 36.0, 30.5, WHITE, 3.0)])
    assert tuple(image[30, 32].tolist()) == ORANGE


def test_marks_at_the_border_and_beyond() -> None:
    image = ground(127)
    beyond = [(-500.0, 3.0), (1e12, 5.0), (np.nan, 1.0), (np.inf, 1.0)]
    draw_marks(image, [Mark(CROSS, *at, ORANGE, 3.0) for at in beyond])
    assert (image == 127).all()
    draw_marks(image, [Mark(DISC, 0.0, 0.0, ORANGE, 3.0), Mark(DISC, 80.0, 60.0, ORANGE, 3.0)])
    assert tuple(image[0, 0].tolist()) == tuple(image[-1, -1].tolist()) == ORANGE


def test_lines_are_right_to_half_a_pixel_and_break_at_nan() -> None:
    image = ground(127)
    draw_line(image, [(10.0, 20.0), (30.0, 20.0), (np.nan, 1.0), (60.0, 20.0)], WHITE, rim=None)
    change = np.abs(image.astype(float) - 127).sum(axis=2)
    assert centre(change) == pytest.approx((20.0, 20.0), abs=0.5)
    assert not change[:, 34:].any()


def test_a_box_covers_the_px_at_its_edges() -> None:
    image = ground(0)
    draw_box(image, (10.0, 12.0, 40.0, 42.0), WHITE)
    y, x = np.nonzero(image[..., 0])
    assert (x.min(), y.min(), x.max(), y.max()) == (10, 12, 39, 41)
    untouched = image.copy()
    draw_box(image, (np.nan, 1.0, 2.0, 3.0), WHITE)
    assert (image == untouched).all()
