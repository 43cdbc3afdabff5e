"""The stock network from images on the device to the last stack's heatmaps."""

from __future__ import annotations

import networks
import pytest
from compare import compare

from fasthg.inference import predictor
from fasthg.model import build_model


@pytest.mark.slow
@compare(
    *(*networks.RIVALS, "fasthg"),
    rounds=(5, 30),
    cold=False,
    own_process=True,
    figures=networks.step_figures,
    stacks=[2, 8],
    batch=[1, 8, 32],
)
def bench_inference(device, stacks, batch):
    networks.skip_large(device, batch)
    cfg = networks.config(stacks, batch)
    example = networks.example(cfg, device)
    images, _ = networks.as_reference(example, cfg)
    providers = networks.rivals(cfg, device, lambda one: lambda: one.predict(images))

    def ours():
        precision = networks.precision_of(cfg, device)
        forward = predictor.Forward(build_model(cfg).eval().to(device), cfg, precision)
        return lambda: forward(example.images)[-1]

    return providers | {"fasthg": ours}
