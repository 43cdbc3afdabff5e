"""What the operators on channels-last maps share: layouts, and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasthg.ops import _extension


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Maps (batch, channels, height, width) to be written, channels last."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def empty_like(x: Tensor) -> Tensor:
    """Maps of x's shape, dtype and device, channels last however x lies."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def readable(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels read maps of `dtype`: channels last, no gaps; float32 for CPU float16."""
    if dtype == torch.float16 and _extension.backend(values) == "cpu":
        dtype = torch.float32
    return _extension.as_dtype(values, dtype).contiguous(memory_format=torch.channels_last)


def check(op: str, name: str, x: Tensor) -> None:
    """Refuse what is no floating (batch, channels, height, width); raises ValueError."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name}: expected a torch.Tensor, got a {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(
            f"{op}: {name}: expected (batch, channels, height, width), got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"{op}: {name}: expected a floating dtype, got {x.dtype}")
