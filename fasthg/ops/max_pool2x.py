"""Halve maps by the largest of two by two values, keeping one byte a result for the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _extension, _layout, reference


def _halved(x: Tensor, dtype: torch.dtype) -> Tensor:
    batch, channels, height, width = x.shape
    return _layout.empty((batch, channels, height // 2, width // 2), dtype, x.device)


def _memory_shape(batch: int, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    return batch, height, width, channels


def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    index = _halved(x, torch.uint8)
    if not _extension.has_kernel(x):
        y = _halved(x, x.dtype)
        for out, values in zip((y, index), reference.max_pool2x(x), strict=True):
            out.copy_(values)
        return y, index
    read = _layout.readable(x, x.dtype)
    y = _halved(read, read.dtype)
    if y.numel():
        addresses = y.data_ptr(), index.data_ptr()
        _extension.call_kernel(
            "max_pool2x", read, read.data_ptr(), _memory_shape(*x.shape), *addresses
        )
    return _extension.as_dtype(y, x.dtype), index


def _grad_x(
    grad_y: Tensor, index: Tensor, addend: Tensor | None, height: int, width: int
) -> Tensor:
    shape = (*grad_y.shape[:2], height, width)
    if not grad_y.numel() or not _extension.has_kernel(grad_y):
        grad_x = _layout.empty(shape, grad_y.dtype, grad_y.device)
        return grad_x.copy_(reference.max_pool2x_backward(grad_y, index, addend, height, width))
    grad_y_read = _layout.readable(grad_y, grad_y.dtype)
    added = None if addend is None else _layout.readable(addend, grad_y.dtype)
    index = index.contiguous(memory_format=torch.channels_last)
    grad_x = _layout.empty(shape, grad_y_read.dtype, grad_y.device)
    _extension.call_kernel(
        "max_pool2x_backward",
        grad_y_read,
        grad_y_read.data_ptr(),
        index.data_ptr(),
        0 if added is None else added.data_ptr(),
        _memory_shape(*shape),
        grad_x.data_ptr(),
    )
    return _extension.as_dtype(grad_x, grad_y.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    (x,), (_, index) = inputs, output
    ctx.mark_non_differentiable(index)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(index)
    ctx.size = x.shape[2:]


@once_differentiable
def _backward(ctx: Any, grad_y: Tensor | None, grad_index: None) -> Tensor | None:
    if grad_y is None:
        return None
    grad_x: Tensor = _backward_operator(grad_y, *ctx.saved_tensors, None, *ctx.size)
    return grad_x


_operator = _extension.register(
    "max_pool2x(Tensor x) -> (Tensor, Tensor)",
    _forward,
    lambda x: (_halved(x, x.dtype), _halved(x, torch.uint8)),
    setup_context=_setup_context,
    backward=_backward,
)
_backward_operator = _extension.register(
    "max_pool2x_backward(Tensor grad_y, Tensor index, Tensor? addend, SymInt height, SymInt width)"
    " -> Tensor",
    _grad_x,
    lambda grad_y, index, addend, height, width: _layout.empty(
        (*grad_y.shape[:2], height, width), grad_y.dtype, grad_y.device
    ),
)


def max_pool2x(x: Tensor) -> tuple[Tensor, Tensor]:
    """Max pooling 2x2, stride 2: the largest of each 2x2 values, and its position among the four.

    The backward needs that index alone, one byte a result; torch's own keeps x and eight bytes. It
    writes every value of the gradient once and adds nothing up.

    Args:
        x: (batch, channels, height, width), any floating dtype; channels last in memory without a
            copy, anything else through one.

    Returns:
        y: (batch, channels, height // 2, width // 2), as x, channels last, differentiable once; a
        last odd row or column is left out. index: likewise, uint8: 2 * row + column of the first
        of the largest values among the four. NaN counts as larger than all numbers, and of
        several the last one wins, as in torch.

    Equivalent to:
        y = F.max_pool2d(x, 2, 2)

    Error: none, nor in the gradient.
    Memory, in units of x: 1.375 forward in 16 bits (x read, y and index written), 1.3125 in 32;
    backward the same (y's gradient and index read, x's written). The floor has two bits in place
    of the byte: 93 % and 96 % of it.

    Raises:
        ValueError: wrong shape, not floating.
    """
    _layout.check("max_pool2x", "x", x)
    y, index = _operator(x)
    return y, index


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y, index = _forward(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(index)
        ctx.size = x.shape[2:]
        return x.view_as(x), y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_skip: Tensor | None, grad_y: Tensor | None) -> Tensor | None:
        if grad_y is None:
            return grad_skip
        (index,) = ctx.saved_tensors
        grad_x: Tensor = _backward_operator(grad_y, index, grad_skip, *ctx.size)
        return grad_x


def max_pool2x_fork(x: Tensor) -> tuple[Tensor, Tensor]:
    """x for another reader, and x pooled: one pass of the backward adds the gradients of both.

    Autograd would write the gradient of the pooling, read it back with that of the other reader,
    and write their sum: 2 units of x more than here.

    Args:
        x: as in `max_pool2x`.

    Returns:
        skip: x; y: `max_pool2x(x)[0]`. Under a compiler, tracer or transform, which the operator
        is called through, skip is x itself, and their gradients are added as ever.

    Example:
        >>> skip, half = max_pool2x_fork(x)
        >>> y = upsample2x_add(inner(half), outer(skip))

    Equivalent to:
        skip, y = x, F.max_pool2d(x, 2, 2)

    Error: none, nor in the gradient.
    Memory, in units of x: forward as `max_pool2x`; backward 2.375 in 16 bits, 2.3125 in 32 (the
    gradients of both and index read, x's written).

    Raises:
        ValueError: wrong shape, not floating.
    """
    _layout.check("max_pool2x", "x", x)
    watched = _extension.needs_dispatcher((x,), profiled=False)
    if watched or not (torch.is_grad_enabled() and x.requires_grad):
        return x, max_pool2x(x)[0]
    _extension.refuse_tangents("max_pool2x", (x,))
    skip, y = _Fork.apply(x)
    return skip, y
