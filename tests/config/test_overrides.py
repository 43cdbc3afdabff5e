"""Overrides from the command line: `KEY=VALUE`, validated with the file as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasthg.config import load_config, parse_override
from fasthg.errors import ConfigError

STOCK = Path(__file__).with_name("stock_config_train.yaml")


def faults(*overrides: str) -> list[str]:
    """The lines of the error that overrides of the stock file cause."""
    with pytest.raises(ConfigError) as caught:
        load_config(STOCK, overrides)
    return str(caught.value).split("\n")


def test_several_overrides_are_validated_together() -> None:
    cfg = load_config(
        STOCK,
        [
            "PARTS.NUM_PARTS=4",
            "PARTS.NAMES=[snout, leftear, rightear, tailbase]",
            "PARTS.LEFT_RIGHT_PAIRS=[[1,2]]",
            "PARTS.SIGMAS=[1, 1, 1, 1.5]",
            "BATCH_SIZE=4",
            "BATCH_SIZE=16",
            "RUN_NAME=",
            "DATA.TRAIN=a/train*",
        ],
    )
    assert cfg.PARTS.NUM_PARTS == 4
    assert cfg.PARTS.LEFT_RIGHT_PAIRS == ((1, 2),)
    assert cfg.PARTS.SIGMAS == (1.0, 1.0, 1.0, 1.5)
    assert cfg.BATCH_SIZE == 16
    assert cfg.RUN_NAME is None
    assert cfg.DATA.TRAIN == ("a/train*",)


def test_override_of_a_section_then_of_a_key_in_it() -> None:
    cfg = load_config(
        STOCK,
        [
            "PARTS={NUM_PARTS: 1, NAMES: [nose], SIGMAS: [2], LEFT_RIGHT_PAIRS: []}",
            "PARTS.SIGMAS=[3]",
        ],
    )
    assert cfg.PARTS.SIGMAS == (3.0,)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("BATCH_SIZE", "override 'BATCH_SIZE': expected KEY=VALUE; write e.g. BATCH_SIZE=16"),
        ("=3", "override '=3': expected KEY=VALUE; write e.g. BATCH_SIZE=16"),
        ("PARTS..X=3", "override 'PARTS..X=3': expected KEY=VALUE; write e.g. BATCH_SIZE=16"),
        (
            "BATCHSIZE=3",
            "override 'BATCHSIZE=3': BATCHSIZE: unknown key; did you mean BATCH_SIZE?",
        ),
        (
            "PARTS.FOO=3",
            "override 'PARTS.FOO=3': PARTS.FOO: unknown key; `fasthg config show` lists all keys",
        ),
        (
            "BATCH_SIZE.X=3",
            "override 'BATCH_SIZE.X=3': BATCH_SIZE.X: BATCH_SIZE is not a section; drop the dot",
        ),
        (
            "BATCH_SIZE=big",
            (
                "override 'BATCH_SIZE=big': BATCH_SIZE: expected a whole number, got 'big'; "
                "the default is 8"
            ),
        ),
        (
            "INPUT_SIZE=100",
            (
                "override 'INPUT_SIZE=100': INPUT_SIZE: 100 is not a multiple of 64, the network's "
                "coarsest step; use 64 or 128"
            ),
        ),
    ],
)
def test_override_mistakes_name_the_override(override: str, expected: str) -> None:
    assert faults(override) == [expected]


def test_override_with_broken_yaml() -> None:
    (line,) = faults("PARTS.SIGMAS=[1, 2")
    assert line.startswith("override 'PARTS.SIGMAS=[1, 2': ")


def test_parse_override_keeps_equals_signs_in_the_value() -> None:
    assert parse_override("RUN_NAME=a=b") == (("RUN_NAME",), "a=b")
