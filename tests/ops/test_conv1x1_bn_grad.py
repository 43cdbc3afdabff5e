"""Gradients of a 1x1 convolution between two batch norms, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from op_testing import LAYOUTS, relative_error
from torch.nn import functional

from fasthg.ops.conv1x1_bn import Norm
from fasthg.ops.conv1x1_bn_grad import NormGradient, of_input, of_normalised_input, of_weight

ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def leaves(*shapes, dtype, device):
    random = torch.Generator().manual_seed(0)
    made = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return [t.to(device) for t in made]


def in_norm(x, beta, relu):
    y = functional.batch_norm(x, None, None, None, beta, training=True, eps=1e-3)
    return y.relu() if relu else y


def statistics(x, beta, relu):
    mean, var = x.float().mean((0, 2, 3)), x.float().var((0, 2, 3), correction=0)
    if x.dtype == torch.float64:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return Norm(mean, var, beta, None, relu, 1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("relu", "relu_below"), [(False, True), (True, False)])
@pytest.mark.parametrize("dtype", list(ERRORS))
def test_gradients_are_those_of_autograd(device, dtype, relu, relu_below, layout):
    """z = u W^T, u = norm(x) or x itself, y = norm(z); of y's gradient."""
    channels, outputs = 16, 24
    shapes = ((2, channels, 9, 7), (outputs, channels), (2, outputs, 9, 7), (channels,), (outputs,))
    x, weight, grad, beta, beta_z = leaves(*shapes, dtype=dtype, device=device)
    x, grad = layout(x * 2 + 1), layout(grad)
    for below in (True, False):
        exact = [t.double().requires_grad_() for t in (x, weight, beta)]
        u = in_norm(exact[0], exact[2], relu_below) if below else exact[0]
        product = functional.conv2d(u, exact[1][:, :, None, None])
        # Rounded as where it is stored, but differentiated as if it were not.
        z = product + (product.to(dtype).double() - product).detach()
        y = in_norm(z, beta_z.double(), relu)
        wanted = torch.autograd.grad(y, exact[:2], grad.double())
        stored = z.detach().to(dtype)
        of = NormGradient.of(grad, stored, statistics(stored, beta_z, relu))
        norm = statistics(x, beta, relu_below) if below else None
        if below:
            grad_u, of_x = of_normalised_input(grad, of, weight, x, norm)
            grad_x = of_x.of_input(grad_u)
        else:
            grad_x = of_input(grad, of, weight)
            added = of_input(grad, of, weight, x)
            assert relative_error(added, wanted[0] + x) < ERRORS[dtype]
        grad_weight = of_weight(grad, of, weight, x, norm)
        assert grad_x.dtype == grad_weight.dtype == dtype
        assert grad_x.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(grad_x, wanted[0]) < ERRORS[dtype]
        assert relative_error(grad_weight, wanted[1]) < ERRORS[dtype]


def test_the_sums_of_a_masked_gradient(device):
    """They are of the gradient where the ReLU let something through, which is what is returned."""
    x, weight, z, grad = leaves(
        (1, 8, 5, 5), (8, 8), (1, 8, 5, 5), (1, 8, 5, 5), dtype=torch.float32, device=device
    )
    zeros = torch.zeros(8, device=device)
    of = NormGradient.of(grad, z, statistics(z, zeros, False))
    out, below = of_normalised_input(grad, of, weight, x, statistics(x, zeros, True))
    zhat = (x - below.norm.mean[:, None, None]) * (below.norm.var + 1e-3).rsqrt()[:, None, None]
    assert torch.equal(out == 0, zhat <= 0)
    torch.testing.assert_close(below.grad_beta, out.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(below.grad_gamma, (out * zhat).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_an_empty_batch(device):
    x, weight = torch.zeros(0, 8, 4, 4, device=device), torch.ones(8, 8, device=device)
    zeros = torch.zeros(8, device=device)
    of = NormGradient.of(x, x, Norm(zeros, zeros, zeros, None, True, 1e-3))
    assert not of.grad_beta.any() and not of.grad_gamma.any()
    out, below = of_normalised_input(x, of, weight, x, of.norm)
    assert of_input(x, of, weight, x).shape == out.shape == x.shape
    assert not below.grad_gamma.any() and not of_weight(x, of, weight, x, None).any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "outputs"), [(128, 256), (256, 128)])
def test_the_largest_tiles_equal_norms_and_convolutions(monkeypatch, dtype, channels, outputs):
    """Of rows that fill a GPU and end within a tile; both round g, a and results alike."""
    shapes = ((1, channels, 117, 131), (outputs, channels), (1, outputs, 117, 131), (channels,))
    shapes += ((1, outputs, 117, 131), (outputs,))
    x, weight, grad, beta, z, beta_z = leaves(*shapes, dtype=dtype, device="cuda")
    x, grad, z = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad, z))
    of = NormGradient.of(grad, z, statistics(z, beta_z, channels > outputs))
    norm = statistics(x, beta, True)

    def results():
        masked, below = of_normalised_input(grad, of, weight, x, norm)
        made = [masked, below.grad_beta, below.grad_gamma, of_input(grad, of, weight, x)]
        return [*made, of_weight(grad, of, weight, x, norm), of_weight(grad, of, weight, x, None)]

    one_pass, again = results(), results()
    assert all(torch.equal(a, b) for a, b in zip(one_pass, again, strict=True))
    monkeypatch.setattr("fasthg.ops.conv1x1_bn_grad.has_kernel", lambda x, outputs: False)
    for actual, expected in zip(one_pass, results(), strict=True):
        assert relative_error(actual, expected) < 2e-3
