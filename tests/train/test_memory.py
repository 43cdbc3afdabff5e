"""The estimate of a step's memory: against real tensors, a real process, and a simulated GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import build_model, hourglass, layers
from fasthg.ops import _residual_passes
from fasthg.train.memory import (
    GIB,
    Live,
    _inside,
    _kept,
    estimate,
    is_out_of_memory,
    out_of_memory,
)
from fasthg.train.step import TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")

SMALL: dict[str, Any] = {
    "NUM_STACKS": 2,
    "FEATURES": 32,
    "STEM_FEATURES": 16,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "BATCH_SIZE": 2,
}


def small(**keys: Any) -> Config:
    return Config(**{**SMALL, **keys})


def zeros(config: Config) -> Batch:
    batch, side = config.BATCH_SIZE, config.INPUT_SIZE
    read = {
        "images": torch.zeros(batch, side, side, 3, dtype=torch.uint8),
        "keypoints": torch.zeros(batch, 7, 2),
        "visibility": torch.ones(batch, 7, dtype=torch.uint8),
        "sigmas": torch.ones(batch, 7),
    }
    others = ("crop_to_image", "area", "crop_area", "instance")
    return Batch(**read, **dict.fromkeys(others, torch.zeros(batch)))


@pytest.mark.parametrize(
    ("fused", "precision", "recompute"),
    [
        ("off", "fp32", "none"),
        ("off", "bf16", "stack"),
        ("auto", "bf16", "none"),
        ("on", "bf16", "none"),
        ("on", "fp32", "stack"),
    ],
)
def test_fake_tensors_count_as_those_of_a_step(fused: str, precision: str, recompute: str) -> None:
    config = small(FUSED=fused, PRECISION=precision, RECOMPUTE=recompute)
    step = TrainStep(config, build_model(config), CPU)
    with Live() as live:
        step(zeros(config), 0)
    # torch's batch norm keeps statistics in another dtype than its fake promises: a few numbers.
    assert estimate(config, CPU).maps == pytest.approx(live.peak, rel=0.005)


@pytest.mark.parametrize(
    ("optimizer", "keys"),
    [
        ("rmsprop", {}),
        ("rmsprop", {"PRECISION": "bf16"}),
        ("rmsprop", {"RMSPROP_MOMENTUM": 0.9}),
        ("adam", {}),
        ("adamw", {}),
        ("sgd", {}),
        ("momentum", {}),
        ("momentum", {"MOMENTUM": 0.9}),
        ("adagrad", {}),
        ("adadelta", {}),
    ],
)
def test_what_is_kept(optimizer: str, keys: dict[str, Any]) -> None:
    config = small(OPTIMIZER=optimizer, **{"PRECISION": "fp32", **keys})
    step = TrainStep(config, build_model(config), CPU)
    step.optimizer.step()
    state = step.optimizer.state_dict()
    found = [t for t in tree_leaves(state) if isinstance(t, torch.Tensor) and t.numel() > 1]
    found += [step.flat.values, step.flat.gradient, step.averages, *[step.flat.statistics] * 2]
    if step._half is not None:
        found += [step._half._values]
    kept = sum(t.nbytes for t in found)
    copies = sum(tensor.nbytes for tensor in step._changed_on_device())
    with torch.device("meta"):
        model = build_model(config)
    assert _kept(config, model, CPU) == kept
    assert _kept(config, model, GPU) == kept + copies
    eager = config.model_copy(update={"STEP": "eager"})
    assert _kept(eager, model, GPU) == kept


def as_on_a_gpu(fused: str, x: torch.Tensor, slower_on_cpu: Any = ()) -> bool:
    return fused != "off"


def test_layers_choose_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators everywhere, but no whole residuals, however large the maps are."""
    keys = {"INPUT_SIZE": 256, "HEATMAP_SIZE": 64, "BATCH_SIZE": 8, "NUM_STACKS": 1}
    config = small(PRECISION="bf16", **keys)
    guessed = estimate(config, GPU).maps
    with monkeypatch.context() as patch:
        patch.setattr(layers, "runs_fused", as_on_a_gpu)
        patch.setattr(hourglass.Stack, "fused_for", lambda *_: True)
        patch.setattr(layers, "BLOCK_ROWS", 1 << 62)
        assert estimate(config, CPU).maps == guessed


def test_the_fused_key_counts_on_a_gpu() -> None:
    keys = [{"FUSED": "off"}, {}, {"FUSED": "on"}, {"FUSED": "on", "STEP": "compile"}]
    off, auto, on, compiled = (
        estimate(small(NUM_STACKS=1, PRECISION="fp32", **k), GPU).maps for k in keys
    )
    assert off > auto > on
    assert compiled == off


