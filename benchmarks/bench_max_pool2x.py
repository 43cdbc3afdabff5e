"""Largest of two by two values of 8 x 256 channels x 64 x 64, bfloat16, with the gradient.

Alone, and as an hourglass takes it: with a second reader of x, whose gradient is added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import max_pool2x, max_pool2x_fork

# Each way a map of the large size and one of the small, and a byte a value of the small one.
BYTES = 2 * 8 * 256 * (64 * 64 * 2 + 32 * 32 * 3)
ADDED = 2 * 8 * 256 * 64 * 64


def maps(side, device):
    values = torch.randn(8, 256, side, side, device=device).to(torch.bfloat16)
    return values.contiguous(memory_format=torch.channels_last)


@compare("torch", "fasthg", bytes_moved=BYTES)
def bench_max_pool2x(device):
    x, grad_y = maps(64, device).requires_grad_(), maps(32, device)
    return {
        "torch": lambda: torch.autograd.grad(F.max_pool2d(x, 2, 2), x, grad_y),
        "fasthg": lambda: torch.autograd.grad(max_pool2x(x)[0], x, grad_y),
    }


@compare("torch", "max_pool2x", "fasthg", bytes_moved=BYTES + ADDED)
def bench_max_pool2x_fork(device):
    x, grad_y, grad_skip = maps(64, device).requires_grad_(), maps(32, device), maps(64, device)

    def two_readers(y):
        return torch.autograd.grad((x.view_as(x), y), x, (grad_skip, grad_y))

    return {
        "torch": lambda: two_readers(F.max_pool2d(x, 2, 2)),
        "max_pool2x": lambda: two_readers(max_pool2x(x)[0]),
        "fasthg": lambda: torch.autograd.grad(max_pool2x_fork(x), x, (grad_skip, grad_y)),
    }
