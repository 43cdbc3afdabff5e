"""The device and the number format that a configuration asks for."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from fasthg.errors import EnvironmentFault


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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that PRECISION names; auto takes bfloat16 where the hardware multiplies it."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(
    device: torch.device, precision: torch.dtype
) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `precision`; a no-op for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)
