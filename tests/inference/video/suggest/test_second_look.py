"""Poses that move with the crop are told from those that stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from film_rows import PARTS, film_rows

from fasthg.config import Parts
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.suggest.second_look import look_again, wanted

WIDTH, HEIGHT = 640, 480


class Film:
    """Frames whose left upper pixel is bright: in a mirrored one it is not there."""

    def frames(self, start: int = 0) -> Iterator[Frame]:
        for number in range(start, 10):
            image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            image[0, 0] = 255
            yield Frame(number, number / 25, None if number == 7 else image, "")


def parts(*, named: bool = True) -> Parts:
    """nose and hip are left and right of each other; named: in a way that tells."""
    names = ("left ear", "neck", "right ear", "tail") if not named else PARTS
    return Parts(
        NUM_PARTS=4, NAMES=names, SIGMAS=(1.0,) * 4, LEFT_RIGHT_PAIRS=((0, 2),) if named else ()
    )


def network(rows: Any, moving: int, *, mirrored: list[bool] | None = None) -> Any:
    """Sees the truth, and in the boxes of one animal a tail in their middle."""

    def look(items: Any) -> Any:
        ((image, boxes),) = items
        turned = not image[0, 0].any()
        if mirrored is not None:
            mirrored.append(turned)
        points = rows.keypoints[3].copy()
        if turned:
            points[..., 0] = WIDTH - points[..., 0]
            points = points[:, [2, 1, 0, 3]]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        points[moving, 3] = centres[moving]
        return [(points, np.ones((len(boxes), 4)))]

    return look


@pytest.mark.parametrize("moving", [0, 1])
def test_the_animal_whose_part_follows_the_crop_is_unstable(moving: int) -> None:
    rows = film_rows(frames=10, animals=2)
    seen = look_again(
        *(Film(), rows, [3], network(rows, moving), parts(), lambda image: False, lambda done: None)  # type: ignore[arg-type]
    )[3]
    assert seen.moved[1 - moving] == pytest.approx(0, abs=1e-9)
    assert seen.moved[moving] > 0.1
    assert seen.place == (moving, 3)
    assert not seen.labelled


def test_frames_are_not_mirrored_where_sides_are_in_doubt() -> None:
    rows, mirrored = film_rows(frames=10, animals=2), []
    for named in (True, False):
        own: list[bool] = []
        look_again(
            *(Film(), rows, [3], network(rows, 0, mirrored=own), parts(named=named)),  # type: ignore[arg-type]
            lambda image: False,
            lambda done: None,
        )
        mirrored.append(own)
    assert mirrored == [[False, False, True], [False, False]]


def test_missing_animals_and_frames_without_a_picture() -> None:
    rows = film_rows(frames=10, animals=2)
    rows.boxes[5, 1], rows.boxes[6] = np.nan, np.nan
    told: list[int] = []
    seen = look_again(
        *(Film(), rows, [5, 6, 7], lambda items: [(np.zeros((len(items[0][1]), 4, 2)), None)]),  # type: ignore[arg-type,return-value]
        *(parts(), lambda image: True, told.append),
    )
    assert [*seen] == [5, 6]
    assert told == [1, 2]
    assert np.isnan(seen[5].moved).tolist() == [False, True]
    assert np.isnan(seen[6].moved).all()
    assert seen[6].crop_look.tolist() == [0.0] * (2 * 16 * 16)
    assert seen[5].labelled


def test_pictures_of_some_frames() -> None:
    assert [*wanted(Film(), [8, 2, 7])] == [2, 8]  # type: ignore[arg-type]
    assert wanted(Film(), []) == {}  # type: ignore[arg-type]
