"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real recordings and of files written by MARS itself, or a skip with the reason."""
    value = os.environ.get("FASTHG_TEST_DATA")
    if not value:
        pytest.skip("FASTHG_TEST_DATA is not set: no real data to test with")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"FASTHG_TEST_DATA is {value}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def fasthg(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit status, standard output and error."""
    from fasthg.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fasthg", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call
