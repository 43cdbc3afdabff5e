"""Gradients of the 1x1 convolution between two batch norms on emulated CUDA kernels."""

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

from fasthg.ops import conv1x1_bn_grad
from fasthg.ops.bn_act import infer
from fasthg.ops.conv1x1_act import run as conv1x1_act
from fasthg.ops.conv1x1_bn import Norm
from fasthg.ops.conv1x1_bn_grad import NormGradient, of_input, of_normalised_input, of_weight
from fasthg.ops.reference import bn_act_backward, normalise

pytestmark = pytest.mark.slow  # a minute to compile


def inputs_of(rows, channels, outputs, dtype, gamma=False, relu=False):
    """grad, what makes g of it, weight, an addend, x, and the norm of x.

    The convolution is of x's `channels` to z's `outputs`; g is as large as grad.
    """
    x, weight, norm = norm_inputs(rows, channels, outputs, dtype, gamma)
    random = torch.Generator().manual_seed(rows + 1)
    grad, addend = (torch.randn(rows, n, generator=random).to(dtype) for n in (outputs, channels))
    z, _, norm_of_z = norm_inputs(rows + 2, outputs, 1, dtype, gamma, relu)
    z = as_maps(z[:rows])
    of = NormGradient(z, Norm(*norm_of_z), *torch.randn(2, outputs, generator=random) * rows / 4)
    return as_maps(grad), of, weight, as_maps(addend), as_maps(x), Norm(*norm)


def exact_g(grad, of):
    """g in float64, as rounded to grad's dtype where it is stored."""
    numbers = [None if t is None else t.double() for t in (of.z, *of.norm[:4])]
    sums = of.grad_beta.double(), of.grad_gamma.double()
    z, mean, var, beta, gamma = numbers
    flags = {"relu": of.norm.relu, "frozen": False, "eps": of.norm.eps}
    by = (grad.double(), z, None, mean, var, beta, gamma)
    return bn_act_backward(*by, **flags, sums=sums)[0]


# rows, in, out: a row; parts of parts of a tile; several tiles; edges of both
SHAPES = [(1, 8, 8), (45, 72, 24), (291, 64, 40), (130, 136, 72)]


@cases(["shape", "addend", "gamma", "relu"], HALVES, SHAPES, *[FLAG] * 3)
def test_gradient_of_the_input(emulated, switches, order, dtype, error, shape, addend, gamma, relu):
    """The bits of a norm's backward and a convolution."""
    grad, of, weight, added, _, _ = inputs_of(*shape, dtype, gamma, relu)
    added = added if addend else None
    with emulated(order):
        switches.emulation_launches()
        out = of_input(grad, of, weight, added)
        assert switches.emulation_launches() == 1
        g = of.of_input(grad)
        expected = conv1x1_act(g, weight.t(), None, added, None, None, False)
    assert torch.equal(out, expected)
    exact = exact_g(grad, of)
    torch.testing.assert_close(g.double(), exact, rtol=error, atol=error)


def check_below(emulated, order, grad, of, weight, x, norm):
    """As a convolution and the sums of bn_act's backward; returns the results."""
    with emulated(order):
        out, below = of_normalised_input(grad, of, weight, x, norm)
        unmasked = of_input(grad, of, weight)
    passed = normalise(x, *norm[:4], eps=norm.eps) > 0
    masked = torch.where(passed, unmasked, 0) if norm.relu else unmasked
    assert torch.equal(out, masked)
    assert below.z is x and below.norm is norm
    exact = out.double()
    zhat = (x.double() - norm.mean[:, None, None]) * (norm.var + norm.eps).rsqrt()[:, None, None]
    for actual, terms in ((below.grad_beta, exact), (below.grad_gamma, exact * zhat)):
        assert actual.dtype == torch.float32
        error = (actual - terms.sum((0, 2, 3))).abs() / terms.abs().sum((0, 2, 3)).clamp_min(1e-9)
        assert error.max() < 1e-6
    return out, below.grad_beta, below.grad_gamma


@cases(["shape", "gamma", "relu", "relu_below"], HALVES, SHAPES, *[FLAG] * 3)
def test_gradient_of_a_normalised_input(
    emulated, order, dtype, error, shape, gamma, relu, relu_below
):
    grad, of, weight, _, x, norm = inputs_of(*shape, dtype, gamma, relu)
    check_below(emulated, order, grad, of, weight, x, norm._replace(relu=relu_below))


