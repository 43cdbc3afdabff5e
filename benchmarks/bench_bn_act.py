"""Batch norm, residual and ReLU with gradients: 8 x 64 channels x 128 x 128, bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fasthg.ops import bn_act

SHAPE = (8, 64, 128, 128)
VALUES = 8 * 64 * 128 * 128
# Forward: x twice, y; backward: x and y's gradient twice, x's gradient. A residual adds a read.
BYTES = {"relu": 8 * VALUES * 2, "residual": 9 * VALUES * 2}
FLOORS = {"relu": {"torch": 1.2}, "residual": {"torch": 1.2}}


def providers(device, kind):
    x, residual, incoming = (
        torch.randn(SHAPE, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    beta = torch.zeros(SHAPE[1], device=device, requires_grad=True)
    x.requires_grad_()
    residual.requires_grad_()
    added = residual if kind == "residual" else None
    inputs = (x, beta) if added is None else (x, beta, added)

    def plain():
        y = F.batch_norm(x, None, None, None, beta, True, eps=1e-3)
        return F.relu(y, inplace=True) if added is None else y + added

    def fused():
        return bn_act(x, beta, None, added, relu=added is None)[0]

    return {
        "torch": lambda: torch.autograd.grad(plain(), inputs, incoming),
        "fasthg": lambda: torch.autograd.grad(fused(), inputs, incoming),
    }


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("provider", ["torch", "fasthg"])
def bench_bn_act(benchmark, bench, provider, kind):
    bench.row(benchmark, providers(bench.device, kind)[provider], BYTES[kind])


@pytest.mark.parametrize("kind", BYTES)
def bench_bn_act_ratio(bench, kind):
    bench.check(providers(bench.device, kind), FLOORS[kind])
