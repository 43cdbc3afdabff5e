"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real and reference data; tests that need it are skipped where it is unset."""
    folder = os.environ.get("FASTHG_TEST_DATA")
    if not folder:
        pytest.skip("FASTHG_TEST_DATA is not set: it names a folder of reference data")
    return Path(folder)
