"""The warning before a training of days: when it is given, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch

from fasthg.config import Config
from fasthg.model import build_model
from fasthg.runtime.device import Precision
from fasthg.training import estimate

FP32 = Precision(torch.float32, "a test")


def small(**keys: object) -> Config:
    sizes = {"NUM_STACKS": 1, "FEATURES": 8, "STEM_FEATURES": 4}
    return Config(**{**sizes, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "BATCH_SIZE": 10, **keys})


def lines(monkeypatch: pytest.MonkeyPatch, config: Config, forward: float, steps: int) -> list[str]:
    monkeypatch.setattr(estimate, "_forward_seconds", lambda *_: forward)
    return estimate.warn_of_days(build_model(small()), config, FP32, steps)


def test_days_are_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    large = small(FEATURES=128)
    (line,) = lines(monkeypatch, large, 1.56, 700000)
    assert line.startswith("time     about 316 days on this CPU: 700000 steps of about 39 s; ")
    assert "`fasthg train small`" in line
    (line,) = lines(monkeypatch, small(), 0.02, 300000)
    assert "about 41 h" in line and "lower NUM_TRAIN_ITERATIONS" in line


def test_less_than_a_day_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for forward, steps in ((0.02, 170000), (1.0, 3000)):
        assert lines(monkeypatch, small(), forward, steps) == []


def test_a_short_training_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(estimate, "_forward_seconds", fail)
    assert estimate.warn_of_days(build_model(small()), small(), FP32, 300) == []


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = build_model(small()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert 0 < estimate._forward_seconds(model, small(), FP32) < 30
    assert model.training and torch.equal(random, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
