"""A residual of the hourglass with gradients: 32 images of 256 channels, bfloat16, on a GPU.

The providers are the three values of FUSED: torch's modules (off), `bn_act` after each convolution
(auto) and one operator (on).
"""

from __future__ import annotations

import pytest
import torch
from compare import compare

from fasthg.model.layers import Residual, set_fused

FUSED = {"torch": "off", "bn_act": "auto", "fasthg": "on"}


def bytes_moved(size):
    """The least: each map read and written once, 5.5 of x's size forward and 9.5 backward."""
    return 15 * 32 * 256 * size**2 * 2


@compare(*FUSED, bytes_moved=bytes_moved, size=[64, 32, 16, 8, 4])
def bench_residual_block(device, size):
    if device.type != "cuda":
        pytest.skip("a GPU alone has the kernels")

    def maps():
        x = torch.randn(32, 256, size, size, device=device, dtype=torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last)

    def run(fused):
        torch.manual_seed(0)
        block = Residual(256, 256).to(device, memory_format=torch.channels_last)
        set_fused(block, fused)
        for layer in (block.conv1, block.conv2, block.conv3):
            layer.conv.to(torch.bfloat16)
        x, grad_y = maps().requires_grad_(), maps()
        assert block.fuses(x) == (fused == "on")
        leaves = [x, *block.parameters()]
        return lambda: torch.autograd.grad(block(x), leaves, grad_y)

    return {name: run(fused) for name, fused in FUSED.items()}
