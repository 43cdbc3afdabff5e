"""Which frames are chosen of doubtful ones."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg.inference.video.suggest.choose import CANDIDATES, Film, candidates, even, pick


def film(doubt, labelled=(), rate: float = 10) -> Film:
    doubt = np.asarray(doubt, float)
    free = np.ones(len(doubt), bool)
    free[list(labelled)] = False
    return Film(np.arange(len(doubt)) / rate, doubt, free)


def test_even_frames_go_through_all_films_and_leave_labelled_ones_out() -> None:
    films = [film(np.zeros(300), labelled=range(0, 300, 2)), film(np.zeros(150))]
    found = even(films, 30, seed=1)
    assert len(set(found)) == 30
    assert all(films[f].open[n] for f, n in found)
    assert 14 <= sum(f == 0 for f, _ in found) <= 16
    assert found == even(films, 30, seed=1) != even(films, 30, seed=2)


def test_candidates_keep_apart_and_none_is_labelled() -> None:
    doubt = np.random.default_rng(0).random(1000)
    doubt[500:520] = 9
    films = [film(doubt, labelled=[100])]
    found = candidates(films, 10, taken=[(0, 700)])
    times = films[0].times[[n for _, n in found]]
    # Ten even frames would be 10 s apart; a second is enough.
    assert np.diff(times).min() >= 1 - 1e-9
    assert all(abs(time - 70) >= 1 - 1e-9 and time != 10 for time in times)
    assert len(found) <= CANDIDATES * 10
    assert sum(500 <= n < 520 for _, n in found) == 2


def test_every_film_has_candidates_and_a_doubtful_one_has_more() -> None:
    films = [film(np.full(1000, 5.0)), film(np.full(1000, 1.0)), film(np.full(1000, 1.0))]
    found = [f for f, _ in candidates(films, 9, taken=[])]
    counts = [found.count(f) for f in range(3)]
    assert min(counts) >= CANDIDATES * 9 / 3 / 2
    assert counts[0] > 2 * counts[1]


@pytest.mark.parametrize("count", [1, 3])
def test_a_second_picture_of_the_same_comes_last(count: int) -> None:
    looks = np.array([[0.0, 0], [0.01, 0], [5, 5], [9, 0]])
    chosen = pick(
        *(np.zeros(4, int), np.array([9.0, 8.9, 3, 2]), looks, count),
        taken=np.zeros((0, 2)),
        already={},
    )
    assert chosen[0] == 0
    assert len(chosen) == count
    assert 1 not in chosen


def test_what_is_like_a_frame_chosen_before_is_not_chosen() -> None:
    looks = np.array([[0.0, 0], [5, 5], [9, 0]])
    chosen = pick(
        *(np.zeros(3, int), np.array([9.0, 3, 2]), looks, 1),
        taken=np.array([[0.0, 0.01]]),
        already={0: 1},
    )
    assert chosen == [1]


def test_a_film_of_few_doubts_gets_half_of_an_even_share() -> None:
    random = np.random.default_rng(0)
    films = np.repeat([0, 1], 40)
    chosen = pick(
        *(films, np.where(films == 0, 10.0, 0.1), random.random((80, 4)), 20),
        taken=np.zeros((0, 4)),
        already={1: 2},
    )
    # 22 frames with those chosen before: at least 5 of each film.
    assert (films[chosen] == 1).sum() == 3


def test_without_doubts_pictures_decide() -> None:
    looks = np.array([[0.0], [0.1], [0.2], [9.0]])
    chosen = pick(np.zeros(4, int), np.zeros(4), looks, 2, taken=np.zeros((0, 1)), already={})
    assert chosen == [0, 3]
