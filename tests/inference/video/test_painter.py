"""What an overlay draws into a frame, and where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_rows import BLUE, GREEN, HEIGHT, RED, STYLE, WIDTH, pose, rows

from fasthg.config import Config
from fasthg.drawing.palette import animal_colours
from fasthg.errors import ConfigError
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.painter import (
    BOTTOM_LEFT,
    BOTTOM_RIGHT,
    TOP_LEFT,
    TOP_RIGHT,
    Painter,
    Style,
    animal_sizes,
    caption,
    quietest,
)
from fasthg.inference.video.predict_source import Options


def ground(level: int = 100, number: int = 0) -> Frame:
    return Frame(number, number / 25, np.full((HEIGHT, WIDTH, 3), level, np.uint8), "")


def at(image: np.ndarray, point: np.ndarray) -> tuple[int, ...]:
    """The colour, red green blue, of the px at a position."""
    x, y = np.floor(point).astype(int)
    return tuple(image[y, x, ::-1].tolist())


@pytest.mark.parametrize("level", [0, 100, 255])
def test_every_part_has_its_colour_at_its_place(level: int) -> None:
    points = pose(250, 200)
    frame = ground(level)
    image = Painter(rows(points[None, None]), STYLE).draw(frame)
    assert [at(image, point) for point in points] == [RED, GREEN, BLUE]
    assert (frame.image == level).all(), "drawn on a copy"
    nose = image[190:211, 240:261].astype(int)
    assert (np.abs(nose - level).max(axis=2) > 90).sum() > 8


def test_an_unsure_part_is_hollow_and_has_no_line() -> None:
    points = pose(250, 200)
    made = rows(points[None, None], scores=np.array([[[0.9, 0.2, 0.9]]], np.float32))
    style = replace(STYLE, skeleton=((0, 2), (0, 1)))
    image = Painter(made, style).draw(ground())
    assert at(image, points[1]) == pytest.approx((100, 100, 100), abs=5)
    around = image[205:216, 305:316].reshape(-1, 3)
    assert (around == GREEN).all(axis=1).any()
    assert min(at(image, (points[0] + points[2]) / 2)) > 200
    assert at(image, (points[0] + points[1]) / 2) == (100, 100, 100)


def test_sizes_follow_the_frame_and_the_animal() -> None:
    def red(points: np.ndarray, side: int) -> int:
        frame = Frame(0, 0.0, np.full((side, side, 3), 100, np.uint8), "")
        image = Painter(rows(points[None, None]), STYLE).draw(frame)
        x, y = np.floor(points[0]).astype(int)
        return int((image[y - 30 : y + 30, x - 30 : x + 30] == RED[::-1]).all(axis=2).sum())

    small, large = np.array([[0, 0], [30, 5], [20, 45]]) + 300.0, pose(300, 300) * 1.0
    assert 3 < red(small, 640) < red((large - 300) * 2 + 300, 640)
    assert red(small, 640) < red(small, 2000)


def test_animals_are_told_apart_by_colour_and_name() -> None:
    both = np.stack([pose(100, 150), pose(400, 250)])[None]
    made = rows(both, ("black", "white"))
    image = Painter(made, STYLE).draw(ground())
    for animal, colour in enumerate(animal_colours(2)):
        x1, y1, x2, _ = made.boxes[0, animal]
        assert at(image, np.array([(x1 + x2) / 2, y1 + 0.5])) == colour
        above = image[round(y1) - 14 : round(y1) - 2, round(x1) : round(x1) + 30]
        assert (above == colour[::-1]).all(axis=2).sum() > 50
    alone = Painter(rows(both[:, :1]), STYLE).draw(ground())
    top = round(made.boxes[0, 0, 1])
    assert (alone[top - 14 : top - 2, 90:120] == 100).all(), "one animal has no name tag"


def test_a_trail_shows_the_frames_before_and_no_more() -> None:
    way = np.stack([pose(100 + 20.0 * k, 200) for k in range(10)])[:, None]
    made = rows(way)
    middle = way[:, 0].mean(axis=1)
    for trail, first in ((0, 9), (3, 6)):
        image = Painter(made, replace(STYLE, trail=trail)).draw(ground(number=9))
        shown = [at(image, middle[k] + (-7, 0)) != (100, 100, 100) for k in range(1, 10)]
        assert shown == [k > first for k in range(1, 10)]
    images = replace(made, names=tuple(f"{k}.png" for k in range(10)))
    image = Painter(images, replace(STYLE, trail=9)).draw(ground(number=9))
    assert at(image, middle[5]) == (100, 100, 100), "images follow no order in time"


def test_what_is_missing_is_not_drawn() -> None:
    points = np.full((2, 1, 3, 2), np.nan)
    made = rows(pose(250, 200)[None, None])
    empty = replace(
        made,
        keypoints=points,
        boxes=np.full((2, 1, 4), np.nan),
        scores=np.full((2, 1, 3), np.nan, np.float32),
        times=np.array([0.0, np.nan]),
    )
    style = replace(STYLE, trail=5, skeleton=((0, 1),))
    painter = Painter(empty, style)
    image = painter.draw(replace(ground(number=1), time=np.nan))
    assert (image[60:400, 60:550] == 100).all()


def test_the_legend_hides_no_animal() -> None:
    for x, y, corner in ((20, 20, TOP_LEFT), (560, 370, BOTTOM_RIGHT), (570, 10, TOP_RIGHT)):
        points = pose(x, y)
        image = Painter(rows(points[None, None]), STYLE).draw(ground())
        seen = [at(image, point) for point in points if (point < (WIDTH, HEIGHT)).all()]
        assert seen == [RED, GREEN, BLUE][: len(seen)], corner
    many = np.array([[5, 5], [630, 5], [630, 470]], float)
    corners = [TOP_LEFT, TOP_RIGHT, BOTTOM_RIGHT, BOTTOM_LEFT]
    assert quietest(many, (50, 50), (WIDTH, HEIGHT), corners) == BOTTOM_LEFT


def test_a_legend_that_would_hide_the_picture_is_left_out() -> None:
    names = tuple(f"part {k}" for k in range(30))
    points = np.tile(np.array([[60.0, 50.0]]), (30, 1))
    style = Style(names, (RED,) * 30, (), 0.5)
    frame = Frame(0, 0.0, np.full((96, 128, 3), 100, np.uint8), "")
    made = replace(rows(points[None, None]), parts=names, boxes=np.full((1, 1, 4), np.nan))
    image = Painter(made, style).draw(frame)
    assert (image == 100).all(axis=2).mean() > 0.7


def test_a_legend_that_would_hide_animals_in_every_corner_is_left_out() -> None:
    corners = np.array([[20, 20], [620, 20], [620, 460], [20, 460]], float)
    names = ("a", "b", "c", "d")
    style = Style(names, (RED,) * 4, (), 0.5)
    made = replace(rows(corners[None, None]), parts=names, boxes=np.full((1, 1, 4), np.nan))
    image = Painter(made, style).draw(ground())
    assert [at(image, point) for point in corners] == [RED] * 4
    # A legend shades its ground.
    shaded = (image == 45).all(axis=2).mean()
    inside = np.array([[300, 200], [330, 200], [330, 260], [300, 260]], float)
    beside = Painter(replace(made, keypoints=inside[None, None]), style).draw(ground())
    assert shaded < 1e-4 < (beside == 45).all(axis=2).mean()


def test_caption() -> None:
    assert caption(ground(number=2000)) == "frame 2000  1:20.00"
    assert caption(replace(ground(number=3), time=np.nan)) == "frame 3"
    assert caption(replace(ground(), name="img01.png")) == "img01.png"


def test_size_of_an_animal_of_one_part_is_that_of_its_box() -> None:
    points = np.array([[[[10.0, 10.0], [np.nan, np.nan]], [[0.0, 5.0], [30.0, 9.0]]]])
    boxes = np.array([[[0.0, 0.0, 40.0, 25.0], [np.nan] * 4]])
    assert animal_sizes(points, boxes).tolist() == [[40.0, 30.0]]


def test_style_takes_the_colours_and_skeleton_of_the_configuration() -> None:
    parts = {"NUM_PARTS": 2, "NAMES": ["a", "b"], "SIGMAS": [1, 1], "LEFT_RIGHT_PAIRS": []}
    parts |= {"COLORS": ["red", "#00ff00"], "SKELETON": [[0, 1]]}
    config = Config(PARTS=parts, DO_RANDOM_FLIP_LEFT_RIGHT=False)
    assert Style.of(config, 0.3, 5) == Style(("a", "b"), (RED, GREEN), ((0, 1),), 0.3, 5)


def test_a_trail_without_an_overlay_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--trail: .* add --overlay"):
        Options(trail=3).check()
    Options(trail=3, overlay=True).check()
