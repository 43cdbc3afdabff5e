"""A warning before a training that would take days, from one forward pass."""

from __future__ import annotations

import time

import torch

from fasthg.config import Config
from fasthg.model import StackedHourglass
from fasthg.runtime.device import Precision, autocast
from fasthg.words import duration

DAY = 86400.0
STEP_OF_FORWARD = 2.5
"""Time of a step for an image by that of a forward pass of one image. Measured: 2.0 with 256
features, 2.0 to 2.6 with 64; the loader shares the cores."""
_SLOWEST = 10.0
"""Seconds of a forward pass: so many the largest network takes on one slow core."""
_SMALL = (2, 64)
"""NUM_STACKS and FEATURES of the preset that is named."""


def warn_of_days(
    model: StackedHourglass, config: Config, precision: Precision, steps: int
) -> list[str]:
    """A line where `steps` more would take over a day on a CPU, else nothing.

    On a GPU nothing is measured: its first steps show in the status line within seconds.
    """
    device = next(model.parameters()).device
    images = steps * config.BATCH_SIZE
    if device.type != "cpu" or images * _SLOWEST * STEP_OF_FORWARD < DAY:
        return []
    step = _forward_seconds(model, config, precision) * config.BATCH_SIZE * STEP_OF_FORWARD
    if steps * step <= DAY:
        return []
    return [
        f"time     about {duration(steps * step)} on this CPU: {steps} steps of about "
        f"{step:.2g} s; {_remedy(config)}; --dry-run measures it exactly"
    ]


def _remedy(config: Config) -> str:
    if _SMALL[0] < config.NUM_STACKS or _SMALL[1] < config.FEATURES:
        return "`fasthg train small` is the preset for a CPU"
    return "lower NUM_TRAIN_ITERATIONS, or train on a GPU"


@torch.no_grad()
def _forward_seconds(model: StackedHourglass, config: Config, precision: Precision) -> float:
    """Of one image, the quicker of two passes; the network is left as it was."""
    was_training = model.training
    image = torch.zeros(1, 3, config.INPUT_SIZE, config.INPUT_SIZE)
    model.eval()
    try:
        taken = []
        for _ in range(2):
            begin = time.perf_counter()
            with autocast(image.device, precision.dtype):
                model(image)
            taken.append(time.perf_counter() - begin)
        return min(taken)
    finally:
        model.train(was_training)
