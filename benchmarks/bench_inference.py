"""The stock network from images on the device to the last stack's heatmaps."""

from __future__ import annotations

import networks
import pytest
from race import race

from fasthg.inference import predictor
from fasthg.model import build_model
from fasthg.runtime.device import choose_precision


@pytest.mark.slow
@race(
    *(*networks.RIVALS, "fasthg"),
    rounds=lambda device: 5 if device.type == "cpu" else 30,
    cool=False,
    apart=True,
    figures=networks.step_figures,
    stacks=[2, 8],
    batch=[1, 8, 32],
)
def bench_inference(device, stacks, batch):
    networks.leave_out(device, batch)
    cfg = networks.config(stacks, batch)
    given = networks.example(cfg, device)
    images, _ = networks.as_reference(given, cfg)
    found = networks.rivals(cfg, device, lambda one: lambda: one.predict(images))
    precision = choose_precision(cfg.PRECISION, device)

    def ours():
        forward = predictor.Forward(build_model(cfg).eval().to(device), cfg, precision)
        return lambda: forward(given.images)[-1]

    found["fasthg"] = lambda: networks.weighed(ours)
    return found
