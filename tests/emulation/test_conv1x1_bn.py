"""The 1x1 convolution between two batch norms on emulated CUDA kernels."""

from __future__ import annotations

import pytest
import torch
from emulated_cases import (
    FLAG,
    HALVES,
    as_maps,
    batch_norm,
    cases,
    conv1x1,
    norm_inputs,
    unaligned,
)
from emulated_extension import ORDERS

from fasthg.ops import conv1x1_bn
from fasthg.ops.bn_act import infer
from fasthg.ops.conv1x1_act import run as conv1x1_act

pytestmark = pytest.mark.slow  # a minute to compile


def inputs_of(rows, channels, outputs, dtype, residual=False, gamma=False, relu=True):
    """x, weight, its norm and a residual; means are large, so that sums of squares would fail."""
    x, weight, norm = norm_inputs(rows, channels, outputs, dtype, gamma, relu)
    added = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
    return as_maps(x), weight, conv1x1_bn.Norm(*norm), as_maps(added) if residual else None


def check(emulated, order, x, weight, norm, residual):
    """y has the bits of a norm and a convolution, and the moments are those of y."""
    with emulated(order):
        y, mean, var = conv1x1_bn.run(x, weight, norm, residual)
        a = x
        if norm is not None:
            of_x = (norm.mean, norm.var, norm.beta, norm.gamma)
            a = infer(x, *of_x, None, norm.relu, norm.eps)
        expected = conv1x1_act(a, weight, None, residual, None, None, False)
    assert torch.equal(y, expected)
    assert mean.dtype == var.dtype == torch.float32
    exact = y.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-9
    )
    return y, mean, var


# rows, in, out: a row; parts of parts of a tile; several tiles; edges of channels and outputs
@cases(
    ["shape", "norm", "residual", "gamma", "relu"],
    HALVES,
    [(1, 8, 8), (45, 24, 72), (291, 40, 64), (130, 72, 136)],
    *[FLAG] * 4,
)
def test_conv1x1_bn(emulated, switches, order, dtype, error, shape, norm, residual, gamma, relu):
    x, weight, of_x, added = inputs_of(*shape, dtype, residual, gamma, relu)
    switches.emulation_launches()
    check(emulated, order, x, weight, of_x if norm else None, added)
    assert switches.emulation_launches() == (4 if norm else 3)  # two, and those that it stands for


@pytest.mark.parametrize("order", ORDERS)
def test_all_tiles_give_the_same_result(emulated, gpu, order):
    """Of 256, 128 and 64 outputs, the last with and without the weights of all inputs."""
    inputs = inputs_of(261, 72, 136, torch.bfloat16, residual=True)
    results = []
    for kibibytes in (227, 110, 90, 85) if order == "natural" else (227, 85):
        gpu(1, kibibytes)
        results.append(check(emulated, order, *inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_the_kernel_does_not_take(emulated, emulation):
    with emulated("natural"):
        for channels, outputs in ((12, 8), (8, 12)):
            inputs = inputs_of(40, channels, outputs, torch.bfloat16)
            assert not conv1x1_bn.has_kernel(inputs[0], outputs)
        with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
            described = conv1x1(emulation), batch_norm(emulation)
            emulation.conv1x1_bn_cuda(0, *described, 0, 0, 0, 0, 0)
    x, weight, norm, _ = inputs_of(40, 12, 8, torch.bfloat16)
    check(emulated, "natural", x, weight, norm, None)
    x, weight, norm, _ = inputs_of(40, 16, 8, torch.bfloat16)
    x = as_maps(unaligned(x[0, :, :, 0].t().contiguous()))
    check(emulated, "natural", x, weight, norm, None)
