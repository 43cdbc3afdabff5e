"""Intervals, calibration, exchanged sides and histograms against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg.report import calibration

NAN = np.nan


def test_bootstrap_draws_whole_frames() -> None:
    # Frame 7 has errors 0 and 1, frame 9 has 10. Drawn anew, the mean is 0.5 (a quarter of the
    # resamples), 11 / 3 (half), or 10 (a quarter).
    distances, frames = [[0.0], [10.0], [1.0]], [7, 9, 7]
    found = calibration.bootstrap_mean(distances, frames, level=0.4)
    np.testing.assert_allclose(found, np.full((2, 2), 11 / 3))
    found = calibration.bootstrap_mean(distances, frames, level=0.95)
    np.testing.assert_allclose(found, [[0.5, 0.5], [10, 10]])


def test_bootstrap_weighs_labels_of_all_parts_alike() -> None:
    # Two frames; together (1 + 3 + 3 + 5) / 4 = 3 of both, 7 / 3 or 5 of one frame twice.
    distances = [[1.0, 3.0], [NAN, 5.0], [3.0, np.inf]]
    found = calibration.bootstrap_mean(distances, [0, 1, 0], level=0.95)
    # The first part is labelled in frame 0 only: nothing tells how it varies between frames.
    np.testing.assert_allclose(found, [[NAN, 3.0, 7 / 3], [NAN, 5.0, 5.0]])


def test_bootstrap_agrees_with_the_standard_error_of_clustered_means() -> None:
    rng = np.random.default_rng(0)
    frame_means = rng.normal(10, 2, 400)
    distances = np.repeat(frame_means, 6).reshape(-1, 3)
    low, high = calibration.bootstrap_mean(distances, np.repeat(np.arange(400), 2))
    expected = 1.96 * frame_means.std() / np.sqrt(400)
    np.testing.assert_allclose((high - low) / 2, expected, rtol=0.06)
    np.testing.assert_allclose((high + low) / 2, frame_means.mean(), atol=0.02)


def test_bootstrap_repeats_itself_and_does_not_depend_on_how_many_fit_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distances = np.random.default_rng(1).exponential(3, (50, 2))
    once = calibration.bootstrap_mean(distances, np.arange(50), seed=4)
    monkeypatch.setattr(calibration, "_DRAWS", 170)
    np.testing.assert_array_equal(
        once, calibration.bootstrap_mean(distances, np.arange(50), seed=4)
    )
    other = calibration.bootstrap_mean(distances, np.arange(50), seed=5)
    assert (once != other).any()


@pytest.mark.parametrize("frames", [0, 1])
def test_bootstrap_of_too_few_frames_is_nan(frames: int) -> None:
    found = calibration.bootstrap_mean(np.ones((frames, 2)), np.zeros(frames))
    np.testing.assert_array_equal(found, np.full((2, 3), NAN))


def test_calibration_by_hand() -> None:
    distances = [[8.0, 4.0, NAN], [6.0, np.inf, 2.0], [1.0, 3.0, 0.0]]
    confidence = [[0.1, 0.2, 0.2], [0.3, 0.4, 0.5], [0.7, 0.6, 0.8]]
    found = calibration.calibration(distances, confidence, radius=4.0, bins=2)
    # Eight labels; the upper of the two in the middle, 0.5, begins the second bin.
    np.testing.assert_allclose(found.edges, [0.1, 0.5, 0.8])
    np.testing.assert_array_equal(found.count, [4, 4])
    np.testing.assert_allclose(found.quartiles, [[5, 0.75], [6, 1.5], [7, 2.25]])
    # 8, 6 and the missing one are beyond; 4 is on the radius.
    np.testing.assert_allclose(found.beyond, [0.75, 0])


def test_calibration_of_equal_confidences_and_of_nothing() -> None:
    found = calibration.calibration([[1.0, 9.0]], [[0.5, 0.5]], radius=4.0)
    assert (found.count.tolist(), found.beyond.tolist()) == ([2], [0.5])
    found = calibration.calibration([[1.0, NAN]], [[NAN, 0.5]], radius=4.0)
    assert (found.count.size, found.quartiles.shape, len(found.edges)) == (0, (3, 0), 1)


def test_calibration_without_a_prediction_in_a_bin() -> None:
    found = calibration.calibration([[np.inf, 2.0]], [[0.1, 0.9]], radius=4.0, bins=2)
    np.testing.assert_array_equal(found.beyond, [0.5])
    found = calibration.calibration([[np.inf] * 2 + [2.0] * 2], [[0.1, 0.2, 0.8, 0.9]], 4.0, 2)
    np.testing.assert_array_equal(found.quartiles, [[NAN, 2], [NAN, 2], [NAN, 2]])


def test_exchanges_by_hand() -> None:
    left, right = [0.0, 0.0], [10.0, 0.0]
    labels = np.array([[left, right]] * 6 + [[left, [NAN, NAN]]])
    predictions = np.array(
        [
            [left, right],
            [right, left],  # exchanged
            [right, right],  # both at the right
            [left, [4.0, 3.0]],  # right nearer to the left
            [[5.0, 0.0], right],  # as near to both: no exchange
            [[NAN, NAN], left],  # not judged
            [right, left],  # not judged: the right is unlabelled
        ]
    )
    visibility = np.full((7, 2), 2)
    assert calibration.exchanges(predictions, labels, visibility, [(0, 1)]) == [
        calibration.Exchange(judged=5, first=2, second=2, both=1)
    ]
    visibility[1, 0] = 0
    assert calibration.exchanges(predictions, labels, visibility, [(1, 0)]) == [
        calibration.Exchange(judged=4, first=1, second=1, both=0)
    ]
    assert calibration.exchanges(predictions, labels, visibility, []) == []


def test_histogram_of_oks() -> None:
    edges, counts = calibration.histogram_of_oks([0.0, 0.24, 0.25, 0.5, 1.0, NAN], bins=4)
    np.testing.assert_array_equal(edges, [0, 0.25, 0.5, 0.75, 1])
    assert counts.tolist() == [2, 1, 1, 1]
    assert calibration.histogram_of_oks([NAN], bins=2)[1].tolist() == [0, 0]
