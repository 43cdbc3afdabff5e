"""A configuration in each of the forms that a caller may give it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fasthg.api.settings import as_overrides, settings_of
from fasthg.config import Config, find_config
from fasthg.errors import ConfigError


def test_forms_agree(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("BATCH_SIZE: 3\nPCK_RADII: [1, 2]\n")
    values = {"BATCH_SIZE": np.int64(3), "PCK_RADII": np.array([1.0, 2.0])}
    expected = Config(BATCH_SIZE=3, PCK_RADII=[1, 2])
    for given in (tmp_path, str(tmp_path / "config.yaml"), values, expected):
        assert settings_of(given).config == expected
    assert settings_of(tmp_path).stem == tmp_path.name
    assert settings_of("small").source == find_config("small")


def test_keywords_change_their_keys_alone() -> None:
    keys = {"DATA": {"TRAIN": Path("a/train*")}, "PARTS": {"SCALE_SIGMAS_BY_AREA": True}}
    for config in ("mars", Config(), {}):
        settings = settings_of(config, as_overrides({**keys, "INITIAL_LEARNING_RATE": 1e-5}))
        assert settings.config.PARTS.NUM_PARTS == 7 and settings.config.PARTS.SCALE_SIGMAS_BY_AREA
        assert settings.config.DATA.TRAIN == ("a/train*",)
        assert settings.config.INITIAL_LEARNING_RATE == 1e-5


@pytest.mark.parametrize(
    ("config", "keys", "message"),
    [
        ({"BATCHSIZE": 3}, {}, r"config: BATCHSIZE: unknown key.*BATCH_SIZE"),
        ("mars", {"BATCHSIZE": 3}, r"BATCHSIZE: unknown key.*BATCH_SIZE"),
        ("mars", {"BATCH_SIZE": "8"}, r"BATCH_SIZE: expected a whole number, got '8'"),
        ("mars", {"BATCH_SIZE": {3}}, r"BATCH_SIZE: a set is no value"),
        ("missing", {}, r"missing: no such file.*presets"),
        (5, {}, r"config: a int is none"),
        ({"DATA": {"TRAIN": {"a"}}}, {}, r"config: holds a value that YAML lacks"),
    ],
)
def test_faults_are_those_of_the_command_line(config: object, keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(config, as_overrides(keys))
