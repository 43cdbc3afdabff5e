"""Many workers' labels of one animal: repaired swaps, medians."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg.data.convert.crowd import consensus, repair_swaps

TRUTH = np.array([[50, 20], [60, 30], [40, 30], [50, 80]], float)
OFFSETS = np.array([[0, 0], [1, -1], [-1, 1], [2, 0.5], [-2, -0.5]])


def workers() -> np.ndarray:
    """Five workers scattered about the truth, (workers, parts, 2) px."""
    return TRUTH + OFFSETS[:, None]


@pytest.mark.parametrize("wrong", [[0], [1, 3], [0, 4]])
def test_swaps_are_repaired_up_to_two_of_five(wrong: list[int]) -> None:
    labels = workers()
    swapped = labels.copy()
    swapped[wrong, 1], swapped[wrong, 2] = labels[wrong, 2], labels[wrong, 1]
    repaired, count = repair_swaps(swapped, [(1, 2)])
    assert count == len(wrong)
    np.testing.assert_array_equal(repaired, labels)
    assert not np.array_equal(swapped, labels), "the argument stays as it is"


def test_two_workers_outvote_nobody() -> None:
    labels = workers()[:2].copy()
    labels[1, [1, 2]] = labels[1, [2, 1]]
    repaired, count = repair_swaps(labels, [(1, 2)])
    assert count == 0
    np.testing.assert_array_equal(repaired, labels)


def test_workers_who_left_out_one_of_a_pair_do_not_vote() -> None:
    labels = workers().copy()
    labels[0, 1] = np.nan
    labels[4, [1, 2]] = labels[4, [2, 1]]
    repaired, count = repair_swaps(labels, [(1, 2)])
    assert count == 1
    np.testing.assert_array_equal(repaired[1:], workers()[1:])
    np.testing.assert_array_equal(repaired[0], labels[0])


def test_consensus_of_nobody_is_nan() -> None:
    labels = np.full((3, 2, 2), np.nan)
    labels[:, 0] = [[1, 10], [2, 30], [9, 20]]
    np.testing.assert_array_equal(consensus(labels), [[2, 20], [np.nan, np.nan]])