def product(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
    """`conv1x1_act` as on a GPU: nothing but its result."""
    batch, _, height, width = x.shape
    return torch.empty(batch, height, width, len(weight), dtype=x.dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize("skip", [False, True])
def test_what_whole_residuals_take_inside(monkeypatch: pytest.MonkeyPatch, skip: bool) -> None:
    """Against their own passes, whose operators are seen where they run one by one."""
    monkeypatch.setattr(_residual_passes, "conv1x1_act", product)
    channels, half, full = (24, 16, 32) if skip else (32, 16, 32)
    x = torch.randn(4, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    grad_y = torch.randn(4, full, 32, 32).contiguous(memory_format=torch.channels_last)
    shapes = [(half, channels, 1, 1), (half,), (half, half, 3, 3), (half,), (full, half, 1, 1)]
    weights = [torch.randn(shape) for shape in shapes]
    beta3, grad_skip = torch.randn(full), torch.randn(full, channels, 1, 1) if skip else None
    given = [x, *weights, beta3, grad_skip, beta3 if skip else None, 1e-3]
    y, y1, y2, *values = _residual_passes.train(*given)
    saved = [grad_y, x, y1, y2, values[:8], values[8:], *weights, grad_skip, 1e-3]
    operators = torch.ops.fasthg
    for run, operator, arguments in (
        (_residual_passes.train, operators.residual_block.default, given),
        (_residual_passes.gradients, operators.residual_block_backward.default, saved),
    ):
        with Live() as live:
            results = run(*arguments)
        made = sum(t.nbytes for t in results)
        inside = _inside(operator, tuple(arguments))
        assert inside >= y1.nbytes
        # WeightGradientStream maps, there are small matrices.
        assert live.peak == pytest.approx(made + inside, rel=0.03)


def test_views_and_what_was_there_before_count_nothing() -> None:
    before = torch.zeros(1000)
    with Live() as live:
        view = before.detach()[10:].view(-1)
        view.add_(1)
        kept = torch.zeros(50)
        other = kept.view(5, 10).t()
        assert live.now == 200
        del kept
        assert live.now == 200
        del other
        assert live.now == 0
    assert live.peak == 200


PROCESS = """
import json, os, sys
import torch
from fasthg.config import Config
from fasthg.data.batch import READ_BY_STEP, Batch
from fasthg.model import build_model
from fasthg.train import step as module
from fasthg.train.step import TrainStep

module.keep_freed_memory = lambda: None  # it leaves gaps

def train(config):
    batch, side = config.BATCH_SIZE, config.INPUT_SIZE
    read = [torch.zeros(batch, side, side, 3, dtype=torch.uint8), torch.zeros(batch, 7, 2),
            torch.ones(batch, 7, dtype=torch.uint8), torch.ones(batch, 7)]
    nothing = dict.fromkeys(("crop_to_image", "area", "crop_area", "instance"), torch.zeros(batch))
    step = TrainStep(config, build_model(config), torch.device("cpu"))
    step(Batch(**dict(zip(READ_BY_STEP, read)), **nothing), 0)

keys = json.loads(sys.argv[1])
keys["PRECISION"] = "fp32"
tiny = {"NUM_STACKS": 1, "FEATURES": 8, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "BATCH_SIZE": 2}
train(Config(**keys | tiny))
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
train(Config(**keys))
# Not ru_maxrss, which may still be that of the process that started this one.
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
print(peak - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("keys", [{"FUSED": "off"}, {"FUSED": "on", "RECOMPUTE": "stack"}], ids=str)
def test_against_a_process(keys: dict[str, Any]) -> None:
    """A process grows by what is estimated and, for oneDNN, up to 30 MB; to 5 %.

    Every map is asked of the system, as malloc's gaps are not in the estimate.
    """
    keys = {"NUM_STACKS": 2, "FEATURES": 64, "STEM_FEATURES": 16, "BATCH_SIZE": 4, **keys}
    whole = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    grown = []
    # What a first process compiles of Python, say, is in its peak as well.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, json.dumps(keys)],
            env={**os.environ, **whole, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        grown.append(int(done.stdout))
    total = estimate(Config(**keys, PRECISION="fp32"), CPU).total
    assert 0.95 * total < min(grown) < 1.05 * total + 30e6


def test_the_networks_of_mars_fit_a_small_gpu() -> None:
    assert 1.5 * GIB < estimate(Config(), GPU).total < 4 * GIB


def test_a_full_memory_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
    text = str(out_of_memory(small(BATCH_SIZE=32), GPU, error))
    assert re.fullmatch(
        r"the GPU's memory is full: a step needs about 0\.\d GiB \(estimated\)(, the GPU has .*)?; "
        r"set RECOMPUTE=stack or FUSED=on, or lower BATCH_SIZE \(now 32\), NUM_STACKS \(now 2\) or "
        r"INPUT_SIZE \(now 64\)",
        text,
    )
    least = {"RECOMPUTE": "stack", "FUSED": "on", "BATCH_SIZE": 1, "NUM_STACKS": 1}
    text = str(out_of_memory(small(**least, INPUT_SIZE=256, HEATMAP_SIZE=64), CPU, error))
    assert text.startswith("the memory is full: a step needs about")
    assert "the machine has" in text
    assert text.endswith("; lower INPUT_SIZE (now 256)")


def test_an_estimate_that_fails_does_not_hide_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fasthg.train.memory.build_model", lambda config: 1 / 0)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
    text = str(out_of_memory(small(), GPU, error))
    assert text.startswith("the GPU's memory is full (CUDA out of memory. Tried to allocate 2 GiB)")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 << 30)
    text = str(out_of_memory(small(), GPU, error))
    assert "), the GPU has 8.0, 5.0 of it taken by others; set" in text


def test_what_counts_as_full_memory() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
