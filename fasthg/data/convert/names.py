"""Names of parts: chosen, renamed and ordered by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fasthg.errors import ConfigError, DataError


def parse_parts(text: str | None) -> dict[str, str] | None:
    """`nose=snout, tail` as {name in the project: name to write}, in the order given.

    None for None: every part under its own name. Raises ConfigError where a name is empty or twice.
    """
    if text is None:
        return None
    pairs = []
    for item in text.split(","):
        old, equals, new = (side.strip() for side in item.partition("="))
        pairs.append((old, new if equals else old))
    for names in zip(*pairs, strict=True):
        for name in names:
            if not name or names.count(name) > 1:
                what = f"{name!r} is there twice" if name else f"an empty name in {text!r}"
                raise ConfigError(f"--parts: {what}; write old=new,kept,... with each name once")
    return dict(pairs)


def choose_parts(
    own: Sequence[str], chosen: Mapping[str, str] | None, where: str | Path
) -> dict[str, str]:
    """The parts to write of a project's `own`, as {own name: name written}.

    Raises DataError, beginning with `where`, for a chosen part that the project lacks, and for a
    name that two of its parts have.
    """
    twice = [name for name in dict.fromkeys(own) if list(own).count(name) > 1]
    if twice:
        raise DataError(f"{where}: several body parts are named {', '.join(twice)}; rename them")
    if chosen is None:
        return {name: name for name in own}
    unknown = [name for name in chosen if name not in own]
    if unknown:
        raise DataError(
            f"{where}: no body part named {', '.join(unknown)}; there are {', '.join(own)}"
        )
    return dict(chosen)
