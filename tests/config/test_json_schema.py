"""The JSON schema accepts what `load_config` accepts, and marks what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasthg.config import find_config, json_schema, preset_names, read_document

jsonschema = pytest.importorskip("jsonschema")
STOCK = Path(__file__).with_name("stock_config_train.yaml")


@pytest.fixture(scope="module")
def marked():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def faults(values: dict[str, Any]) -> list[str]:
        # JSON has no tuples, and its integers are written without a point.
        return [error.message for error in validator.iter_errors(values)]

    return faults


@pytest.mark.parametrize("path", [*map(find_config, preset_names()), STOCK], ids=lambda p: p.stem)
def test_configurations_that_ship_are_accepted(marked, path: Path) -> None:
    assert marked(read_document(path).values) == []


@pytest.mark.parametrize(
    "values",
    [
        {"FUSED": True},
        {"DATA": {"TRAIN": "a*", "VAL": ["b*", "c"]}},
        {"DO_RANDOM_FLIP_LEFT_RIGHT": True, "RANDOM_BLUR_FREQ": 0.5},
        {"PARTS": {"SYMBOLS": None, "LEFT_RIGHT_PAIRS": [[0, 1]]}},
        {"LOSS": None},
    ],
)
def test_other_spellings_are_accepted(marked, values: dict[str, Any]) -> None:
    assert marked(values) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"BATCH_SIZ": 8}, "BATCH_SIZ"),
        ({"BATCH_SIZE": 0}, "0 is less than the minimum of 1"),
        ({"PARTS": {"SIGMAS": [0]}}, "0 is less than or equal to the minimum of 0"),
        ({"PARTS": {"LEFT_RIGHT_PAIRS": [[0, -1]]}}, "valid under any"),
        ({"DECODE": "dusk"}, "'dusk' is not one of"),
    ],
)
def test_faults_are_marked(marked, values: dict[str, Any], words: str) -> None:
    assert any(words in message for message in marked(values))


def test_meanings_and_keys_without_effect_are_told() -> None:
    keys = json_schema()["properties"]
    assert "in pixels" in keys["INPUT_SIZE"]["description"]
    assert "No effect: " in keys["QUEUE_MIN"]["description"]
