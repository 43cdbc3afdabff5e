"""3x3 convolution and its gradients, as in a residual block: 8 images of 128 channels, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import conv3x3

CHANNELS, SIDE = 128, 32
MAP = 8 * CHANNELS * SIDE * SIDE * 4
BYTES = 6 * MAP  # x and y's gradient are read twice, y and x's gradient written


@compare("torch", "fasthg", bytes_moved=BYTES)
def bench_conv3x3(device):
    def maps():
        values = torch.randn(8, CHANNELS, SIDE, SIDE, device=device)
        return values.contiguous(memory_format=torch.channels_last)

    x, grad_y = maps().requires_grad_(), maps()
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device) / 34
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    return {
        "torch": lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), grad_y),
        "fasthg": lambda: torch.autograd.grad(conv3x3(x, weight), (x, weight), grad_y),
    }
