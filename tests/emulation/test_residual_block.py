"""The residual with norms in its 1x1 convolutions on emulated CUDA kernels."""

from __future__ import annotations

import pytest
import torch
from emulated_cases import HALVES, cases

from fasthg.ops import residual_block

pytestmark = pytest.mark.slow  # a minute to compile


def inputs_of(dtype, channels=48, size=(2, 9, 16)):
    """x, weights and offsets in their order, and the gradient of y."""
    half, random = channels // 2, torch.Generator().manual_seed(0)
    batch, height, width = size
    x, grad_y = torch.randn(2, batch, channels, height, width, generator=random).to(dtype)
    shapes = ((half, channels, 1, 1), (half,), (half, half, 3, 3), (half,))
    shapes += ((channels, half, 1, 1), (channels,))
    weights = [torch.randn(shape, generator=random) / shape[0] ** 0.5 for shape in shapes]
    weights = [w.to(dtype) if w.dim() == 4 else w for w in weights]
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, grad_y)]
    return last[0], weights, last[1]


def results(x, weights, grad_y):
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    y, statistics = residual_block(*leaves)
    gradients = torch.autograd.grad(y, leaves, grad_y)
    return [y.detach(), *statistics, *gradients]


@cases(["channels"], HALVES, [48, 12])
def test_residual_block(emulated, order, dtype, error, channels):
    """288 rows; of 12 channels, whose rows are no vectors, norms and convolutions in turn."""
    inputs = inputs_of(dtype, channels)
    # Which rounds in the same places: in float64, ReLUs of values near 0 would be on other sides.
    expected = results(*inputs)
    with emulated(order):
        actual = results(*inputs)
    for one, right in zip(actual, expected, strict=True):
        difference = (one - right).norm() / right.norm()
        assert one.dtype == right.dtype and difference < 2 * error


def test_launches(emulated, switches):
    """Of ours: two for each 1x1 convolution with statistics, and so on."""
    x, weights, grad_y = inputs_of(torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, *weights)]
    with emulated("natural"):
        switches.emulation_launches()
        y, _ = residual_block(*leaves)
        # Convolutions and statistics of both 1x1: 4; a1 and y: 2; statistics of z2: 2.
        assert switches.emulation_launches() == 8
        torch.autograd.grad(y, leaves, grad_y)
        # Sums of bn3 and bn1: 4; gradients of inputs: 2 with sums and 1; of z2: 1; of weights: 4.
        assert switches.emulation_launches() == 12
