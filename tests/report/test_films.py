"""Errors by film: which frames are of which, and when the page tells them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from fasthg.report.accuracy import Known
from fasthg.report.films import by_film


def known(ids: Sequence[str], distances: Any) -> Known:
    """One animal a frame; ids: of the frames; distances (frames, 2) px."""
    rows = np.arange(len(ids))
    index = SimpleNamespace(record=rows, image_id=lambda record: ids[record])
    evaluation = SimpleNamespace(index=index, predictions=SimpleNamespace(instance=rows))
    return Known(
        cast(Any, evaluation), ("nose", "tail"), np.asarray(distances), np.zeros((2, 3)), None
    )


def test_the_film_with_the_largest_error_comes_first() -> None:
    ids = ["day1/img1", "day1/img2", "day2/img1", "day2/img2", "day2/img3"]
    distances = [[1.0, 1.0], [1.0, 3.0], [4.0, 9.0], [np.nan, 8.0], [4.0, 5.0]]
    page = "".join(by_film(known(ids, distances)))
    assert page.index("<td>day2</td>") < page.index("<td>day1</td>")
    assert '<td>day2</td><td class="number">6.00</td>' in page
    assert '<td>day1</td><td class="number">1.50</td>' in page
    assert '<td>tail</td><td class="number">3</td><td class="number">3</td>' in page
    assert "all parts" not in page


def test_nothing_is_said_of_one_film_or_of_frames_that_are_each_their_own() -> None:
    for ids in (["a_1", "a_2", "a_3"], ["1", "2", "3"], ["ab", "cd", "ef"]):
        assert not list(by_film(known(ids, np.ones((3, 2)))))


def test_a_film_without_labels_has_no_row() -> None:
    ids = ["a/1", "a/2", "b/1", "b/2"]
    page = "".join(by_film(known(ids, [[1.0, 1.0]] * 2 + [[np.nan] * 2] * 2)))
    assert "<td>a</td>" in page and "<td>b</td>" not in page
