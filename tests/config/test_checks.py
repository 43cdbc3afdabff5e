"""Contradictions between keys, and the conversions that the schema makes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fasthg.config import Config, load_config
from fasthg.errors import ConfigError


def fault(**keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Config(**keys)
    return str(caught.value)


def parts(**keys: Any) -> dict[str, Any]:
    """Three parts that agree, changed by `keys`."""
    base = {"NUM_PARTS": 3, "NAMES": ["nose", "left ear", "right ear"], "SIGMAS": [1, 2, 2]}
    return {**base, "LEFT_RIGHT_PAIRS": [[1, 2]], **keys}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"SIGMAS": [1, 2]}, "PARTS.SIGMAS: 2 entries for PARTS.NUM_PARTS 3"),
        ({"NAMES": ["a", "b", "c", "d"]}, "PARTS.NAMES: 4 entries for PARTS.NUM_PARTS 3"),
        ({"NAMES": ["a", "b", "a"]}, "PARTS.NAMES: 'a' is there 2 times"),
        ({"LEFT_RIGHT_PAIRS": [[1, 3]]}, "pair [1, 3] points beyond the 3 parts"),
        ({"LEFT_RIGHT_PAIRS": [[1, 1]]}, "pair [1, 1] pairs a part with itself"),
        ({"LEFT_RIGHT_PAIRS": [[1, 2], [2, 0]]}, "part 2 is in more than one pair"),
    ],
)
def test_parts(section: dict[str, Any], expected: str) -> None:
    assert expected in fault(PARTS=parts(**section))


def test_wrong_number_of_indices_in_a_pair() -> None:
    with pytest.raises(ValidationError, match="LEFT_RIGHT_PAIRS"):
        Config(PARTS=parts(LEFT_RIGHT_PAIRS=[[1, 2, 3]]))


def test_stock_entries_are_told_from_the_users() -> None:
    text = fault(PARTS={"NUM_PARTS": 4})
    assert "PARTS.NAMES: 7 stock entries for PARTS.NUM_PARTS 4" in text
    assert "PARTS.LEFT_RIGHT_PAIRS: stock pair [5, 4] points beyond the 4 parts" in text


def test_null_means_no_pairs() -> None:
    cfg = Config(PARTS={"NUM_PARTS": 1, "NAMES": ["nose"], "SIGMAS": [1], "LEFT_RIGHT_PAIRS": None})
    assert cfg.PARTS.LEFT_RIGHT_PAIRS == ()


def test_unpaired_sides_are_refused_while_images_are_mirrored() -> None:
    text = fault(PARTS=parts(LEFT_RIGHT_PAIRS=[]))
    assert "'left ear' and 'right ear' are not paired, and images are mirrored; add [1, 2]" in text
    assert Config(PARTS=parts(LEFT_RIGHT_PAIRS=[]), DO_RANDOM_FLIP_LEFT_RIGHT=False)
    assert "not paired" in fault(
        PARTS=parts(LEFT_RIGHT_PAIRS=[]), DO_RANDOM_FLIP_LEFT_RIGHT=False, FLIP_TEST=True
    )


def test_a_side_without_partner_is_refused_while_images_are_mirrored() -> None:
    text = fault(PARTS=parts(NAMES=["nose", "LeftPaw", "tail"], LEFT_RIGHT_PAIRS=[]))
    assert "'LeftPaw' has no partner on the other side" in text


@pytest.mark.parametrize("names", [["x", "leftear", "rightear"], ["x", "Ear_Left", "ear-right"]])
def test_partners_are_recognised_in_any_spelling(names: list[str]) -> None:
    assert "add [1, 2]" in fault(PARTS=parts(NAMES=names, LEFT_RIGHT_PAIRS=[]))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"INPUT_SIZE": 250}, "INPUT_SIZE: 250 is not a multiple of 64"),
        ({"INPUT_SIZE": 128}, "use HEATMAP_SIZE: 32"),
        ({"HEATMAP_SIZE": 128}, "use HEATMAP_SIZE: 64"),
        ({"FEATURES": 30}, "multiple of 4"),
        ({"RANDOM_PADDING_MIN": 0.7}, "RANDOM_PADDING_MIN: 0.7 is above RANDOM_PADDING_MAX 0.65"),
        (
            {"RANDOM_PADDING_MAX": 65, "CROP_BORDER": "edge"},
            "RANDOM_PADDING_MAX: 65 times the side of the box is added, and CROP_BORDER edge",
        ),
        (
            {"EVAL_CROP": "mars", "LOADER": "dali"},
            "EVAL_CROP: mars is a crop of the portable loader alone, and LOADER is dali; set",
        ),
        (
            {"EVAL_CROP": "mars", "LOOSE_BBOX_CROP": False},
            "EVAL_CROP: mars is a crop with a margin, and LOOSE_BBOX_CROP is false",
        ),
        ({"CROP_BORDER": "constant"}, "Input should be 'clip' or 'edge'"),
        (
            {"RANDOM_JPEG_QUALITY_MAX": 20},
            "RANDOM_JPEG_QUALITY_MIN: 25 is above RANDOM_JPEG_QUALITY_MAX 20",
        ),
        ({"RANDOM_JPEG_QUALITY_MAX": 101}, "less than or equal to 100"),
        ({"OPTIMIZER": "ftrl"}, "use adagrad, which it extends, or the stock rmsprop"),
        (
            {"LEARNING_RATE_DECAY_TYPE": "cosine", "INITIAL_LEARNING_RATE": 1e-5},
            "END_LEARNING_RATE: 0.0001 is above INITIAL_LEARNING_RATE 1e-05",
        ),
        ({"PCK_RADII": []}, "at least 1 item"),
        ({"RUN_NAME": "a/b"}, "'a/b' is not the name of a folder"),
        ({"RUN_NAME": ".."}, "'..' is not the name of a folder"),
        ({"OKS_SIGMAS": [0.1, 0.2]}, "OKS_SIGMAS: 2 numbers for PARTS.NUM_PARTS 7"),
        ({"OKS_SIGMAS": [0.1, -0.2]}, "expected numbers above 0, got -0.2"),
        ({"POSE_MODEL": "top"}, "POSE_MODEL: needs MARS_PROJECT"),
        (
            {"POSE_MODEL": "top", "MARS_PROJECT": "p", "DATA": {"TEST": "x"}},
            "keep either DATA or MARS_PROJECT",
        ),
        ({"NUM_STACK": 2}, "Extra inputs are not permitted"),
    ],
)
def test_contradictions(keys: dict[str, Any], expected: str) -> None:
    assert expected in fault(**keys)


@pytest.mark.parametrize(
    "missing", ["LEARNING_RATE_DECAY_FACTOR", "NUM_EPOCHS_PER_DELAY", "NUM_TRAIN_EXAMPLES"]
)
def test_exponential_decay_needs_its_keys(missing: str) -> None:
    keys = {
        "LEARNING_RATE_DECAY_FACTOR": 0.5,
        "NUM_EPOCHS_PER_DELAY": 10,
        "NUM_TRAIN_EXAMPLES": 100,
    }
    assert Config(LEARNING_RATE_DECAY_TYPE="exponential", **keys)
    del keys[missing]
    text = fault(LEARNING_RATE_DECAY_TYPE="exponential", **keys)
    assert f"exponential decay needs {missing}" in text


@pytest.mark.parametrize(
    ("value", "flip", "other"), [(True, 0.5, 1.0), (False, 0.0, 0.0), (0.3, 0.3, 0.3), (1, 1, 1)]
)
def test_frequencies_from_booleans(value: float, flip: float, other: float) -> None:
    cfg = Config(
        DO_RANDOM_FLIP_LEFT_RIGHT=value, DO_COLOR_DISTORTION=value, DO_RANDOM_BBOX_SHIFT=value
    )
    shares = (cfg.DO_RANDOM_FLIP_LEFT_RIGHT, cfg.DO_COLOR_DISTORTION, cfg.DO_RANDOM_BBOX_SHIFT)
    assert shares == (flip, other, other)
    assert type(cfg.DO_RANDOM_FLIP_LEFT_RIGHT) is float


def test_choices_in_any_case() -> None:
    assert Config(OPTIMIZER="RMSProp").OPTIMIZER == "rmsprop"
    assert Config(OKS_SIGMAS="Mouse_Top").OKS_SIGMAS == "mouse_top"


def test_mars_project_fills_data() -> None:
    cfg = Config(MARS_PROJECT="some/project", POSE_MODEL="top")
    assert cfg.DATA.TRAIN == ("some/project/pose/top_tfrecords_pose/train_dataset-*",)
    assert cfg.DATA.VAL == ("some/project/pose/top_tfrecords_pose/val_dataset-*",)
    assert cfg.DATA.TEST == ("some/project/pose/top_tfrecords_pose/test_dataset-*",)


def test_paths_expand_home_variables_and_separators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    monkeypatch.setenv("RECORDINGS", "/mnt/rec")
    cfg = Config(DATA={"TRAIN": ["~/a/train*", "$RECORDINGS/b*"], "VAL": r"data\val*"})
    assert cfg.DATA.TRAIN == ("/home/lab/a/train*", "/mnt/rec/b*")
    assert cfg.DATA.VAL == ("data/val*",)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().NUM_STACKS = 2  # type: ignore[misc]


@pytest.mark.parametrize("keys", [{"RECOMPUTE": "stack"}, {"BATCHNORM_SYNC": True}])
def test_what_does_not_go_with_a_compiled_step(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="does not go with STEP compile"):
        Config(STEP="compile", **keys)
    Config(**keys)


def test_a_check_takes_no_memory_for_each_stack() -> None:
    tracemalloc.start()
    Config(NUM_STACKS=200_000, INIT={"WEIGHTS": "w", "FREEZE": ["stem", "stack 0"]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_contradiction_is_reported_at_the_key_that_the_user_wrote(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("NUM_STACKS: 1\nINPUT_SIZE: 128\n")
    with pytest.raises(ConfigError, match=r"file\.yaml:2: HEATMAP_SIZE: 64 does not fit"):
        load_config(path)


def test_early_stopping_needs_validations_that_can_be_reached() -> None:
    text = fault(EARLY_STOP_PATIENCE=3, DATA={"TRAIN": "a*"})
    assert "EARLY_STOP_PATIENCE: counts validations, and DATA.VAL is not set; set DATA.VAL" in text
    keys = {"VALIDATE_EVERY_N_STEPS": 100, "NUM_TRAIN_ITERATIONS": 500}
    # Validations at 100, the first and so the best, 200, 300 and 400; the last step ends anyway.
    assert Config(EARLY_STOP_PATIENCE=3, DATA={"TRAIN": "a*", "VAL": "b*"}, **keys)
    assert "4 cannot be reached: a validation every 100 of 500 steps; use at most 3" in fault(
        EARLY_STOP_PATIENCE=4, **keys
    )
    short = fault(EARLY_STOP_PATIENCE=1, VALIDATE_EVERY_N_STEPS=100, NUM_TRAIN_ITERATIONS=200)
    assert "steps; lower VALIDATE_EVERY_N_STEPS, or set null" in short
    with pytest.raises(ValidationError, match="EARLY_STOP_PATIENCE"):
        Config(EARLY_STOP_PATIENCE=0)
