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


# Members of the structs that launchers take: numbers (addresses among them), flags.
CONV1X1 = (
    (
        *("x", "weight", "x2", "weight2", "bias", "residual", "y", "pitch", "pitch2", "rows"),
        *("in_", "in2", "outputs"),
    ),
    ("transposed", "transposed2", "wide", "wide2", "relu"),
)
BATCH_NORM = (
    (
        *("beta", "gamma", "mean", "var", "workspace", "rows", "channels", "parts"),
        *("cluster_blocks", "cluster_vectors"),
    ),
    ("relu", "frozen", "sums_given", "on_chip"),
)


def conv1x1(emulation, **members):
    """A Conv1x1 whose other members are 0."""
    return emulation.Conv1x1(**_zeros(*CONV1X1) | members)


def batch_norm(emulation, **members):
    """A BatchNorm whose other members are 0."""
    return emulation.BatchNorm(**_zeros(*BATCH_NORM) | {"eps": 0.0} | members)


def _zeros(numbers, flags):
    return dict.fromkeys(numbers, 0) | dict.fromkeys(flags, False)


def norm_inputs(rows, channels, outputs, dtype, gamma=False, relu=True):
    """x (rows, channels), weight and a norm of x, as `Norm` takes it; its means are large."""
    random = torch.Generator().manual_seed(rows)
    x = (torch.randn(rows, channels, generator=random) * 2 + 3).to(dtype)
    weight = torch.randn(outputs, channels, generator=random) / channels**0.5
    weight = (weight + 4 / channels).to(dtype)
    mean, var, beta, scale = torch.rand(4, channels, generator=random) + 0.5
    return x, weight, (mean * 3, var * 4, beta + 1, scale if gamma else None, relu, 1e-3)
