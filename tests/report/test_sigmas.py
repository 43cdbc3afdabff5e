"""What the report says of the sigmas of OKS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fasthg.config import Config
from fasthg.report.sigmas import origin

NAMES = ("nose", "tail")


def config(folder: Path, sigmas: object = (0.031, 0.052)) -> Config:
    parts = {"NUM_PARTS": 2, "NAMES": NAMES, "LEFT_RIGHT_PAIRS": [], "SIGMAS": [1, 1]}
    data = {"TRAIN": str(folder / "train_*")}
    return Config.model_validate({"PARTS": parts, "DATA": data, "OKS_SIGMAS": sigmas})


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "train_dataset-00000-of-00001").touch()
    put(folder, parts=[*NAMES])
    return folder


def put(folder: Path, **values: object) -> None:
    measured = {"OKS_SIGMAS": [0.031, 0.052], "workers": 4}
    splits = {"by": "frame", "seed": 0, "fractions": [1, 0, 0], "measured": measured}
    (folder / "splits.json").write_text(json.dumps(splits | values))


def test_numbers_of_the_list_beside_the_records_are_measured(records: Path) -> None:
    assert origin(config(records)) == "measured on 4 workers"


def test_other_numbers_are_given_by_the_user(records: Path) -> None:
    assert origin(config(records, (0.031, 0.05))) == "given"
    assert origin(config(records, "wide")) == "wide"


def test_without_the_list_nothing_is_said_of_workers(records: Path, tmp_path: Path) -> None:
    assert origin(config(tmp_path / "gone")) == "given"
    put(records, parts=["tail", "nose"])
    assert origin(config(records)) == "given"
    put(records, parts=[*NAMES], measured={})
    assert origin(config(records)) == "given"
    (records / "splits.json").write_text("{")
    assert origin(config(records)) == "given"
