"""A tiny training that the tests of the Python API share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import tiny

from fasthg.config import Config
from fasthg.data.synthetic.dataset import write_dataset


@pytest.fixture(scope="session")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "mice"
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder


@pytest.fixture
def config(mice: Path, tmp_path: Path) -> Config:
    return tiny(mice, tmp_path / "runs")
