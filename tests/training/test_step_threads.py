"""Two trainings in two threads of one process do not touch each other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from random_batch import batch
from torch import Tensor

from fasthg.config import Config
from fasthg.model import build_model
from fasthg.training.step import TrainStep

STEPS = 6
KEYS: dict[str, Any] = {
    **{"NUM_STACKS": 1, "FEATURES": 8, "STEM_FEATURES": 4, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16},
    **{"PRECISION": "fp32", "HEAD_INIT_SCALE": 0.01, "BATCHNORM_MOVING_AVERAGE_DECAY": 0.5},
}


class Training(threading.Thread):
    """Some steps of a network of its own."""

    def __init__(self, seed: int, start: threading.Barrier, keys: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.seed, self.barrier, self.keys = seed, start, keys
        self.tensors: dict[str, Tensor] = {}
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            config = Config(**KEYS, **self.keys, RANDOM_SEED=self.seed)
            step = TrainStep(config, build_model(config), torch.device("cpu"))
            self.barrier.wait(60)
            for number in range(STEPS):
                step(batch(self.seed + number, size=2), number)
            averages = step.ema_model().state_dict()
            self.tensors = {
                **step.model.state_dict(),
                **{f"average of {name}": t for name, t in averages.items()},
            }
        except BaseException as error:
            self.errors.append(error)


def results(trainings: Sequence[Training]) -> list[dict[str, Tensor]]:
    for training in trainings:
        training.join(120)
        assert not training.is_alive() and not training.errors, training.errors
    return [training.tensors for training in trainings]


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [{"FUSED": "off"}, {"FUSED": "on", "RECOMPUTE": "stack"}],
    ids=["torch's modules", "recompute"],
)
def test_two_threads_train_what_one_after_the_other_does(
    keys: dict[str, Any], frequent_switches: None
) -> None:
    """Weights, running statistics and averages are equal to the last bit."""
    expected = []
    for seed in (1, 2):
        training = Training(seed, threading.Barrier(1), keys)
        training.start()
        expected += results([training])
    barrier = threading.Barrier(2)
    together = [Training(seed, barrier, keys) for seed in (1, 2)]
    for training in together:
        training.start()
    for actual, right in zip(results(together), expected, strict=True):
        assert actual.keys() == right.keys() and right
        different = [
            name for name, tensor in actual.items() if not torch.equal(tensor, right[name])
        ]
        assert not different
    moved = [name for name in expected[0] if name.endswith("running_mean")]
    assert moved and all(expected[0][name].any() for name in moved)
