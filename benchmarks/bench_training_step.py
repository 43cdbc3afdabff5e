"""One training step on a batch that lies on the device: forward to the moving averages.

The rivals are given heatmaps that were drawn before and images in float32; fasthg starts from bytes
and keypoints. The variants of fasthg show on a GPU what the graph and the residual operator gain.
"""

from __future__ import annotations

import networks
import pytest
import torch
from race import race

from fasthg.model import build_model
from fasthg.train.step import TrainStep

VARIANTS = ("fasthg, eager", "fasthg, FUSED on")


@pytest.mark.slow
@race(
    *(*networks.RIVALS, *VARIANTS, "fasthg"),
    rounds=networks.rounds,
    cool=False,
    apart=True,
    figures=networks.step_figures,
    stacks=[2, 8],
    batch=[8, 32, 64],
)
def bench_training_step(device, stacks, batch):
    networks.leave_out(device, batch)
    cfg = networks.config(stacks, batch)
    given = networks.example(cfg, device)
    images, heatmaps = networks.as_reference(given, cfg)
    found = networks.rivals(cfg, device, lambda one: lambda: one.step(images, heatmaps))
    for name in VARIANTS:
        found[name] = "on a GPU, where its memory allows"
        if device.type == "cuda" and stacks * batch <= 256:
            found[name] = lambda name=name: networks.weighed(lambda: ours(cfg, given, name))
    found["fasthg"] = lambda: networks.weighed(lambda: ours(cfg, given, "fasthg"))
    return found


def ours(cfg, given, name):
    changed = {"fasthg, eager": {"STEP": "eager"}, "fasthg, FUSED on": {"FUSED": "on"}}
    cfg = cfg.model_copy(update=changed.get(name, {}))
    device = given.images.device
    step = TrainStep(cfg, build_model(cfg).to(device), device)
    count = iter(range(10**9))

    def run():
        step(given, next(count))

    run()
    assert torch.isfinite(step.flat.gradient).all(), f"{name}: the gradient is not finite"
    return run
