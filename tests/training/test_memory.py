"""A full memory: the error names the figures of the device and keys that help; they do help."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from random_batch import batch
from saved_activations import saved_bytes

from fasthg.config import Config
from fasthg.model import build_model
from fasthg.training.memory import explained_out_of_memory, is_out_of_memory, out_of_memory
from fasthg.training.step import TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL: dict[str, Any] = {
    **{"NUM_STACKS": 2, "FEATURES": 32, "STEM_FEATURES": 16, "INPUT_SIZE": 64},
    **{"HEATMAP_SIZE": 16, "PRECISION": "fp32"},
}
FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
)


def small(**keys: Any) -> Config:
    return Config(**{**SMALL, **keys})


def test_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"allocated_bytes.all.peak": 3 << 29, "reserved_bytes.all.current": 2 << 30}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 8 << 30))
    assert str(out_of_memory(small(BATCH_SIZE=32), GPU, FULL)) == (
        "the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB), tensors took "
        "1.5 GiB at most, torch holds 2.0, the GPU has 8.0, 5.0 of it taken by others; set "
        "RECOMPUTE=stack or PRECISION=auto, or lower BATCH_SIZE (now 32), NUM_STACKS "
        "(now 2) or INPUT_SIZE (now 64)"
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 << 30, 8 << 30))
    text = str(out_of_memory(small(PRECISION="bf16"), GPU, FULL))
    assert "the GPU has 8.0; set RECOMPUTE=stack, or lower" in text


def test_a_full_machine() -> None:
    least = {"RECOMPUTE": "stack", "BATCH_SIZE": 1, "NUM_STACKS": 1}
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
    text = str(out_of_memory(small(**least), CPU, error))
    assert re.fullmatch(
        r"the memory is full \(DefaultCPUAllocator: .* allocate 9\), this process took [\d.]+ GiB "
        r"at most, the machine has [\d.]+; lower INPUT_SIZE \(now 64\)",
        text,
    )


def test_a_device_that_tells_nothing_does_not_hide_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dead(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "memory_stats", dead)
    text = str(out_of_memory(small(), GPU, FULL))
    assert text.startswith("the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00")
    assert "GiB); set RECOMPUTE=stack" in text


def test_what_counts_as_full_memory() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    ):
        assert is_out_of_memory(error)
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(other)
    with pytest.raises(RuntimeError) as caught, explained_out_of_memory(small(), CPU):
        raise other
    assert caught.value is other


@pytest.mark.slow
def test_the_keys_that_the_error_names_help() -> None:
    def needed(**keys: Any) -> int:
        config = small(**keys)
        return saved_bytes(TrainStep(config, build_model(config), CPU), batch(0))

    stock = needed()
    assert needed(RECOMPUTE="stack") < 0.6 * stock
    assert needed(NUM_STACKS=1) < 0.8 * stock
    assert needed(PRECISION="bf16") < 0.6 * stock
