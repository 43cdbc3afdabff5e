"""Resolved configuration, table of keys, and the configurations that ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fasthg.config import Config, describe, dump_config, inert_keys, load_config

STOCK = Path(__file__).with_name("stock_config_train.yaml")
EXPONENTIAL = {
    "LEARNING_RATE_DECAY_TYPE": "exponential",
    "LEARNING_RATE_DECAY_FACTOR": 0.5,
    "NUM_EPOCHS_PER_DELAY": 2.5,
    "NUM_TRAIN_EXAMPLES": 640,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"OPTIMIZER": "adamw", "ADAM_EPSILON": 1e-12, "WEIGHT_DECAY": 1e-5, "RUN_NAME": "1e-3"},
        {"DATA": {"TRAIN": ["a*", "b*"], "VAL": "ü/*"}, "OKS_SIGMAS": [0.1] * 7},
        {"MARS_PROJECT": "p", "POSE_MODEL": "top", "LOSS": {"A": {"B": [1, None]}}},
        {"BACKGROUND_HEATMAPS": {"ADD_NON_TARGET_PARTS": True}, "DO_RANDOM_PADDING": False},
        EXPONENTIAL,
    ],
)
def test_dump_loads_back_equal(tmp_path: Path, keys: dict[str, Any]) -> None:
    cfg = Config(**keys)
    path = tmp_path / "config.resolved.yaml"
    path.write_text(dump_config(cfg), encoding="utf-8")
    again = load_config(path)
    assert again == cfg
    assert dump_config(again) == dump_config(cfg)


def test_stock_file_survives_the_round_trip(tmp_path: Path) -> None:
    cfg = load_config(STOCK)
    path = tmp_path / "config.resolved.yaml"
    path.write_text(dump_config(cfg), encoding="utf-8")
    assert load_config(path) == cfg


def test_dump_holds_what_acts_and_what_the_user_set() -> None:
    text = dump_config(Config(QUEUE_MIN=100))
    assert "RMSPROP_DECAY: 0.9" in text
    assert "QUEUE_MIN: 100" in text
    assert "QUEUE_CAPACITY" not in text
    assert "ADAM_BETA1" not in text


def test_describe_lists_every_key_with_a_sentence() -> None:
    rows = {row.key: row for row in describe()}
    assert {"PARTS.SIGMAS", "DATA.TRAIN", "BACKGROUND_HEATMAPS.ADD_NON_TARGET_PARTS"} <= set(rows)
    for row in rows.values():
        assert row.description.endswith("."), row.key
        assert (row.status == "inert") == bool(row.reason), row.key
    assert rows["NUM_STACKS"].default == "8"
    assert rows["NUM_STACKS"].type == "whole number"
    assert rows["PARTS.LEFT_RIGHT_PAIRS"].type == "list of [whole number, whole number]"
    assert rows["GRADIENT_CLIP_NORM"].type == "number | null"
    assert rows["PARTS.SIGMAS"].default == "[1.5, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0]"
    assert rows["LOSS"].status == "inert"
    assert rows["ADAM_BETA1"].status == "used"


def test_describe_of_a_configuration_names_keys_without_effect() -> None:
    rows = {row.key: row for row in describe(Config(OPTIMIZER="adamw"))}
    assert rows["RMSPROP_DECAY"].reason == "OPTIMIZER is adamw"
    assert rows["ADAM_BETA1"].status == "used"


@pytest.mark.parametrize(
    ("keys", "key", "reason"),
    [
        ({"DO_RANDOM_BLURRING": False, "MAX_BLUR": 3}, "MAX_BLUR", "DO_RANDOM_BLURRING is false"),
        ({"RANDOM_NOISE_FREQ": 0, "RANDOM_NOISE_SCALE": 1}, "RANDOM_NOISE_SCALE", "FREQ is 0"),
        ({"DO_COLOR_DISTORTION": 0, "COLOR_DISTORT_FAST": True}, "COLOR_DISTORT_FAST", "is 0"),
        ({"LOOSE_BBOX_CROP": False, "RANDOM_PADDING_MAX": 1}, "RANDOM_PADDING_MAX", "LOOSE_BBOX"),
        ({"OPTIMIZER": "sgd", "MOMENTUM": 0.9}, "MOMENTUM", "OPTIMIZER is sgd"),
        ({**EXPONENTIAL, "END_LEARNING_RATE": 0}, "END_LEARNING_RATE", "is exponential"),
    ],
)
def test_keys_without_effect(keys: dict[str, Any], key: str, reason: str) -> None:
    assert [reason in why for name, why in inert_keys(Config(**keys)) if name == key] == [True]


def test_defaults_are_not_reported_as_inert() -> None:
    assert inert_keys(Config()) == []
    assert inert_keys(Config(OPTIMIZER="adamw")) == []


def test_mars_yaml_is_the_stock_recipe_and_every_key_in_it_acts(repository: Path) -> None:
    cfg = load_config(repository / "configs/mars.yaml")
    colours = cfg.PARTS.COLORS
    assert len(colours) == 7  # MARS's, for its seven parts; other parts have fasthg's palette
    assert cfg == Config(PARTS={"COLORS": colours})
    assert inert_keys(cfg) == []


def test_mars_yaml_lists_every_key_that_acts(repository: Path) -> None:
    text = (repository / "configs/mars.yaml").read_text(encoding="utf-8")
    acting = [row.key.split(".")[-1] for row in describe(Config()) if row.status == "used"]
    assert [key for key in acting if key not in text] == []


def test_keys_are_used_or_declared_inert(repository: Path) -> None:
    words = {
        word
        for path in (repository / "fasthg").rglob("*.py")
        if path.parent.name != "config"
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    # Read within the configuration itself, or by the name of a split.
    elsewhere = {"MARS_PROJECT", "POSE_MODEL", "DATA.TRAIN", "DATA.VAL", "DATA.TEST"}
    for row in describe():
        name = row.key.split(".")[-1]
        if row.key not in elsewhere:
            assert (name in words) == (row.status == "used"), row.key


def test_demo_yaml_loads_and_every_key_in_it_acts(repository: Path) -> None:
    cfg = load_config(repository / "configs/demo.yaml")
    assert inert_keys(cfg) == []
    assert cfg.RUN_NAME == "demo"
    assert min(cfg.PARTS.SIGMAS) >= 1.0
