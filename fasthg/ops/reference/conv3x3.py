"""The 3x3 convolution in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`relu?(x * weight + bias)` in x's dtype, padding 1, whatever autocast says.

    x: (batch, in, height, width); weight: (out, in, 3, 3), cast to x's dtype, and bias: (out,).
    """
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.to(x.dtype)
        y = functional.conv2d(x, weight.to(x.dtype), bias, padding=1)
    return functional.relu(y) if relu else y
