"""Numbers with their nouns, and durations."""

from __future__ import annotations

import pytest

from fasthg.words import counted, duration


def test_one_is_singular_and_none_is_plural() -> None:
    found = [counted(number, "frame") for number in (0, 1, 2)]
    assert found == ["0 frames", "1 frame", "2 frames"]
    assert [counted(n, "mouse", "mice") for n in (1, 2)] == ["1 mouse", "2 mice"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (40.4, "40 s"), (59.4, "59 s"), (59.6, "1 min 00 s")),
        *((125, "2 min 05 s"), (599.4, "9 min 59 s"), (599.6, "10 min"), (3569, "59 min")),
        *((3570, "1 h 00 min"), (7500, "2 h 05 min"), (172_769, "47 h 59 min")),
        *((172_770, "2.0 days"), (859_000, "9.9 days"), (860_000, "10 days")),
        (27_302_400, "316 days"),
    ],
)
def test_a_duration_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
