"""The stock network and its rivals, for the benchmarks of steps, whole training and inference."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import Run
from reference.training import ReferenceTraining
from reference.tuned import TunedTraining
from torch import Tensor

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import normalise
from fasthg.ops import gaussian_heatmaps
from fasthg.runtime.device import choose_precision
from fasthg.runtime.process import configure_process, peak_bytes

# The recipe as it is, with the switches of torch that cost nothing, captured, and compiled.
RIVALS = ("reference", "reference, TF32", "eager channels_last", "captured", "torch.compile")
ON_GPU = "only on a GPU"
NOT_COMPILED = "compiling the network takes many minutes; BENCH_COMPILE=on does it"
# on or off; unset: on a GPU only.
COMPILE = os.environ.get("BENCH_COMPILE", "auto")

# torch's own default lets convolutions multiply in TF32; of the rivals only one may.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
# As the command line does for a training.
configure_process(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def config(stacks: int, batch: int, **keys: Any) -> Config:
    return Config(NUM_STACKS=stacks, BATCH_SIZE=batch, **keys)


def example(cfg: Config, device: torch.device) -> Batch:
    random = torch.Generator().manual_seed(0)
    batch, side, parts = cfg.BATCH_SIZE, cfg.INPUT_SIZE, cfg.PARTS.NUM_PARTS
    points = torch.rand(batch, parts, 2, generator=random) * cfg.HEATMAP_SIZE
    return Batch(
        images=torch.randint(0, 256, (batch, side, side, 3), generator=random, dtype=torch.uint8),
        keypoints=points,
        visibility=torch.full((batch, parts), 2, dtype=torch.uint8),
        sigmas=torch.tensor(cfg.PARTS.SIGMAS).expand(batch, parts).contiguous(),
        crop_to_image=torch.zeros(batch, 2, 3),
        area=torch.ones(batch),
        crop_area=torch.ones(batch),
        instance=torch.arange(batch),
    ).to(device)


def as_reference(batch: Batch, cfg: Config) -> tuple[Tensor, Tensor]:
    """The same batch as the reference loader would make it: float images and heatmaps."""
    maps = gaussian_heatmaps(batch.keypoints, batch.sigmas, cfg.HEATMAP_SIZE)
    return normalise(batch.images).contiguous(), maps


def skip_large(device: torch.device, batch: int) -> None:
    """Skip the sizes at which a CPU takes minutes a call."""
    if device.type == "cpu" and batch > 8:
        pytest.skip("a GPU's batch")


def rivals(
    cfg: Config, device: torch.device, use: Callable[[ReferenceTraining], Run]
) -> dict[str, Callable[[], Run] | str]:
    """Functions that make each of RIVALS, `use` of a training, or why there is none here."""
    gpu = device.type == "cuda"
    precision = choose_precision(cfg.PRECISION, device, cfg.FEATURES).dtype

    def with_tf32() -> Run:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        return use(ReferenceTraining(cfg, device))

    compiles = COMPILE == "on" or (COMPILE == "auto" and gpu)
    return {
        "reference": lambda: use(ReferenceTraining(cfg, device)),
        "reference, TF32": with_tf32 if gpu else ON_GPU,
        "eager channels_last": lambda: use(TunedTraining(cfg, device, precision)),
        "captured": (
            (lambda: use(TunedTraining(cfg, device, precision, captured=True))) if gpu else ON_GPU
        ),
        "torch.compile": (
            (lambda: use(TunedTraining(cfg, device, precision, captured=gpu, compiled=True)))
            if compiles
            else NOT_COMPILED
        ),
    }


def step_figures(run: Run, seconds: float, **values: Any) -> dict[str, Any]:
    """Images a second, the peak of the process's memory and, on a GPU, the kernels of a call.

    kernels: number of launches; profile: name of each kernel -> launches and us, longest first.
    """
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else peak_bytes()
    figures = {
        "images/s": float(f"{values['batch'] / seconds:.4g}"),
        "peak GiB": round(peak / 2**30, 2),
    }
    if gpu:
        profile = kernels(run)
        figures["kernels"] = sum(count for count, _ in profile.values())
        figures["ms of kernels"] = round(sum(us for _, us in profile.values()) / 1e3, 3)
        figures["profile"] = profile
    return figures


def kernels(run: Run) -> dict[str, tuple[int, float]]:
    """By name, how often one call launches a kernel and their us together, longest first."""
    from torch.profiler import ProfilerActivity, profile

    times: dict[str, list[float]] = {}
    for _ in range(2):  # the profiler may miss the first kernels of its first session
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            run()
            torch.cuda.synchronize()
        times = defaultdict(list)
        for event in recorded.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                times[event.name[:120]].append(event.self_device_time_total)
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))
    return {name: (len(each), round(sum(each), 1)) for name, each in longest}
