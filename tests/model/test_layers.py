"""The layers' own arithmetic, against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fasthg.model import StackedHourglass, layers
from fasthg.model.layers import ConvBN, Residual, conv_on_blocks, set_fused


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 3, 2, 2), (1, 4, 6, 10), (1, 1, 8, 4)])
def test_a_convolution_on_blocks_equals_one_of_stride_2(shape):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, shape[1], 7, 7, generator=random, dtype=torch.float64)
    weight.requires_grad_()
    expected = F.conv2d(F.pad(x, (2, 3, 2, 3)), weight, stride=2)
    actual = conv_on_blocks(x, weight)
    grad_y = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    of_both = [torch.autograd.grad(y, (x, weight), grad_y) for y in (actual, expected)]
    torch.testing.assert_close(*of_both, rtol=1e-12, atol=1e-12)


def test_a_stem_is_the_same_with_its_first_convolution_on_blocks(monkeypatch):
    torch.manual_seed(0)
    stem = StackedHourglass(stacks=1, parts=2, features=8, stem_features=4).train().stem
    images = torch.rand(2, 3, 64, 64) * 2 - 1

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            y = stem(images)
        loss = y.float().square().sum()
        return y.detach(), torch.autograd.grad(loss, stem.conv.conv.weight)[0]

    plain = results()
    taken = []
    monkeypatch.setattr(
        ConvBN, "takes_blocks", lambda layer, x: layer is stem.conv and not taken.append(x.shape)
    )
    for actual, expected in zip(results(), plain, strict=True):
        assert actual.dtype == expected.dtype
        difference = (actual.float() - expected.float()).norm() / expected.float().norm()
        assert difference < 0.1  # bfloat16 through ten layers, forth and back
    assert taken == [(2, 3, 64, 64)]


@pytest.mark.parametrize(("dtype", "capturing"), [(torch.float32, False), (torch.bfloat16, True)])
def test_a_residual_adds_both_gradients_of_its_input(monkeypatch, dtype, capturing):
    """The weight's gradient by the same code as in a capture; its side stream needs a GPU."""
    torch.manual_seed(0)
    block = Residual(16, 16).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 10, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    monkeypatch.setattr("fasthg.model.cuda_streams._is_capturing", lambda _: capturing)

    def gradients():
        return torch.autograd.grad(block(x).square().sum(), (x, *block.parameters()))

    plain, forked = gradients(), []
    monkeypatch.setattr(Residual, "forks", lambda block, x: forked.append(x.shape) or True)
    for actual, expected in zip(gradients(), plain, strict=True):
        assert actual.dtype == expected.dtype
        difference = (actual - expected).norm() / expected.norm()
        assert difference < (1e-6 if dtype == torch.float32 else 0.01)
    assert forked == [x.shape]


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_a_fork_on_a_gpu_gives_the_gradient_of_both_readers(captured):
    """By kernels of half types, which no CPU has; captured, with its weight's gradient apart."""
    torch.manual_seed(0)
    layer = Residual(256, 256).conv1.cuda().train()
    layer.conv.to(torch.bfloat16, memory_format=torch.channels_last)
    maps = torch.randn(2, 8, 256, 64, 64, device="cuda", dtype=torch.bfloat16)
    x, grad_skip = (one.to(memory_format=torch.channels_last) for one in maps)
    x.requires_grad_()

    def gradients(fork):
        skip, y = layer.fork(x) if fork else (x * 1, layer(x))
        inputs = (x, layer.conv.weight, layer.bn.bias)
        return torch.autograd.grad((skip, y), inputs, (grad_skip, grad_skip[:, :128]))

    expected = gradients(fork=False)
    gradients(fork=True)
    if captured:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = gradients(fork=True)
        graph.replay()
    else:
        found = gradients(fork=True)
    for actual, right in zip(found, expected, strict=True):
        assert actual.dtype == right.dtype
        assert (actual.float() - right.float()).norm() / right.float().norm() < 0.01


