"""Stages side by side: order, bounds, errors and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fasthg.inference.video.pipeline import Clock, ahead


def running() -> int:
    return sum(thread.name == "fasthg-stage" for thread in threading.enumerate())


def test_order_is_kept_and_no_more_than_the_depth_is_made_ahead() -> None:
    made: list[int] = []

    def work() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    taken = []
    for number in ahead(work(), 3):
        time.sleep(0.002)
        taken.append(number)
        # Three in the queue, one in the hands of its thread.
        assert len(made) - len(taken) <= 3 + 1
    assert taken == list(range(50))
    assert running() == 0


def test_an_error_in_the_first_of_three_stages_ends_all() -> None:
    def work() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("out of frames")

    def second(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            yield item * 10

    seen = []
    with pytest.raises(ValueError, match="out of frames"):
        for item in ahead(second(ahead(second(ahead(work(), 1)), 1)), 1):
            seen.append(item)
    assert seen == [100, 200]
    assert running() == 0


def test_leaving_early_ends_all_and_closes_the_source() -> None:
    closed: list[bool] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    stages = ahead(ahead(endless(), 2), 2)
    assert next(stages) == 1
    stages.close()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (running(), closed) == (0, [True])


def test_the_clock_leaves_out_waiting() -> None:
    clock = Clock()

    def quick() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.01)
            yield number

    for _ in clock.each("quick", quick()):
        time.sleep(0.05)
    assert 0.05 <= clock.seconds["quick"] < 0.2
