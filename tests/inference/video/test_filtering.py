"""Trajectories after treatment: what each step does, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fasthg.errors import ConfigError
from fasthg.inference.video.filtering import Filter, filtered, irregular
from fasthg.inference.video.row_store import Rows


def rows(x: np.ndarray, *, times: np.ndarray | None = None, animals: int = 1) -> Rows:
    """A walk of one part of animal 1 along x (frames,), y = -x; others stand still at 5, 5."""
    count = len(x)
    keypoints = np.full((count, animals, 1, 2), 5.0)
    keypoints[:, 0, 0] = np.stack([x, -x], axis=1)
    scores = np.where(np.isfinite(keypoints[..., 0]), 0.9, np.nan).astype(np.float32)
    return Rows(
        *(Path("a.mp4"), (), tuple("ab"[:animals]), ("nose",)),
        times=np.arange(count) / 25 if times is None else times,
        keypoints=keypoints,
        scores=scores,
        boxes=np.zeros((count, animals, 4)),
        sizes=np.full((count, 2), 64, np.int32),
        image_ids={},
    )


def x_of(found: Rows) -> np.ndarray:
    np.testing.assert_allclose(found.keypoints[:, 0, 0, 1], -found.keypoints[:, 0, 0, 0])
    return found.keypoints[:, 0, 0, 0]


RAMP = np.arange(20.0)


def test_a_median_removes_a_jump_of_one_frame_and_keeps_a_walk() -> None:
    jump = RAMP.copy()
    jump[9] = 400
    given = rows(jump)
    found = x_of(filtered(given, Filter(method="median", window=5)))
    far = [*range(7), *range(12, 20)]
    np.testing.assert_allclose(found[far], RAMP[far])
    np.testing.assert_allclose(found, RAMP, atol=1)
    np.testing.assert_array_equal(given.keypoints[:, 0, 0, 0], jump)


def test_savitzky_golay_keeps_a_parabola_to_its_ends_and_lessens_noise() -> None:
    parabola = 0.3 * RAMP**2 - 4 * RAMP
    settings = Filter(method="savgol", window=7, order=2)
    np.testing.assert_allclose(x_of(filtered(rows(parabola), settings)), parabola, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=200)
    assert x_of(filtered(rows(noise), settings)).std() < 0.75 * noise.std()


@pytest.mark.parametrize("method", ["median", "savgol"])
def test_nothing_is_smoothed_across_a_gap(method: str) -> None:
    walk = np.concatenate([RAMP[:9], [np.nan], 100 + RAMP[:3], [np.nan] * 2, 500 + RAMP[:8]])
    found = x_of(filtered(rows(walk), Filter(method=method)))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(walk))
    np.testing.assert_allclose(found[~np.isnan(walk)], walk[~np.isnan(walk)], atol=1e-9)


def test_gaps_of_at_most_n_frames_are_filled_with_score_0() -> None:
    walk = RAMP.copy()
    walk[[0, 3, 4, 8, 9, 10, 19]] = np.nan
    found = filtered(rows(walk), Filter(fill=2))
    expected = walk.copy()
    expected[3:5] = 3, 4
    np.testing.assert_allclose(x_of(found), expected)
    assert (found.scores[3:5] == 0).all()
    np.testing.assert_array_equal(found.scores[[1, 2, 5]], np.float32(0.9))
    assert np.isnan(found.scores[8:11]).all()


def test_gaps_are_filled_in_time_and_by_frames_where_times_do_not_rise() -> None:
    walk, times = np.array([0.0, np.nan, np.nan, 4.0]), np.array([0.0, 0.1, 0.2, 0.4])
    assert x_of(filtered(rows(walk, times=times), Filter(fill=2))).tolist() == [0, 1, 2, 4]
    times[2] = 0.1
    found = x_of(filtered(rows(walk, times=times), Filter(fill=2)))
    np.testing.assert_allclose(found, [0, 4 / 3, 8 / 3, 4])


def test_unsure_points_are_left_out_and_keep_their_score() -> None:
    given = rows(RAMP)
    given.scores[5], given.scores[12:16] = 0.2, 0.1
    found = filtered(given, Filter(score=0.3))
    assert np.flatnonzero(np.isnan(x_of(found))).tolist() == [5, 12, 13, 14, 15]
    np.testing.assert_array_equal(found.scores, given.scores)
    found = filtered(given, Filter(score=0.3, fill=1))
    assert x_of(found)[5] == 5 and found.scores[5] == 0
    assert np.isnan(x_of(found)[12:16]).all()


def test_other_animals_and_parts_are_not_touched() -> None:
    jump = RAMP.copy()
    jump[9], jump[14] = 400, np.nan
    found = filtered(rows(jump, animals=2), Filter(0.3, 3, "median"))
    assert (found.keypoints[:, 1] == 5).all() and (found.scores[:, 1] == np.float32(0.9)).all()


def test_frames_that_do_not_follow_evenly_are_named() -> None:
    assert irregular(np.arange(9) / 25) == irregular(np.full(9, np.nan)) == []
    (note,) = irregular(np.array([0, 0.04, 0.08, 0.2, 0.24]))
    assert note.startswith("1 of 4 steps between frames are not the usual 40")


def test_options() -> None:
    assert Filter.parse(None, None, None) is None
    assert Filter.parse("median", None, None) == Filter(method="median", window=5)
    assert Filter.parse("savgol:9", 0.2, 4) == Filter(0.2, 4, "savgol", 9, 2)
    assert str(Filter.parse("savgol:9:3", 0.2, 4)) == "score 0.2, fill 4, savgol:9:3"
    assert Filter.parse(None, 0.5, None) == Filter(score=0.5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kalman", "give median:5 or savgol:7:2"),
        ("median:5:2", "give median:5 or savgol:7:2"),
        ("median:x", "give median:5 or savgol:7:2"),
        ("median:4", "a window is 3, 5, 7"),
        ("savgol:5:5", "the order is less than the window, 5"),
    ],
)
def test_filters_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"--filter {text}: {why}"):
        Filter.parse(text, None, None)