def check_weight(emulated, order, error, grad, of, weight, x, norm):
    """Against products in float64 of what bn_act writes; returns the result."""
    with emulated(order):
        made = of_weight(grad, of, weight, x, norm)
        g = of.of_input(grad)
        a = x if norm is None else infer(x, *norm[:4], None, norm.relu, norm.eps)
    g, a = (t[0, :, :, 0].double() for t in (g, a))
    exact, size = g @ a.t(), g.abs() @ a.abs().t()
    rounding = 0 if made.dtype == torch.float32 else error
    assert made.shape == weight.shape and made.dtype == weight.dtype
    assert ((made - exact).abs() <= rounding * exact.abs() + 1e-6 * size).all()
    return made


# rows, in, out: a row; less than a step; two parts and edges of both; both large tiles.
WEIGHT_SHAPES = [(1, 8, 8), (21, 24, 72), (291, 40, 48), (130, 136, 72), (45, 72, 136)]


@cases(["shape", "normed", "gamma", "relu", "wide"], HALVES, WEIGHT_SHAPES, *[FLAG] * 4)
def test_gradient_of_the_weight(
    emulated, switches, order, dtype, error, shape, normed, gamma, relu, wide
):
    grad, of, weight, _, x, norm = inputs_of(*shape, dtype, gamma, relu)
    weight = weight.float() if wide else weight
    switches.emulation_launches()
    check_weight(emulated, order, error, grad, of, weight, x, norm if normed else None)
    assert switches.emulation_launches() == (4 if normed else 3)  # two, and what they stand for


@pytest.mark.parametrize("shape", [(290, 72, 136), (290, 136, 72)])
def test_all_tiles_of_the_weight_give_the_same_result(emulated, switches, gpu, shape):
    """Of 256 x 128 or 128 x 256, 128 x 128, and 64 x 64 products."""
    grad, of, weight, _, x, norm = inputs_of(*shape, torch.bfloat16)
    results = []
    for multiprocessors, kibibytes in ((132, 227), (7, 227), (132, 100), (132, 64)):
        gpu(multiprocessors, kibibytes)
        results.append(check_weight(emulated, "natural", 0, grad, of, weight.float(), x, norm))
    assert all(torch.equal(results[0], other) for other in results[1:])


# What makes the launcher take its tiles: multiprocessors, and kibibytes that a block may have; then
# the blocks of a launch with an addend.
TILES = {
    "128 x 256": (1, 227, 1),
    "128 x 128": (1, 145, 2),
    "128 x 64": (1, 130, 3),
    "128 x 64, weights in steps": (1, 122, 3),
    "128 x 64, one a block": (132, 227, 9),
}


@pytest.mark.parametrize("order", ORDERS)
def test_all_tiles_give_the_same_result(emulated, switches, gpu, order):
    """Blocks that walk over several tiles of rows, too, and end within one."""
    grad, of, weight, addend, x, norm = inputs_of(261, 136, 72, torch.bfloat16)
    results = []
    for name, (multiprocessors, kibibytes, blocks) in TILES.items():
        # Greedy orders differ in barriers alone, which are the same in all tiles.
        if order != "natural" and name != "128 x 256":
            continue
        gpu(multiprocessors, kibibytes)
        below = check_below(emulated, order, grad, of, weight, x, norm)
        with emulated(order):
            results.append([*below, of_input(grad, of, weight, addend)])
        assert switches.emulation_blocks() == blocks
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_the_kernel_does_not_take(emulated, emulation):
    grad, of, weight, addend, x, norm = inputs_of(40, 16, 8, torch.bfloat16)
    with emulated("natural"):
        with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
            described = conv1x1(emulation), batch_norm(emulation)
            emulation.conv1x1_bn_grad_cuda(0, *described, 0, 0, 0, described[1], *[0] * 6)
        with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
            norms = described[1], 0, 0, 0, described[1]
            emulation.conv1x1_bn_weight_cuda(0, 0, *norms, 0, 0, 0, False, 0, 0, 0)
        with pytest.raises(RuntimeError, match="takes rows of whole vectors"):
            conv1x1_bn_grad._weight_in_one_pass(*inputs_of(40, 16, 12, torch.bfloat16)[:3], x, norm)
        with pytest.raises(RuntimeError, match="an addend or a norm below"):
            below = (x, norm)
            conv1x1_bn_grad._in_one_pass(grad, of, weight, addend, below)
    moved = [as_maps(unaligned(t[0, :, :, 0].t().contiguous())) for t in (grad, of.z, x)]
    unaligned_of = of._replace(z=moved[1])
    check_below(emulated, "natural", moved[0], unaligned_of, weight, moved[2], norm)
    check_weight(emulated, "natural", 0, moved[0], unaligned_of, weight.float(), moved[2], norm)
    grad, of, weight, _, x, norm = inputs_of(40, 12, 8, torch.bfloat16)
    check_below(emulated, "natural", grad, of, weight, x, norm)
