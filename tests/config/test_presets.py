"""Configurations by name, by folder and by path."""

from __future__ import annotations

import pytest

from fasthg.config import find_config, load_config, preset_names
from fasthg.errors import ConfigError


def test_presets_load():
    assert {"demo", "mars", "small"} <= set(preset_names())
    assert load_config(find_config("small")).FEATURES == 64


def test_folder_of_records_brings_its_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("BATCH_SIZE: 3\n")
    assert load_config(find_config(tmp_path)).BATCH_SIZE == 3
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        find_config(tmp_path.parent)


def test_file_goes_before_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/small.yaml") == find_config("small")
    (tmp_path / "small").write_text("BATCH_SIZE: 5\n")
    assert load_config(find_config("small")).BATCH_SIZE == 5
    with pytest.raises(ConfigError, match=r"no such file.*presets demo, mars, small"):
        find_config("smal")


def test_skeleton_joins_two_parts():
    override = ["PARTS.SKELETON=[[0, 7]]"]
    with pytest.raises(ConfigError, match=r"SKELETON: \[0, 7\] joins no two of the 7 parts"):
        load_config(find_config("mars"), override)
