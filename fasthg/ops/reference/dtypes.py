"""The dtypes of arithmetic."""

from __future__ import annotations

import torch


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator computes for tensors of `dtype`: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32
