"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked gpu where there is none: thousands of skips would hide the others."""
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch  # not for tests that need neither

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=needs_gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_make_parametrize_id(val: object) -> str | None:
    """`float32` and `2x5x7x3` in the name of a test, in place of `dtype0` and `shape0`."""
    if type(val).__module__ == "torch" and type(val).__name__ == "dtype":
        return str(val).removeprefix("torch.")
    if isinstance(val, tuple) and val and all(type(each) is int for each in val):
        return "x".join(map(str, val))
    return None


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """`os.fsync` does nothing in this process: it guards against power failures, which no test has.

    Tests that kill fasthg run it in processes of its own, with the real one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


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
