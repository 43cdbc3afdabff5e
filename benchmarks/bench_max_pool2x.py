"""Largest of two by two values of 8 x 256 channels x 64 x 64, bfloat16, with the gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import max_pool2x

# Each way a map of the large size and one of the small, and a byte a value of the small one.
BYTES = 2 * 8 * 256 * (64 * 64 * 2 + 32 * 32 * 3)


@compare("torch", "fasthg", bytes_moved=BYTES)
def bench_max_pool2x(device):
    x, grad_y = (
        torch.randn(8, 256, side, side, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for side in (64, 32)
    )
    x.requires_grad_()
    return {
        "torch": lambda: torch.autograd.grad(F.max_pool2d(x, 2, 2), x, grad_y),
        "fasthg": lambda: torch.autograd.grad(max_pool2x(x)[0], x, grad_y),
    }
