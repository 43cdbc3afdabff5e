"""Names of parts, chosen on the command line."""

from __future__ import annotations

import pytest

from fasthg.data.convert.names import parse_parts
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
