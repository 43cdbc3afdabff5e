"""Which frames look doubtful, and why."""

from __future__ import annotations

import numpy as np
import pytest
from film_rows import film_rows

from fasthg.inference.video.suggest.doubts import (
    JUMP,
    MISSING,
    SCORE,
    SHAPE,
    doubts,
    surprise,
)


def test_surprise_is_the_rarity_of_a_value() -> None:
    found = surprise(np.array([0.0, 3.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, [0, np.log(4), 0, np.log(2)])


def test_a_jump_is_that_of_the_frame_and_not_of_its_neighbours() -> None:
    rows = film_rows(animals=2)
    rows.keypoints[40, 1, 2] += [30, 0]
    (found,) = doubts([rows])
    assert found.measures[JUMP].argmax() == 40
    # Between the frames before and after, half of the way is left to either neighbour.
    assert found.reason(40) in [(JUMP, "hip of animal2"), (SHAPE, "neck-hip of animal2")]
    assert found.places[JUMP][40] == "hip of animal2"


def test_steady_motion_is_no_jump() -> None:
    slow, fast = film_rows(speed=0.0), film_rows(speed=20.0)
    for rows in (slow, fast):
        rows.keypoints[100] = np.nan
    np.testing.assert_allclose(
        doubts([slow])[0].measures[JUMP], doubts([fast])[0].measures[JUMP], atol=1e-6
    )


def test_a_bone_too_short_and_one_too_long_are_unusual() -> None:
    rows = film_rows()
    rows.keypoints[30, 0, 0] = rows.keypoints[30, 0, 1] + 1  # the nose on the neck
    rows.keypoints[90, 0] = rows.keypoints[90, 0, 1] + 2.5 * (
        rows.keypoints[90, 0] - rows.keypoints[90, 0, 1]
    )
    (found,) = doubts([rows])
    assert {*np.argsort(-found.measures[SHAPE])[:2].tolist()} == {30, 90}
    assert "nose" in found.places[SHAPE][30]


def test_a_low_score_of_one_part_counts_and_a_worse_film_is_more_doubtful() -> None:
    good, bad = film_rows(), film_rows()
    good.scores[17, 0, 3] = 0.1
    bad.scores[:] -= 0.3
    of_good, of_bad = doubts([good, bad])
    assert of_good.measures[SCORE].argmax() == 17
    assert of_good.places[SCORE][17] == "tail"
    assert np.median(of_bad.measures[SCORE]) > np.median(of_good.measures[SCORE]) + 0.5


def test_an_animal_gone_for_long_is_less_doubtful_than_one_missing_for_a_moment() -> None:
    rows = film_rows(animals=2, frames=400)
    rows.keypoints[50, 0] = np.nan
    rows.keypoints[100:300, 1] = np.nan  # eight seconds
    rows.sizes[350] = 0  # cannot be decoded: nobody knows whether it is there
    rows.keypoints[350] = np.nan
    (found,) = doubts([rows])
    missing = found.measures[MISSING]
    assert missing.argmax() == 50
    assert found.places[MISSING][50] == "animal1"
    assert 0 < missing[200] < missing[50]
    assert missing[350] == 0


def test_a_perfect_film_has_no_doubts() -> None:
    rows = film_rows(speed=0)
    rows.keypoints[:] = rows.keypoints[:1]
    rows.scores[:] = 0.9
    (found,) = doubts([rows])
    assert found.total().max() == 0
    assert found.reason(3) == ("", "")


@pytest.mark.parametrize("animals", [1, 2])
def test_a_film_in_which_nothing_was_found_has_doubts_of_one_kind_alone(animals: int) -> None:
    rows = film_rows(animals=animals)
    rows.keypoints[:], rows.boxes[:], rows.scores[:] = np.nan, np.nan, np.nan
    found, other = doubts([rows, film_rows(animals=animals)])
    assert found.measures[MISSING].min() > 0
    assert all(np.isfinite(each.total()).all() for each in (found, other))
