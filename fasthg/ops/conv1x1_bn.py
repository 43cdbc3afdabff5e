"""A 1x1 convolution between two batch norms in one pass: for operators that contain it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fasthg.ops import _extension, _layout, reference
from fasthg.ops.bn_act import infer as bn_infer
from fasthg.ops.bn_act import moments
from fasthg.ops.conv1x1_act import HALVES, describe, empty_y
from fasthg.ops.conv1x1_act import run as conv1x1_act

_TILE_ROWS = 128  # kTileRows in csrc/conv1x1_bn_cuda.cu
_CHUNK = 8  # half values in a vector of 16 bytes


class Norm(NamedTuple):
    """A batch norm with known statistics, `relu?((x - mean) / sqrt(var + eps) * gamma + beta)`."""

    mean: Tensor
    """(channels,), as `beta`, `gamma` (None = 1) and the biased `var`."""
    var: Tensor
    beta: Tensor
    gamma: Tensor | None
    relu: bool
    eps: float


def has_kernel(x: Tensor, outputs: int) -> bool:
    """Whether one kernel does it: half types on CUDA, and channels in whole vectors."""
    return (
        _extension.backend(x) == "cuda"
        and x.dtype in HALVES
        and _extension.has_kernel(x)
        and x.numel() > 0
        and outputs > 0
        and not (x.shape[1] % _CHUNK or outputs % _CHUNK)
    )


def run(
    x: Tensor, weight: Tensor, norm: Norm | None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`y = norm(x) weight^T + residual`, and mean and biased variance of y's channels.

    Args:
        x: (batch, in, height, width), any floating dtype.
        weight: (out, in), any dtype.
        norm: of x, rounded to x's dtype before the product; None: x is taken as it is.
        residual: (batch, out, height, width).

    Returns:
        y, x's dtype, channels last: what `bn_act_inference` and then `conv1x1_act` return; mean and
        var, (out,), at least float32, of y as rounded (0 for an empty batch).

    Memory: where `has_kernel`, x and residual are read and y is written once. Elsewhere norm,
    convolution and statistics follow each other.
    """
    if has_kernel(x, len(weight)):
        return _in_one_pass(x, weight, norm, residual)
    if norm is not None:
        x = bn_infer(x, norm.mean, norm.var, norm.beta, norm.gamma, None, norm.relu, norm.eps)
    y = conv1x1_act(x, weight, None, residual, None, None, False)
    return y, *moments(y)


def _in_one_pass(
    x: Tensor, weight: Tensor, norm: Norm | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    y, outputs = empty_y(x, len(weight)), len(weight)
    real = reference.arithmetic_dtype(x.dtype)
    tiles = -(-(y.numel() // outputs) // _TILE_ROWS)
    workspace = y.new_empty((tiles, 2, outputs), dtype=real)
    mean, var = (y.new_empty(outputs, dtype=real) for _ in range(2))
    read = _aligned(_layout.readable(x, x.dtype))
    added = None if residual is None else _aligned(_layout.readable(residual, x.dtype))
    # The kernel gets bare addresses: `_tensors` and `values` must live until the launch.
    conv, _tensors = describe(y, read, weight, None, added, None, None, False)
    of_x = (None,) * 4 if norm is None else (norm.mean, norm.var, norm.beta, norm.gamma)
    values = [None if t is None else t.to(real).contiguous() for t in of_x]
    names = ("mean", "var", "beta", "gamma")
    addresses = (0 if t is None else t.data_ptr() for t in values)
    described = _extension.native.BatchNorm(
        **dict(zip(names, addresses, strict=True)),
        **dict.fromkeys(("workspace", "parts", "cluster_blocks", "cluster_vectors"), 0),
        rows=y.numel() // outputs,
        channels=x.shape[1],
        eps=0.0 if norm is None else norm.eps,
        relu=norm is not None and norm.relu,
        frozen=True,
        on_chip=False,
    )
    others = (workspace.data_ptr(), mean.data_ptr(), var.data_ptr())
    _extension.call_kernel("conv1x1_bn", x, conv, described, *others)
    return y, mean, var


def _aligned(maps: Tensor) -> Tensor:
    """The maps, copied where they do not start at a multiple of 16 bytes."""
    return maps.clone(memory_format=torch.channels_last) if maps.data_ptr() % 16 else maps
