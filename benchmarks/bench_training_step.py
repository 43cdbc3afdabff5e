"""One training step on a batch that lies on the device: from the forward to the moving averages.

The rivals start from heatmaps drawn before and images in float32; fasthg starts from bytes and
keypoints. `step_variants` shows what single keys of fasthg cost, `step_pieces` what each part of a
step gains, or would gain, that no GPU has measured yet, `step_profile` every kernel.
"""

from __future__ import annotations

import importlib
import os

import kernel_profile
import networks
import pytest
import torch
from compare import compare

from fasthg.model import build_model, layers
from fasthg.runtime.distributed import SINGLE_PROCESS, open_process_group
from fasthg.runtime.process import configure_process
from fasthg.training.step import TrainStep

VARIANTS = {
    "STEP eager": {"STEP": "eager"},
    "RECOMPUTE stack": {"RECOMPUTE": "stack"},
    "DETERMINISTIC": {"DETERMINISTIC": True},
    "torchrun, one process": {},
    "torchrun, BATCHNORM_SYNC": {"BATCHNORM_SYNC": True},
    "fasthg": {},
}
# Each without one piece of a step: what is replaced, and by what.
WITHOUT = {
    "norms in three launches": (
        *(importlib.import_module("fasthg.ops.bn_act"), "_choose_clusters"),
        lambda *_: (0, 0),
    ),
    "7x7 stem": (layers.ConvBN, "takes_blocks", lambda *_: False),
    "autograd adds in hourglasses": (layers, "fork", lambda x, fused: (x, layers.halve(x, fused))),
    "autograd adds in residuals": (layers.Residual, "forks", lambda *_: False),
}
FUSED_ON = "FUSED on"  # whole residuals as one operator, which FUSED: auto does not take
TINY = {"INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "FEATURES": 8, "STEM_FEATURES": 4}
PORTS = {"torchrun, one process": "29513", "torchrun, BATCHNORM_SYNC": "29514"}
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


class Step:
    """A step on the same batch again and again; loss: of the third, the same for all variants."""

    def __init__(self, cfg, device, group=SINGLE_PROCESS):
        self.batch = networks.example(cfg, device)
        configure_process(device, deterministic=cfg.DETERMINISTIC)
        self.step = TrainStep(cfg, build_model(cfg).to(device), device, group)
        self.number = 0
        losses = [self() for _ in range(3)]
        self.loss = float(losses[-1].loss.sum())
        assert torch.isfinite(self.step.flat.gradient).all(), "the gradient is not finite"

    def __call__(self):
        self.number += 1
        return self.step(self.batch, self.number - 1)


@pytest.mark.slow
@compare(
    *(*networks.RIVALS, "fasthg"),
    rounds=(3, 20),
    cold=False,
    own_process=True,
    figures=networks.step_figures,
    stacks=[2, 8],
    batch=[8, 32, 64],
)
def bench_training_step(device, stacks, batch):
    networks.skip_large(device, batch)
    cfg = networks.config(stacks, batch)
    images, heatmaps = networks.as_reference(networks.example(cfg, device), cfg)
    providers = networks.rivals(cfg, device, lambda one: lambda: one.step(images, heatmaps))
    return providers | {"fasthg": lambda: Step(cfg, device)}


def variant_figures(run, seconds, **values):
    batch = len(run.batch.images)
    return {"loss of step 3": run.loss} | networks.step_figures(run, seconds, batch=batch)


@pytest.mark.slow
@compare(*VARIANTS, rounds=(3, 20), cold=False, own_process=True, figures=variant_figures)
def bench_step_variants(device):
    """8 stacks, batch 8; on a CPU a tiny network."""
    stacks, batch, size = (8, 8, {}) if device.type == "cuda" else (1, 2, TINY)

    def make(name):
        cfg = networks.config(stacks, batch, HEAD_INIT_SCALE=0.01, **size, **VARIANTS[name])
        if not name.startswith("torchrun"):
            return Step(cfg, device)
        os.environ.update(ONE_PROCESS, MASTER_ADDR="localhost", MASTER_PORT=PORTS[name])
        context = open_process_group(device.type)
        step = Step(cfg, device, context.__enter__())
        step.context = context  # closed with the process
        return step

    return {name: lambda name=name: make(name) for name in VARIANTS}


@pytest.mark.slow
@compare(
    *(*WITHOUT, FUSED_ON, "fasthg"),
    rounds=(3, 20),
    cold=False,
    own_process=True,
    figures=variant_figures,
    batch=[8, 32, 64],
)
def bench_step_pieces(device, batch):
    """8 stacks."""
    if device.type != "cuda":
        pytest.skip("pieces for a GPU")

    def make(name):
        if name in WITHOUT:
            setattr(*WITHOUT[name])  # in this process, which is this provider's own
        keys = {"FUSED": "on"} if name == FUSED_ON else {}
        return Step(networks.config(8, batch, HEAD_INIT_SCALE=0.01, **keys), device)

    return {name: lambda name=name: make(name) for name in (*WITHOUT, FUSED_ON, "fasthg")}


def profile_figures(run, seconds, **values):
    return {"profile": kernel_profile.record(run, run.step.device)}


@pytest.mark.slow
@compare(
    *("STEP eager", "fasthg"),
    rounds=(1, 10),
    cold=False,
    own_process=True,
    figures=profile_figures,
    batch=[8, 32, 64],
)
def bench_step_profile(device, batch):
    """8 stacks, every kernel by class and stream: eager one after the other, and as captured, where
    kernels that share the GPU take longer; on a CPU a tiny network and torch's operators."""
    networks.skip_large(device, batch)
    stacks, size = (8, {}) if device.type == "cuda" else (1, TINY)

    def make(**keys):
        return Step(networks.config(stacks, batch, HEAD_INIT_SCALE=0.01, **size, **keys), device)

    return {"STEP eager": lambda: make(STEP="eager"), "fasthg": make}
