"""Largest of two by two values in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def max_pool2x(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each two by two values, and which of the four it was, row by row, as uint8.

    x: (batch, channels, height, width). Returns two (batch, channels, height // 2, width // 2).
    """
    batch, channels, height, width = x.shape
    if not batch * channels * (height // 2) * (width // 2):  # torch refuses results without values
        y = x[:, :, : height // 2, : width // 2]
        return y.clone(), torch.zeros_like(y, dtype=torch.uint8)
    y, cell = functional.max_pool2d(x, 2, 2, return_indices=True)
    row, column = cell.div(width, rounding_mode="floor"), cell % width
    return y, (row % 2 * 2 + column % 2).to(torch.uint8)


def max_pool2x_backward(
    grad_y: Tensor, index: Tensor, addend: Tensor | None, height: int, width: int
) -> Tensor:
    """The gradient of x: grad_y where the largest value was, 0 elsewhere, plus addend, as x."""
    batch, channels, rows, columns = grad_y.shape
    positions = torch.arange(4, device=grad_y.device)
    grad_x = grad_y.new_zeros(batch, channels, height, width)
    values = torch.where(index[..., None] == positions, grad_y[..., None], 0)
    values = values.unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5)
    grad_x[:, :, : 2 * rows, : 2 * columns] = values.reshape(batch, channels, 2 * rows, 2 * columns)
    return grad_x if addend is None else grad_x + addend
