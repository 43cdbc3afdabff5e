"""Batch norm, residual and ReLU with gradients, bfloat16: 8 x 64 channels x 128 x 128, and a map of
the hourglass's lower levels, which on a GPU takes one launch each way."""

from __future__ import annotations

import importlib
import math
from unittest import mock

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import bn_act

SHAPES = {"relu": (8, 64, 128, 128), "residual": (8, 64, 128, 128), "small": (8, 256, 16, 16)}
# Forward: x twice, y; backward: x and y's gradient twice, x's gradient. A residual adds a read, one
# launch leaves out the second reads.
READS = {"relu": 8, "residual": 9, "small": 5}
BYTES = {kind: READS[kind] * 2 * math.prod(shape) for kind, shape in SHAPES.items()}


@compare("torch", "three launches", "fasthg", bytes_moved=lambda kind: BYTES[kind], kind=SHAPES)
def bench_bn_act(device, kind):
    shape = SHAPES[kind]
    x, residual, grad_y = (
        torch.randn(shape, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    beta = torch.zeros(shape[1], device=device, requires_grad=True)
    x.requires_grad_()
    residual.requires_grad_()
    added = residual if kind == "residual" else None
    one = torch.ones(shape[1], device=device)  # without it, no gradient of beta on a GPU
    inputs = (x, beta) if added is None else (x, beta, added)

    def plain():
        y = F.batch_norm(x, None, None, one, beta, True, eps=1e-3)
        return F.relu(y, inplace=True) if added is None else y + added

    def fused():
        return bn_act(x, beta, None, added, relu=added is None)[0]

    def three_launches():
        module = importlib.import_module("fasthg.ops.bn_act")
        with mock.patch.object(module, "_ON_CHIP_ROWS", 0):
            return torch.autograd.grad(fused(), inputs, grad_y)

    choice = device.type == "cuda" and kind == "small"
    return {
        "torch": lambda: torch.autograd.grad(plain(), inputs, grad_y),
        "three launches": three_launches if choice else "small maps on a GPU alone have the choice",
        "fasthg": lambda: torch.autograd.grad(fused(), inputs, grad_y),
    }
