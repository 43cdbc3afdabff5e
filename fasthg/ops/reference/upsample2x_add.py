"""Nearest-neighbour upsampling onto a map, in plain torch."""

from __future__ import annotations

from torch import Tensor

from fasthg.ops.reference.dtypes import arithmetic_dtype


def upsample2x_add(low: Tensor, high: Tensor) -> Tensor:
    """`high` plus each value of `low` two by two times, in high's dtype.

    low: (batch, channels, height, width). high: (batch, channels, 2 height, 2 width).
    """
    batch, channels, height, width = low.shape
    work = arithmetic_dtype(low.dtype)
    # Expanded as the channels-last view it is: layouts survive, and the gradient is a plain sum.
    rows = low.to(work).permute(0, 2, 3, 1)[:, :, None, :, None, :]
    wide = rows.expand(batch, height, 2, width, 2, channels)
    wide = wide.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    return (high.to(work) + wide).to(high.dtype)


def upsample2x_add_backward(grad_y: Tensor) -> Tensor:
    """The gradient of `low`: sums of two by two values, in grad_y's dtype."""
    batch, channels, height, width = grad_y.shape
    blocks = grad_y.to(arithmetic_dtype(grad_y.dtype)).reshape(
        batch, channels, height // 2, 2, width // 2, 2
    )
    return blocks.sum((3, 5)).to(grad_y.dtype)
