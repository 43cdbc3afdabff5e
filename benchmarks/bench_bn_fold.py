"""Batch norm folded into a convolution of 128 to 256 channels, and the gradients of both."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.ops import bn_fold, bn_fold_backward, reference

INPUTS, OUTPUTS, ROWS, EPS = 128, 256, 8 * 64 * 64, 1e-3
# Forward: weight and covariance in, folded out; backward: product too, grad_weight, back and mix.
BYTES = 4 * (4 * OUTPUTS * INPUTS + 2 * INPUTS**2) + 2 * (2 * OUTPUTS * INPUTS + INPUTS**2)


@compare("torch", "fasthg", bytes_moved=BYTES)
def bench_bn_fold(device):
    a = torch.randn(1000, INPUTS, device=device).relu()
    weight, product = torch.randn(2, OUTPUTS, INPUTS, device=device) / INPUTS**0.5
    beta, total = torch.randn(2, OUTPUTS, device=device)
    moments = a.mean(0), torch.cov(a.mT, correction=0)

    def both(fold, fold_backward):
        forward = fold(weight, *moments, beta, EPS, torch.bfloat16)
        arguments = (product, total, weight, *moments, *forward[2:], ROWS, EPS, torch.bfloat16)
        return forward, fold_backward(*arguments)

    return {
        "torch": lambda: both(reference.bn_fold, reference.bn_fold_backward),
        "fasthg": lambda: both(bn_fold, bn_fold_backward),
    }
