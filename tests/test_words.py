"""Numbers with their nouns."""

from __future__ import annotations

from fasthg.words import counted


def test_one_is_singular_and_none_is_plural() -> None:
    found = [counted(number, "frame") for number in (0, 1, 2)]
    assert found == ["0 frames", "1 frame", "2 frames"]
    assert [counted(n, "mouse", "mice") for n in (1, 2)] == ["1 mouse", "2 mice"]
