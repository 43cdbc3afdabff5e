"""The stock network and its rivals, for the benchmarks of steps, whole training and inference."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_probe import kernel_names
from reference.training import ReferenceTraining
from reference.tuned import TunedTraining
from torch import Tensor
from turns import Run

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import normalise
from fasthg.ops import gaussian_heatmaps
from fasthg.runtime.device import choose_precision

# What torch's users have: the recipe as it is, with the switches that cost nothing, and compiled.
RIVALS = ("reference", "reference, TF32", "eager channels_last", "torch.compile")
NO_TF32 = "TF32 is a GPU's"
NOT_COMPILED = "compiling the network takes many minutes; BENCH_COMPILE=on does it"
# on or off; unset, on a GPU alone.
COMPILE = os.environ.get("BENCH_COMPILE", "auto")


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
    """The same batch as the reference loader would give it: float images and heatmaps."""
    maps = gaussian_heatmaps(batch.keypoints, batch.sigmas, cfg.HEATMAP_SIZE)
    return normalise(batch.images).contiguous(), maps


def leave_out(device: torch.device, batch: int) -> None:
    """Skip the sizes that take a CPU minutes a call."""
    if device.type == "cpu" and batch > 8:
        pytest.skip("a GPU's batch")


def rivals(
    cfg: Config, device: torch.device, use: Callable[[ReferenceTraining], Run]
) -> dict[str, Callable[[], Run] | str]:
    """What makes each of RIVALS, `use` of a training, or why there is none here."""
    gpu = device.type == "cuda"
    precision = choose_precision(cfg.PRECISION, device)
    found: dict[str, Callable[[], Run] | str] = {
        "reference": lambda: weighed(lambda: use(ReferenceTraining(cfg, device))),
        "reference, TF32": NO_TF32,
        "eager channels_last": lambda: weighed(lambda: use(TunedTraining(cfg, device, precision))),
        "torch.compile": NOT_COMPILED,
    }
    if gpu:
        found["reference, TF32"] = lambda: weighed(
            lambda: WithTf32(use(ReferenceTraining(cfg, device)))
        )
    if COMPILE == "on" or (COMPILE == "auto" and gpu):
        found["torch.compile"] = lambda: weighed(
            lambda: use(TunedTraining(cfg, device, precision, compiled=True))
        )
    return found


class WithTf32:
    """A provider that multiplies float32 in TF32 while it runs."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def before(self) -> None:
        _allow_tf32(True)

    def __call__(self) -> object:
        return self.run()

    def after(self) -> None:
        _allow_tf32(False)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


# torch's own default lets convolutions use it, and all but that one provider are strict.
_allow_tf32(False)


# As a training has it.
torch.backends.cudnn.benchmark = True


def rounds(device: torch.device) -> int:
    """Steps of a CPU take seconds, those of a GPU milliseconds."""
    return 3 if device.type == "cpu" else 20


def weighed(make: Callable[[], Run]) -> Run:
    """A provider that knows, on a GPU, the peak of memory of its making and first call.

    Later a captured graph takes nothing, and what others keep counts as well.
    """
    if not torch.cuda.is_available():
        return make()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run = make()
    run()
    peak = torch.cuda.max_memory_allocated() - before
    run.peak = round(peak / 2**30, 2)  # type: ignore[attr-defined]
    return run


def step_figures(run: Run, seconds: float, **chosen: Any) -> dict[str, Any]:
    """Images a second and, on a GPU, the peak of memory and the kernels of a call."""
    found: dict[str, Any] = {"images/s": float(f"{chosen['batch'] / seconds:.4g}")}
    if torch.cuda.is_available():
        found["peak GiB"] = run.peak  # type: ignore[attr-defined]
        # The profiler may miss the first ones of a session.
        found["kernels"] = max(len(kernel_names(run)) for _ in range(2))
    return found
