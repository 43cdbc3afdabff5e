"""A residual whose norms are made in the kernels of its 1x1 convolutions, forward and backward.

Not yet run on a GPU: no path of the network takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _arguments, _extension, conv1x1_bn
from fasthg.ops.bn_act import infer, moments
from fasthg.ops.conv1x1_bn import Norm
from fasthg.ops.conv1x1_bn_grad import (
    NormGradient,
    of_input,
    of_normalised_input,
    of_weight,
)

Aside = Callable[[list[Tensor], Callable[[], Tensor]], Tensor]
"""`aside(read, compute)` returns `compute()`, which reads the tensors `read`, from any stream."""

_PADDED = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)  # of a 3x3 convolution


def has_kernels(x: Tensor, half: int) -> bool:
    """Whether kernels of `conv1x1_bn` do both 1x1 convolutions, `half` channels between them."""
    return conv1x1_bn.has_kernel(x, half) and conv1x1_bn.has_kernel(x, x.shape[1])


def _in_turn(read: list[Tensor], compute: Callable[[], Tensor]) -> Tensor:
    return compute()


def _matrix(weight: Tensor, x: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as (out, in), rounded to x's dtype."""
    return weight.flatten(1).to(x.dtype)


class _Chain(torch.autograd.Function):
    """Kept for the backward: x, the results of the convolutions, a1, and statistics.

    a1, the input of the 3x3 convolution, could be made again from z1: a seventh of the kept memory
    less, for two passes over maps of half the channels more. Memory is not what limits a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        beta1: Tensor,
        weight2: Tensor,
        beta2: Tensor,
        weight3: Tensor,
        beta3: Tensor,
        eps: float,
        aside: Aside,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            z1, mean1, var1 = conv1x1_bn.run(x, _matrix(weight1, x), None)
            a1 = infer(z1, mean1, var1, beta1, None, None, True, eps)
            z2 = torch.conv2d(a1, weight2.to(x.dtype), padding=1)
            mean2, var2 = moments(z2)
            norm2 = Norm(mean2, var2, beta2, None, True, eps)
            z3, mean3, var3 = conv1x1_bn.run(z2, _matrix(weight3, x), norm2)
            y = infer(z3, mean3, var3, beta3, None, x, False, eps)
        statistics = (mean1, var1, mean2, var2, mean3, var3)
        weights = (weight1, beta1, weight2, beta2, weight3, beta3)
        ctx.save_for_backward(x, z1, a1, z2, z3, *statistics, *weights)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.aside = eps, aside
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 9
        x, z1, a1, z2, z3, mean1, var1, mean2, var2, mean3, var3, *weights = ctx.saved_tensors
        weight1, beta1, weight2, beta2, weight3, beta3 = weights
        norm1, norm2, norm3 = (
            Norm(mean, var, beta, None, relu, ctx.eps)
            for mean, var, beta, relu in (
                (mean1, var1, beta1, True),
                (mean2, var2, beta2, True),
                (mean3, var3, beta3, False),
            )
        )
        grad_y = grad_y.to(x.dtype).contiguous(memory_format=torch.channels_last)

        def of_1x1(
            grad: Tensor, of: NormGradient, weight: Tensor, x: Tensor, norm: Norm | None
        ) -> Tensor:
            statistics = [t for n in (of.norm, norm) if n is not None for t in n[:3]]
            read = [grad, of.z, of.grad_beta, of.grad_gamma, x, *statistics]
            made = ctx.aside(read, lambda: of_weight(grad, of, weight.flatten(1), x, norm))
            return made.view(weight.shape)

        def of_3x3(grad: Tensor, of_x: bool) -> Tensor:
            weight = weight2.to(x.dtype)
            results = torch.ops.aten.convolution_backward(
                *(grad, a1, weight, None, *_PADDED), (of_x, not of_x, False)
            )
            return results[0] if of_x else results[1].to(weight2.dtype)

        # The gradients of weights, on which nothing waits, each behind the gradient of the input,
        # on which all does.
        needs = ctx.needs_input_grad
        grad_x = grad_weight1 = grad_weight2 = grad_weight3 = None
        with torch.autocast(x.device.type, enabled=False):
            of3 = NormGradient.of(grad_y, z3, norm3)
            grad_a2, of2 = of_normalised_input(grad_y, of3, _matrix(weight3, x), z2, norm2)
            if needs[5]:
                grad_weight3 = of_1x1(grad_y, of3, weight3, z2, norm2)
            grad_z2 = of2.of_input(grad_a2)
            del grad_a2
            grad_a1 = of_3x3(grad_z2, True)
            if needs[3]:
                grad_weight2 = ctx.aside([grad_z2, a1], lambda: of_3x3(grad_z2, False))
            of1 = NormGradient.of(grad_a1, z1, norm1)
            if needs[0]:
                grad_x = of_input(grad_a1, of1, _matrix(weight1, x), grad_y)
            if needs[1]:
                grad_weight1 = of_1x1(grad_a1, of1, weight1, x, None)
        return (
            grad_x,
            *(grad_weight1, of1.grad_beta.to(beta1.dtype)),
            *(grad_weight2, of2.grad_beta.to(beta2.dtype)),
            *(grad_weight3, of3.grad_beta.to(beta3.dtype)),
            *(None, None),
        )


def residual_chain(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    *,
    eps: float = 1e-3,
    aside: Aside = _in_turn,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Three convolutions with batch norm around the identity, for training.

    1x1 to `half` channels, 3x3, and 1x1 back, each followed by batch norm by the statistics of the
    batch, the first two by ReLU; then x is added. The norms before and behind a 1x1 convolution,
    and their backward, are made in its kernel, where there is one (`has_kernels`); elsewhere norms
    and convolutions follow each other.

    Args:
        x: (batch, channels, height, width), any floating dtype, in which all maps are stored;
            channels last in memory without a copy.
        weight1: (half, channels, 1, 1); weight2: (half, half, 3, 3); weight3: (channels, half, 1,
            1); any floating dtype, rounded to x's.
        beta1, beta2, beta3: (half,), (half,), (channels,): the norms' offsets.
        eps: added to each variance.
        aside: runs what computes the gradient of a weight.

    Returns:
        y, shaped as x, x's dtype, channels last, once differentiable with respect to all tensors;
        and mean and biased variance of the batch before each norm, which are not: (channels,),
        float64 for float64 x, else float32.

    Equivalent to:
        norm = lambda x, beta: F.batch_norm(x, None, None, None, beta, training=True, eps=eps)
        inner = F.relu(norm(F.conv2d(x, weight1), beta1))
        inner = F.relu(norm(F.conv2d(inner, weight2, padding=1), beta2))
        y = norm(F.conv2d(inner, weight3), beta3) + x

    Error: every map that is stored is rounded to x's dtype once; sums are float32 at least.

    Memory, with a map of x as the unit and half the channels between: forward moves 8.5 units and
    backward 17, where kernels do it, and the sums of the weights' gradients 1 (32 x 64 x 64 pixels
    of 256 channels). `bn_act` after three convolutions moves 11 and 19 where its norms take three
    launches, and 9 and 15 where a GPU keeps all that they read on chip. The backward reads the
    gradient of y and the last convolution's result three times: for the norm's sums, and for the
    gradients of input and weight. Kept are 3.5 units instead of 4.

    Raises:
        ValueError: wrong shape, mixed devices, not floating.
    """
    weights = (weight1, beta1, weight2, beta2, weight3, beta3)
    _check(x, weights)
    _extension.refuse_tangents("residual_chain", (x, *weights))
    y, *values = _Chain.apply(x, *weights, eps, aside)
    return y, list(zip(values[::2], values[1::2], strict=True))


def _check(x: Tensor, weights: tuple[Tensor, ...]) -> None:
    """Check shapes, dtype and devices; raises ValueError."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            "residual_chain: x: expected floating (batch, channels, height, width), got"
            f" {x.dtype} {tuple(x.shape)}"
        )
    full, half = x.shape[1], len(weights[0])
    expected = (
        *((half, full, 1, 1), (half,), (half, half, 3, 3), (half,)),
        *((full, half, 1, 1), (full,)),
    )
    names = ("weight1", "beta1", "weight2", "beta2", "weight3", "beta3")
    named = dict(zip(names, zip(weights, expected, strict=True), strict=True))
    _arguments.check_like("residual_chain", x, named)
