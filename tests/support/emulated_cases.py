"""What tests of emulated kernels share: dtypes with their errors, covering cases, and layouts."""

from __future__ import annotations

import pytest
import torch
from emulated_extension import ORDERS
from pairwise import covering

# dtype of the maps and one rounding of a value near 1
DTYPES = [
    (torch.float32, 1e-6),
    (torch.float64, 1e-14),
    (torch.float16, 2.0**-11 + 1e-6),
    (torch.bfloat16, 2.0**-8 + 1e-6),
]
WIDE, HALVES = DTYPES[:2], DTYPES[2:]
FLAG = (False, True)


def cases(names, *parameters):
    """Parametrize by order, dtype, error and `names`; the first of `parameters` are dtypes."""
    rows = [(order, *dtype, *rest) for order, dtype, *rest in covering(ORDERS, *parameters)]
    return pytest.mark.parametrize(["order", "dtype", "error", *names], rows)


def widened(dtype):
    """The dtype in which the CPU computes what the kernel stores as `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unaligned(tensor):
    """The same values at an address that is no multiple of 16 bytes."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def as_maps(rows):
    """(rows, channels) or (rows, width, channels) as one image, channels last in memory."""
    rows = rows[:, None] if rows.dim() == 2 else rows
    return rows[None].permute(0, 3, 1, 2)
