"""Upsample a map onto one of twice its size in one pass, without storing the enlarged map."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _extension, _layout, reference


def _forward(low: Tensor, high: Tensor) -> Tensor:
    if not high.numel():
        return _layout.empty_like(high)
    if not _extension.has_kernel(high):
        return _layout.empty_like(high).copy_(reference.upsample2x_add(low, high))
    batch, channels, height, width = low.shape
    small, large = (_layout.readable(t, high.dtype) for t in (low, high))
    y = _layout.empty_like(large)
    addresses = small.data_ptr(), large.data_ptr()
    _extension.call_kernel(
        "upsample2x_add", large, *addresses, batch * height, width, channels, y.data_ptr()
    )
    return _extension.as_dtype(y, high.dtype)


def _empty_low(grad_y: Tensor) -> Tensor:
    batch, channels, height, width = grad_y.shape
    return _layout.empty((batch, channels, height // 2, width // 2), grad_y.dtype, grad_y.device)


def _grad_low(grad_y: Tensor) -> Tensor:
    if not grad_y.numel():
        return _empty_low(grad_y)
    if not _extension.has_kernel(grad_y):
        return _empty_low(grad_y).copy_(reference.upsample2x_add_backward(grad_y))
    grad_y_read = _layout.readable(grad_y, grad_y.dtype)
    grad_low = _empty_low(grad_y_read)
    batch, channels, height, width = grad_low.shape
    sizes = batch * height, width, channels
    _extension.call_kernel(
        "upsample2x_add_backward", grad_y_read, grad_y_read.data_ptr(), *sizes, grad_low.data_ptr()
    )
    return _extension.as_dtype(grad_low, grad_y.dtype)


@once_differentiable
def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor]:
    return _backward_operator(grad_y) if ctx.needs_input_grad[0] else None, grad_y


_operator = _extension.register(
    "upsample2x_add(Tensor low, Tensor high) -> Tensor",
    _forward,
    lambda low, high: _layout.empty_like(high),
    setup_context=lambda ctx, inputs, output: None,
    backward=_backward,
)
_backward_operator = _extension.register(
    "upsample2x_add_backward(Tensor grad_y) -> Tensor", _grad_low, _empty_low
)


def upsample2x_add(low: Tensor, high: Tensor) -> Tensor:
    """Nearest-neighbour upsampling of `low` by 2, added to `high`; the enlarged map is not stored.

    `y[b, c, i, j] = high[b, c, i, j] + low[b, c, i // 2, j // 2]`. Nothing is kept for the
    backward, which sums two by two values for low; high's gradient is y's own.

    Args:
        low: (batch, channels, height, width), any floating dtype; channels last in memory without a
            copy, anything else through one.
        high: (batch, channels, 2 height, 2 width), otherwise as low.

    Returns:
        y as high, channels last. Differentiable once with respect to both.

    Equivalent to:
        y = high + F.interpolate(low, scale_factor=2, mode="nearest")

    Error: one rounding of y's dtype, in the gradients as well; half types are summed in float32.
    Memory, in units of high: 2.25 forward (low and high read, y written), 1.25 backward (y's
    gradient read, low's written); the floor in both.

    Raises:
        ValueError: wrong shape, not floating, two dtypes or devices.
    """
    _layout.check("upsample2x_add", "low", low)
    batch, channels, height, width = low.shape
    expected = (batch, channels, 2 * height, 2 * width)
    if high.shape != expected:
        raise ValueError(f"upsample2x_add: high: expected {expected}, got {tuple(high.shape)}")
    if high.dtype != low.dtype:
        raise ValueError(f"upsample2x_add: high: expected low's {low.dtype}, got {high.dtype}")
    if high.device != low.device:
        raise ValueError(
            f"upsample2x_add: high is on {high.device}, low on {low.device}: "
            "move them to one device"
        )
    y: Tensor = _operator(low, high)
    return y
