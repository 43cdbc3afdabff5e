"""1x1 convolutions between batch norms, 32 images, bfloat16, on a GPU: in one pass, and by norms,
cuBLAS and sums in turn.

`residual_block` is made of these convolutions, which are worth having from 3.2 TB/s on at 64 x 64.
"""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from compare import compare

ROWS = 32 * 64 * 64
# Inputs and outputs of the convolution, and channels of all maps that are read or written.
FORMS = {
    "statistics": (256, 128, 256 + 128),
    "norm and statistics": (128, 256, 128 + 256),
    "gradient of the input and sums": (128, 256, 2 * 256 + 2 * 128),
    "gradient of the input and addend": (256, 128, 2 * 128 + 2 * 256),
    "gradient of the weight": (256, 128, 2 * 128 + 256),
    "gradient of the weight and norm": (128, 256, 2 * 256 + 128),
}


def bytes_moved(kind):
    """Maps alone."""
    return ROWS * FORMS[kind][2] * 2


def maps(channels):
    x = torch.randn(32, channels, 64, 64, device="cuda").to(torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


@compare("apart", "fasthg", bytes_moved=bytes_moved, kind=FORMS)
def bench_conv1x1_bn(device, kind):
    if device.type != "cuda":
        pytest.skip("a GPU alone has the kernels")
    ours, gradients, norms = (
        importlib.import_module(f"fasthg.ops.{n}")
        for n in ("conv1x1_bn", "conv1x1_bn_grad", "bn_act")
    )
    inputs, outputs, _ = FORMS[kind]
    x, grad, z = maps(inputs), maps(outputs), maps(outputs)
    weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).to(torch.bfloat16)
    is_conv_weight = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)

    def norm_of(channels, relu):
        mean, var, beta = (torch.rand(channels, device=device) + by for by in (0.0, 0.5, 0.0))
        return ours.Norm(mean, var, beta, None, relu, 1e-3)

    norm, of_z = norm_of(inputs, True), norm_of(outputs, inputs > outputs)
    of = gradients.NormGradient(z, of_z, *torch.randn(2, outputs, device=device))

    def normalised():
        return norms.infer(x, norm.mean, norm.var, norm.beta, None, None, True, norm.eps)

    def convolved(a):
        y = F.conv2d(a, is_conv_weight)
        return y, *norms.moments(y)

    def convolution_backward(a, of_x):
        return torch.ops.aten.convolution_backward(
            *(of.of_input(grad), a, is_conv_weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
            (of_x, not of_x, False),
        )

    def input_and_sums():
        grad_a = convolution_backward(x, True)[0]
        return grad_a, *norms.gradient_sums(grad_a, x, *norm)

    return {
        "statistics": {
            "apart": lambda: convolved(x),
            "fasthg": lambda: ours.run(x, weight, None),
        },
        "norm and statistics": {
            "apart": lambda: convolved(normalised()),
            "fasthg": lambda: ours.run(x, weight, norm),
        },
        "gradient of the input and sums": {
            "apart": input_and_sums,
            "fasthg": lambda: gradients.of_normalised_input(grad, of, weight, x, norm),
        },
        "gradient of the input and addend": {
            "apart": lambda: convolution_backward(x, True)[0] + x,
            "fasthg": lambda: gradients.of_input(grad, of, weight, x),
        },
        "gradient of the weight": {
            "apart": lambda: convolution_backward(x, False)[1],
            "fasthg": lambda: gradients.of_weight(grad, of, weight, x, None),
        },
        "gradient of the weight and norm": {
            "apart": lambda: convolution_backward(normalised(), False)[1],
            "fasthg": lambda: gradients.of_weight(grad, of, weight, x, norm),
        },
    }[kind]