def test_a_fork_with_one_reader_and_with_a_frozen_weight():
    block = Residual(8, 8)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    skip, y = block.conv1.fork(x)
    assert torch.equal(torch.autograd.grad(skip, x, x.detach(), retain_graph=True)[0], x)
    (grad_x,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (expected,) = torch.autograd.grad(block.conv1(x), x, torch.ones_like(y))
    torch.testing.assert_close(grad_x, expected)
    block.conv1.conv.requires_grad_(False)
    skip, y = block.conv1.fork(x)
    (skip.sum() + y.square().sum()).backward()
    assert x.grad is not None and block.conv1.conv.weight.grad is None


def test_a_residual_forks_where_a_gpu_gains(monkeypatch):
    block, x = Residual(8, 8), torch.zeros(1, 8, 4, 4, requires_grad=True)
    assert not block.forks(x)  # on a CPU
    assert not Residual(8, 16).forks(x)  # a convolution in place of the identity


@pytest.fixture
def taken(monkeypatch):
    """Shapes of the inputs of residuals that FUSED: on runs as one operator, here on a CPU, too."""
    taken = []
    monkeypatch.setattr(Residual, "forks", lambda block, x: block.skip is None)
    monkeypatch.setattr(layers, "has_block_kernels", lambda x, half: not taken.append(x.shape))
    return taken


def switch(network, fused):
    """The network or block, with another value of FUSED."""
    set_fused(network, fused)
    return network


# One rounding of a value that is stored.
@pytest.mark.parametrize(("dtype", "step"), [(torch.float64, 1e-11), (torch.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("capturing", [False, True])
def test_a_fused_residual_is_the_same(monkeypatch, taken, dtype, step, capturing):
    """As near to the exact results as layers that take turns, and the first of which forks."""
    torch.manual_seed(0)
    block = Residual(16, 16).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(4, 16, 16, 24, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    monkeypatch.setattr("fasthg.model.cuda_streams._is_capturing", lambda _: capturing)
    grad_y = torch.randn_like(x)

    def results(dtype, fused="auto"):
        own = switch(copy.deepcopy(block).to(dtype), fused)
        given = x.detach().to(dtype).requires_grad_()
        y = own(given)
        gradients = torch.autograd.grad(y, (given, *own.parameters()), grad_y.to(dtype))
        return [y.detach(), *own.buffers(), *gradients]

    exact, plain = results(torch.float64), results(dtype)
    assert not taken
    for actual, layers_, right in zip(results(dtype, "on"), plain, exact, strict=True):
        assert actual.dtype == layers_.dtype
        error, error_of_layers = ((y.double() - right).norm() for y in (actual, layers_))
        assert error <= 1.3 * error_of_layers + step * right.norm()
    assert taken == [x.shape]


def test_where_a_residual_is_fused(taken):
    x = torch.randn(2, 16, 8, 8)
    assert not Residual(16, 16).fuses(x)  # FUSED: auto
    assert not switch(Residual(16, 8), "on").fuses(x)
    block = switch(Residual(16, 16), "on")
    assert block.fuses(x)
    assert not block.eval().fuses(x)
    block.train().conv2.bn.bias.requires_grad_(False)  # FREEZE
    assert not block.fuses(x)
    block.requires_grad_(True).conv1.bn.process_group = object()  # BATCHNORM_SYNC
    assert not block.fuses(x)
    block.conv1.bn.process_group = None
    torch.use_deterministic_algorithms(True)
    try:
        assert not block.fuses(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert block.fuses(x)
    keys = {"features": 8, "stem_features": 4, "fused": "on"}
    for recompute in ("none", "stack"):
        network = StackedHourglass(1, 2, **keys, recompute=recompute).train()
        blocks = [m for m in network.modules() if isinstance(m, Residual) and m.skip is None]
        assert blocks and all(b.fuses(x) == (recompute == "none") for b in blocks)


def test_a_network_of_fused_residuals_has_the_same_gradients(taken):
    torch.manual_seed(0)
    network = StackedHourglass(stacks=1, parts=2, features=8, stem_features=4).double().train()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1

    def results(fused):
        own = switch(copy.deepcopy(network), fused)
        heatmaps = own(images)
        gradients = torch.autograd.grad(heatmaps.square().sum(), list(own.parameters()))
        return [heatmaps.detach(), *own.buffers(), *gradients]

    for actual, expected in zip(results("on"), results("off"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    assert len(taken) > 10
