"""Small networks to export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_weights import opened, written

from fasthg.interop.export import Trained


@pytest.fixture(scope="session")
def two_stacks(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("two")
    return opened(written(folder / "two.safetensors", NUM_STACKS=2))


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """One stack, whose hourglass has two levels in place of four: exporters take half the time."""
    folder = tmp_path_factory.mktemp("shallow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fasthg.model.hourglass.HOURGLASS_LEVELS", 2)
        yield opened(written(folder / "shallow.safetensors", NUM_STACKS=1))
