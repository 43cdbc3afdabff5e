"""A residual of the hourglass with gradients: 8 x 256 channels x 64 x 64, bfloat16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import bn_act, residual_block

SHAPE, HALF = (8, 256, 64, 64), 128
# As the operator's docstring counts: 5.5 maps forward and 9.5 backward are the least possible.
BYTES = 15 * 8 * 256 * 64 * 64 * 2


# Seconds a call where the processor does not multiply bfloat16.
@compare("torch", "bn_act", "fasthg", bytes_moved=BYTES, rounds=(7, 7))
def bench_residual_block(device):
    random = torch.Generator().manual_seed(0)
    x, grad_y = (
        torch.randn(SHAPE, generator=random)
        .to(device, torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    sizes = [(HALF, SHAPE[1], 1, 1), (HALF, HALF, 3, 3), (SHAPE[1], HALF, 1, 1)]
    weights = [
        (torch.randn(size, generator=random) / 20)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for size in sizes
    ]
    offsets = [torch.zeros(size[0], device=device) for size in sizes]
    # Without a scale, torch finds no gradient of an offset on a GPU.
    scales = {size[0]: torch.ones(size[0], device=device) for size in sizes}
    inputs = [t.requires_grad_() for t in (x, *weights, *offsets)]

    def layers(norm):
        halves = [weight.to(torch.bfloat16) for weight in weights]
        inner = norm(F.conv2d(x, halves[0]), offsets[0], None, True)
        inner = norm(F.conv2d(inner, halves[1], padding=1), offsets[1], None, True)
        return norm(F.conv2d(inner, halves[2]), offsets[2], x, False)

    def plain(y, offset, residual, relu):
        y = F.batch_norm(y, None, None, scales[len(offset)], offset, True, eps=1e-3)
        y = y if residual is None else y + residual
        return F.relu(y, inplace=True) if relu else y

    def fused_norm(y, offset, residual, relu):
        return bn_act(y, offset, None, residual, relu=relu)[0]

    def block():
        pairs = zip(weights, offsets, strict=True)
        return residual_block(x, *(t for pair in pairs for t in pair))[0]

    return {
        "torch": lambda: torch.autograd.grad(layers(plain), inputs, grad_y),
        "bn_act": lambda: torch.autograd.grad(layers(fused_norm), inputs, grad_y),
        "fasthg": lambda: torch.autograd.grad(block(), inputs, grad_y),
    }
