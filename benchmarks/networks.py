"""The stock network and its rivals, for the benchmarks of steps, whole training and inference."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import compile_cache
import kernel_profile
import pytest
import torch
from compare import Run
from reference.training import ReferenceTraining
from reference.tuned import DEFAULT, MAX_AUTOTUNE, TunedTraining
from torch import Tensor

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import normalise
from fasthg.ops import gaussian_heatmaps
from fasthg.runtime.device import choose_precision
from fasthg.runtime.process import configure_process, peak_bytes

# The recipe as it is; with the switches of torch that cost nothing; captured as a whole, as the
# following are, in fasthg's precision and in fp16; compiled.
COMPILED: dict[str, Mapping[str, Any]] = {
    "torch.compile": DEFAULT,
    "torch.compile, max-autotune": MAX_AUTOTUNE,
}
RIVALS = (
    *("reference", "reference, TF32", "eager channels_last", "captured", "captured, fp16"),
    *COMPILED,
)
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


def precision_of(cfg: Config, device: torch.device) -> torch.dtype:
    """What PRECISION means here: on a CPU by a timing, so a provider asks when it has its turn."""
    return choose_precision(cfg.PRECISION, device, cfg.FEATURES).dtype


def rivals(
    cfg: Config, device: torch.device, use: Callable[[ReferenceTraining], Run]
) -> dict[str, Callable[[], Run] | str]:
    """Functions that make each of RIVALS, `use` of a training, or why there is none here."""
    gpu = device.type == "cuda"

    def with_tf32() -> Run:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        return use(ReferenceTraining(cfg, device))

    def captured(dtype: torch.dtype) -> Run:
        run = use(TunedTraining(cfg, device, dtype, captured=True))
        run()  # what goes wrong in a capture is this rival's, and not the group's
        return run

    def compiled(name: str) -> Run:
        compile_cache.load()
        half = precision_of(cfg, device)
        training = TunedTraining(cfg, device, half, captured=gpu, compiled=COMPILED[name])
        run = use(training)
        run()
        compile_cache.save(f"{name}, batch {cfg.BATCH_SIZE}")
        setattr(run, "compiled_in", training.compiled_in)  # noqa: B010 (of a function)
        return run

    compiles = COMPILE == "on" or (COMPILE == "auto" and gpu)
    makers: dict[str, Callable[[], Run] | str] = {
        "reference": lambda: use(ReferenceTraining(cfg, device)),
        "reference, TF32": with_tf32 if gpu else ON_GPU,
        "eager channels_last": lambda: use(TunedTraining(cfg, device, precision_of(cfg, device))),
        "captured": (lambda: captured(precision_of(cfg, device))) if gpu else ON_GPU,
        "captured, fp16": (lambda: captured(torch.float16)) if gpu else ON_GPU,
    }
    for name in COMPILED:
        makers[name] = functools.partial(compiled, name) if compiles else NOT_COMPILED
    return makers


def step_figures(run: Run, seconds: float, **values: Any) -> dict[str, Any]:
    """Images a second, the peak of the process's memory and, on a GPU, the profile of a call.

    For rivals that torch compiles also the seconds which that took, and how many of their functions
    came from a cache.
    """
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else peak_bytes()
    figures = {
        "images/s": float(f"{values['batch'] / seconds:.4g}"),
        "peak GiB": round(peak / 2**30, 2),
    }
    if compiled_in := getattr(run, "compiled_in", None):
        figures["compiled in s"] = round(sum(compiled_in.values()), 1)
        figures["functions from a cache"] = compile_cache.hits()
    if gpu:
        profile = kernel_profile.record(run, torch.device("cuda"))
        figures["kernels"] = profile["launches"]
        figures |= {name: profile[name] for name in ("ms of kernels", "ms busy")}
        figures["profile"] = profile
    return figures
