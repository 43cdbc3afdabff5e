"""Predictions by a network that finds coloured dots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from moving_dots import PARTS, Dots

from fasthg.config import Config
from fasthg.inference.video.pipeline import Clock
from fasthg.inference.video.predict_source import Options, SourceResult, predict_source


@pytest.fixture
def network() -> Dots:
    return Dots()


@pytest.fixture(scope="session")
def config() -> Config:
    parts = {"NUM_PARTS": 3, "NAMES": list(PARTS), "SIGMAS": [1.0] * 3, "LEFT_RIGHT_PAIRS": []}
    keys = {"INPUT_SIZE": 128, "HEATMAP_SIZE": 32, "BATCH_SIZE": 4}
    return Config(**keys, PARTS=parts, DO_RANDOM_FLIP_LEFT_RIGHT=False)


@pytest.fixture
def predict(network: Dots, config: Config) -> Callable[..., SourceResult]:
    """`predict_source` with the dots' network; keywords are those of Options.

    keys: what else the configuration says. locator: of the animals; none by default. weights:
    which they are.
    """

    def run(
        source: Any,
        *,
        stop_at: int | None = None,
        using: Any = None,
        keys: Any = None,
        locator: Any = None,
        weights: str = "w",
        **given: Any,
    ) -> SourceResult:
        seen = [0]
        return predict_source(
            *(source, using or network, config.model_copy(update=keys), Options(**given), locator),
            weights=weights,
            clock=Clock(),
            progress=lambda done, made: seen.__setitem__(0, done),
            stop=lambda: stop_at is not None and seen[0] >= stop_at,
        )

    return run
