"""Training steps in variants, a process each: what runs beside what, and what keys cost.

python tools/gpu_variants.py [--device cuda] [VARIANT ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from typing import Any

import networks
import torch
from device_clock import DeviceClock
from gpu_report import figure

from fasthg.model import build_model
from fasthg.model.cuda_streams import SideStreams
from fasthg.runtime.distributed import SINGLE_PROCESS, open_process_group
from fasthg.train.step import TrainStep

KEYS: dict[str, dict[str, Any]] = {
    "default": {},
    "paths in turn": {},
    "weights' gradients in turn": {},
    "FUSED on": {"FUSED": "on"},
    "RECOMPUTE stack": {"RECOMPUTE": "stack"},
    "DETERMINISTIC": {"DETERMINISTIC": True},
    "torchrun, one process": {},
    "torchrun, BATCHNORM_SYNC": {"BATCHNORM_SYNC": True},
}
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def measure(variant: str, device: torch.device) -> None:
    """Time, peak of memory and loss of the third step of one variant."""
    gpu = device.type == "cuda"
    stacks, batch = (8, 8) if gpu else (1, 2)
    small = {} if gpu else {"INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "FEATURES": 8, "STEM_FEATURES": 4}
    config = networks.config(stacks, batch, HEAD_INIT_SCALE=0.01, **small, **KEYS[variant])
    if variant == "paths in turn":
        SideStreams.path = lambda self, x, level: None  # type: ignore[method-assign]
    if variant == "weights' gradients in turn":
        SideStreams.overlap_weight_gradients = (  # type: ignore[method-assign]
            lambda self, loss: contextlib.nullcontext()
        )
    group: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(SINGLE_PROCESS)
    if variant.startswith("torchrun"):
        os.environ.update(ONE_PROCESS, MASTER_ADDR="localhost", MASTER_PORT="29513")
        group = open_process_group(device.type)
    with group as processes:
        step = TrainStep(config, build_model(config).to(device), device, processes)
        given = networks.example(config, device)
        losses = [float(step(given, number).loss.sum()) for number in range(3)]
        seconds = DeviceClock(device, 1 << 22).seconds(lambda: step(given, 3))
    name = f"{stacks} stacks, batch {batch}: {variant}"
    figure(name, seconds * 1e3, "ms")
    figure(name, losses[-1], "loss of step 3")
    if gpu:
        figure(name, torch.cuda.max_memory_allocated() / 2**30, "peak GiB")


def main() -> int:
    """All variants, or those given; the exit status of the first process that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variant", nargs="*", choices=[[], *KEYS], help="all unless given")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if len(arguments.variant) == 1:
        measure(arguments.variant[0], torch.device(arguments.device))
        return 0
    for variant in arguments.variant or KEYS:
        command = [sys.executable, __file__, variant, "--device", arguments.device]
        status = subprocess.run(command).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
