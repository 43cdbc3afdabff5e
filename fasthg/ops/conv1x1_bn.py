"""A 1x1 convolution between two batch norms in one pass: for operators that contain it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasthg.ops import _extension, _layout, reference
from fasthg.ops.bn_act import infer as bn_infer
from fasthg.ops.bn_act import moments
from fasthg.ops.conv1x1_act import HALVES, describe, empty_y
from fasthg.ops.conv1x1_act import run as conv1x1_act

_TILE_ROWS = 128  # kTileRows in csrc/conv1x1_norms.cuh
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


def tiles_of(y: Tensor) -> int:
    """Tiles of rows of a map y, which a kernel reduces one by one."""
    return -(-(y.numel() // y.shape[1]) // _TILE_ROWS)


def describe_norm(x: Tensor, norm: Norm | None) -> tuple[Any, list[Tensor | None]]:
    """What the launchers take as BatchNorm of maps x, and the tensors that it reads: bare addresses
    stand in it, so they must live until the launch.
    """
    of_x = (None,) * 4 if norm is None else (norm.mean, norm.var, norm.beta, norm.gamma)
    real = reference.arithmetic_dtype(x.dtype)
    values = [None if t is None else _extension.as_dtype(t, real).contiguous() for t in of_x]
    names = ("mean", "var", "beta", "gamma")
    addresses = (0 if t is None else t.data_ptr() for t in values)
    described = _extension.native.BatchNorm(
        **dict(zip(names, addresses, strict=True)),
        **dict.fromkeys(("workspace", "parts", "cluster_blocks", "cluster_vectors"), 0),
        **dict.fromkeys(("on_chip", "sums_given"), False),
        rows=x.numel() // x.shape[1],
        channels=x.shape[1],
        eps=0.0 if norm is None else norm.eps,
        relu=norm is not None and norm.relu,
        frozen=True,
    )
    return described, values


def readable(x: Tensor, maps: Tensor) -> Tensor:
    """Maps as the kernels read them: x's dtype, channels last, in whole vectors of 16 bytes."""
    maps = _layout.readable(maps, x.dtype)
    return maps.clone(memory_format=torch.channels_last) if maps.data_ptr() % 16 else maps


def _in_one_pass(
    x: Tensor, weight: Tensor, norm: Norm | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    y, outputs = empty_y(x, len(weight)), len(weight)
    real = reference.arithmetic_dtype(x.dtype)
    workspace = y.new_empty((tiles_of(y), 2, outputs), dtype=real)
    mean, var = (y.new_empty(outputs, dtype=real) for _ in range(2))
    added = None if residual is None else readable(x, residual)
    # The kernel gets bare addresses: `_tensors` and `_values` must live until the launch.
    conv, _tensors = describe(y, readable(x, x), weight, None, added, None, None, False)
    described, _values = describe_norm(x, norm)
    others = (workspace.data_ptr(), mean.data_ptr(), var.data_ptr())
    _extension.call_kernel("conv1x1_bn", x, conv, described, *others)
    return y, mean, var
