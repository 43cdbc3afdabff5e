"""Numbers with their nouns."""

from __future__ import annotations


def counted(number: int, thing: str, several: str = "") -> str:
    """`1 frame`, `1000 frames`; several: the plural, where it is not `thing` with an s."""
    return f"{number} {thing if number == 1 else several or thing + 's'}"
