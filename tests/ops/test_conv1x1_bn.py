from __future__ import annotations

import pytest
import torch
from op_testing import LAYOUTS

from fasthg.ops import conv1x1_bn
from fasthg.ops.bn_act import infer
from fasthg.ops.conv1x1_act import run as conv1x1_act


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_convolution_and_statistics(device, dtype, normed, layout):
    random = torch.Generator().manual_seed(0)
    x = layout((torch.randn(2, 16, 9, 7, generator=random) * 2 + 3).to(dtype)).to(device)
    weight = torch.randn(24, 16, generator=random).to(device) / 4
    mean, var, beta, gamma = (torch.rand(4, 16, generator=random) + 0.5).to(device)
    norm = conv1x1_bn.Norm(mean, var, beta, gamma, True, 1e-3) if normed else None
    residual = torch.randn(2, 24, 9, 7, generator=random).to(device, dtype)
    y, *moments = conv1x1_bn.run(x, weight, norm, residual)
    a = infer(x, mean, var, beta, gamma, None, True, 1e-3) if normed else x
    assert torch.equal(y, conv1x1_act(a, weight, None, residual, None, None, False))
    exact = y.double().mean((0, 2, 3)), y.double().var((0, 2, 3), correction=0)
    for actual, expected in zip(moments, exact, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


# Of each width of tile, and more inputs than weights stay on chip for. On a GPU a block takes more
# than one tile of 128 rows.
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 256), (40, 128), (40, 64), (1536, 72)])
def test_blocks_that_take_several_tiles(device, inputs, outputs):
    random = torch.Generator().manual_seed(0)
    side = 230 if device.type == "cuda" else 13
    x = (torch.randn(1, inputs, side, side, generator=random) * 2 + 3).to(device, torch.bfloat16)
    weight = torch.randn(outputs, inputs, generator=random).to(device) / inputs**0.5
    mean, var, beta = (torch.rand(3, inputs, generator=random) + 0.5).to(device)
    y, *moments = conv1x1_bn.run(x, weight, conv1x1_bn.Norm(mean, var, beta, None, True, 1e-3))
    a = infer(x, mean, var, beta, None, None, True, 1e-3)
    assert torch.equal(y, conv1x1_act(a, weight, None, None, None, None, False))
    # On processors without instructions for it, torch rounds sums of bfloat16 on the way.
    exact = torch.einsum("bchw,oc->bohw", a.double(), weight.to(x.dtype).double())
    assert (y.double() - exact).norm() < 0.01 * exact.norm()
    exact = y.double().mean((0, 2, 3)), y.double().var((0, 2, 3), correction=0)
    for actual, expected in zip(moments, exact, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_batch(device):
    x, weight = torch.zeros(0, 8, 4, 4, device=device), torch.ones(8, 8, device=device)
    y, mean, var = conv1x1_bn.run(x, weight, None)
    assert y.shape == x.shape and not mean.any() and not var.any()
