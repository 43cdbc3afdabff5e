"""Numbers with their nouns, and durations."""

from __future__ import annotations


def counted(number: int, thing: str, several: str = "") -> str:
    """`1 frame`, `1000 frames`; several: the plural, where it is not `thing` with an s."""
    return f"{number} {thing if number == 1 else several or thing + 's'}"


def duration(seconds: float) -> str:
    """How long something takes, to two units at most: `40 s`, `2 min 05 s`, `12 min`, `2 h 05 min`,
    `2.5 days`, `316 days`."""
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 9.95 else f"{days:.0f} days"
