"""The device and the number format that a configuration asks for."""

from __future__ import annotations

import contextlib
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fasthg.errors import EnvironmentFault

BF16_GAIN = 1.4
"""How many times as fast torch's convolution has to be in bfloat16 as in float32 on a CPU for
PRECISION: auto to take it. More than once, because float32 has a quicker one of ours (`conv3x3`):
where torch's was 2.05 times as fast, a training step was 1.45 times."""


def choose_device(name: str) -> torch.device:
    """The device that DEVICE names; auto takes a GPU where torch sees one.

    Raises:
        EnvironmentFault: cuda is asked for and torch has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("DEVICE: cuda, but torch finds no GPU; set DEVICE=cpu or auto")
    return torch.device(name)


class Precision(NamedTuple):
    """The dtype of convolutions, and why."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")


def choose_precision(name: str, device: torch.device, width: int = 256) -> Precision:
    """The dtype that PRECISION names.

    auto on a GPU takes bfloat16 where the hardware multiplies it, float16 elsewhere. On a CPU
    "supported" does not mean "fast": with avx512_bf16 alone, steps in bfloat16 take up to 1.6 times
    as long as in float32; with AMX they gain. So a convolution is timed in both types, once for a
    process and a width, and bfloat16 has to win by BF16_GAIN. A CPU without such instructions takes
    float32 untimed.

    Several processes of one training, or two halves of one run, may measure differently: one choice
    has to serve all of them, see `TrainStep` and `Training.resume`.

    Args:
        name: PRECISION.
        device: device of the convolutions.
        width: FEATURES, which sets the channels of the timed convolution.
    """
    if name != "auto":
        types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return Precision(types[name], f"PRECISION is {name}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "the GPU multiplies bfloat16")
        return Precision(torch.float16, "the GPU does not multiply bfloat16")
    if not has_bf16_instructions():
        return Precision(torch.float32, "the CPU has no bfloat16 instructions")
    single, half = _convolution_seconds(width)
    dtype = torch.bfloat16 if single >= BF16_GAIN * half else torch.float32
    figures = f"{single * 1e3:.3g} ms in float32, {half * 1e3:.3g} ms in bfloat16"
    return Precision(dtype, f"a convolution takes {figures}")


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bfloat16, by avx512_bf16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@functools.cache
def _convolution_seconds(width: int) -> tuple[float, float]:
    """Seconds of one 3x3 convolution, forward and backward, in float32 and bfloat16.

    It is the convolution of a residual block on one image's maps of 64 x 64 cells, by one thread,
    in that thread's processor time: of several, each would wait for one that other work holds up.
    With three such processes on two cores the ratio of both stayed within a tenth; of the time that
    passed it was between 0.8 and 2. The types take turns, and the fastest of a few runs counts.
    """
    threads = torch.get_num_threads()

    def alone() -> tuple[float, float]:
        torch.set_num_threads(1)
        try:
            return _time_convolutions(width)
        finally:
            torch.set_num_threads(threads)  # which threads that begin later take over

    # A thread of its own, which leaves the number of threads of all others as it is.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(alone).result()


def _time_convolutions(width: int) -> tuple[float, float]:
    channels = max(width // 2, 1)
    runs: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.enable_grad():
        for dtype in (*runs, *runs, *runs, *runs):
            x = torch.ones(1, channels, 64, 64, dtype=dtype, requires_grad=True)
            weight = torch.ones(channels, channels, 3, 3, dtype=dtype, requires_grad=True)
            x_last, weight_last = (t.to(memory_format=torch.channels_last) for t in (x, weight))
            begin = time.thread_time()
            y = F.conv2d(x_last, weight_last, padding=1)
            torch.autograd.grad(y, (x_last, weight_last), torch.ones_like(y))
            runs[dtype].append(time.thread_time() - begin)
    # The first run of a type chooses and compiles its kernels.
    return min(runs[torch.float32][1:]), min(runs[torch.bfloat16][1:])


def autocast(
    device: torch.device, precision: torch.dtype
) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `precision`; a no-op for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)
