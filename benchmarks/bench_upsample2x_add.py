"""Upsampling onto a map of 8 x 256 channels x 64 x 64, bfloat16, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import upsample2x_add

# Forward: both maps, y; backward: y's gradient and that of the small map.
BYTES = int(3.5 * 8 * 256 * 64 * 64 * 2)


@compare("torch", "fasthg", bytes_moved=BYTES)
def bench_upsample2x_add(device):
    high, low, grad_y = (
        torch.randn(8, 256, side, side, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for side in (64, 32, 64)
    )
    inputs = low.requires_grad_(), high.requires_grad_()

    def plain():
        return high + F.interpolate(low, scale_factor=2, mode="nearest")

    return {
        "torch": lambda: torch.autograd.grad(plain(), inputs, grad_y),
        "fasthg": lambda: torch.autograd.grad(upsample2x_add(low, high), inputs, grad_y),
    }
