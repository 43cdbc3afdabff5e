"""PRECISION: auto takes the type that a timing shows to be the faster one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fasthg.config import Config
from fasthg.model import build_model
from fasthg.runtime import device as module
from fasthg.runtime.device import Precision, choose_precision
from fasthg.runtime.distributed import ProcessGroup
from fasthg.training.step import TrainStep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def machine(
    monkeypatch: pytest.MonkeyPatch, *, avx512: bool, amx: bool, seconds: tuple[float, float]
) -> list[int]:
    """A CPU with such instructions and times; the widths that are timed."""
    widths: list[int] = []

    def timed(width: int) -> tuple[float, float]:
        widths.append(width)
        return seconds

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(module, "_convolution_seconds", timed)
    return widths


def test_a_cpu_without_bfloat16_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = machine(monkeypatch, avx512=False, amx=False, seconds=(1.0, 0.1))
    precision = choose_precision("auto", CPU)
    assert precision == (torch.float32, "the CPU has no bfloat16 instructions")
    assert precision.name == "float32" and not widths


@pytest.mark.parametrize(
    ("avx512", "amx", "seconds", "dtype"),
    [
        (True, False, (0.197, 0.327), torch.float32),  # a Xeon with avx512_bf16 and no AMX
        (True, True, (0.2, 0.05), torch.bfloat16),
        (True, True, (0.2, 0.3), torch.float32),  # AMX that oneDNN may not use
        (False, True, (0.2, 0.05), torch.bfloat16),
        (True, False, (0.2, 0.19), torch.float32),  # within the noise
    ],
)
def test_a_cpu_takes_what_a_timing_shows(
    monkeypatch: pytest.MonkeyPatch,
    avx512: bool,
    amx: bool,
    seconds: tuple[float, float],
    dtype: torch.dtype,
) -> None:
    widths = machine(monkeypatch, avx512=avx512, amx=amx, seconds=seconds)
    precision = choose_precision("auto", CPU, 64)
    single, half = (f"{s * 1e3:.3g}" for s in seconds)
    reason = f"a convolution takes {single} ms in float32, {half} ms in bfloat16"
    assert precision == (dtype, reason) and widths == [64]


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_takes_the_half_type_that_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", CUDA).dtype == (torch.bfloat16 if native else torch.float16)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_named_type_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    widths = machine(monkeypatch, avx512=True, amx=True, seconds=(1.0, 1.0))
    precision = choose_precision(name, CPU)
    assert (precision.name, precision.reason) == (dtype, f"PRECISION is {name}") and not widths


def test_the_timing_is_made_once_for_a_width_and_changes_no_number_of_threads() -> None:
    module._convolution_seconds.cache_clear()
    before = torch.get_num_threads()
    try:
        for threads in (3, before):
            torch.set_num_threads(threads)
            module._convolution_seconds(16)
            with ThreadPoolExecutor(1) as later:
                numbers = torch.get_num_threads(), later.submit(torch.get_num_threads).result()
            assert numbers == (threads, threads)
            module._convolution_seconds.cache_clear()
    finally:
        torch.set_num_threads(before)
    first = module._convolution_seconds(16)
    assert module._convolution_seconds(16) is first and min(first) > 0
    assert module._convolution_seconds.cache_info().misses == 1


class Second(ProcessGroup):
    """The second of two processes, whose first one chose bfloat16."""

    rank, size = 1, 2

    def gathered(self, value: Any) -> list[Any]:
        """See `ProcessGroup`."""
        assert value is None
        return [Precision(torch.bfloat16, "measured by rank 0"), value]


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = machine(monkeypatch, avx512=True, amx=True, seconds=(0.1, 0.2))
    config = Config(NUM_STACKS=1, FEATURES=8, STEM_FEATURES=4, INPUT_SIZE=64, HEATMAP_SIZE=16)
    step = TrainStep(config, build_model(config), CPU, Second())
    assert step.precision == (torch.bfloat16, "measured by rank 0") and not widths
