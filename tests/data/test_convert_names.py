"""Names of parts: chosen on the command line, and paired by left and right."""

from __future__ import annotations

import pytest

from fasthg.data.convert.names import left_right_pairs, parse_parts
from fasthg.errors import ConfigError


def test_parse_parts() -> None:
    assert parse_parts(None) is None
    assert parse_parts("nose=snout, tail ,left ear = ear=L") == {
        "nose": "snout",
        "tail": "tail",
        "left ear": "ear=L",
    }
    assert list(parse_parts("b,a") or ()) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nose,nose=snout", "'nose' is there twice"),
        ("nose=a,tail=a", "'a' is there twice"),
        ("nose,", "an empty name in 'nose,'"),
        ("nose=", "an empty name in 'nose='"),
        ("", "an empty name in ''"),
    ],
)
def test_bad_parts(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--parts: {message}; write old=new"):
        parse_parts(text)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "right ear", "left ear", "base of tail"], [(2, 1)]),
        (["leftear", "rightear"], [(0, 1)]),
        (["earL", "earR", "hip_r", "hip_l"], [(0, 1), (3, 2)]),
        (["L-Ear", "R-Ear", "EyeLeft", "EyeRight"], [(0, 1), (2, 3)]),
        (["top_left_corner", "top_right_corner", "bottom_left_corner"], [(0, 1)]),
        (["rear", "lear", "l", "tail", "tair"], []),
        (["left left ear", "right right ear", "bright", "upright"], []),
        ([], []),
    ],
)
def test_left_right_pairs(names: list[str], pairs: list[tuple[int, int]]) -> None:
    assert left_right_pairs(names) == pairs
