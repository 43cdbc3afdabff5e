"""Upsampling onto a map of 8 x 256 channels x 64 x 64, bfloat16, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from race import race

from fasthg.ops import upsample2x_add

# Forward: both maps, y; backward: y's gradient and that of the small map.
BYTES = int(3.5 * 8 * 256 * 64 * 64 * 2)


@race("torch", "fasthg", moved=BYTES)
def bench_upsample2x_add(device):
    high, low, incoming = (
        torch.randn(8, 256, side, side, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for side in (64, 32, 64)
    )
    inputs = low.requires_grad_(), high.requires_grad_()

    def plain():
        return high + F.interpolate(low, scale_factor=2, mode="nearest")

    return {
        "torch": lambda: torch.autograd.grad(plain(), inputs, incoming),
        "fasthg": lambda: torch.autograd.grad(upsample2x_add(low, high), inputs, incoming),
    }
