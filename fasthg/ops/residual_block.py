"""A whole residual of the hourglass, norms made in the kernels of its 1x1 convolutions.

In training half types on a GPU have kernels for it, forward and backward, which no GPU has run yet.
In inference the norms are folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _arguments, _extension, _layout, conv1x1_bn
from fasthg.ops.bn_act import infer, moments
from fasthg.ops.conv1x1_act import conv1x1_act
from fasthg.ops.conv1x1_bn import Norm
from fasthg.ops.conv1x1_bn_grad import (
    NormGradient,
    of_input,
    of_normalised_input,
    of_weight,
)
from fasthg.ops.conv3x3 import conv3x3
from fasthg.ops.conv3x3 import grad_weight as conv3x3_grad_weight
from fasthg.ops.conv3x3 import grad_x as conv3x3_grad_x
from fasthg.ops.conv3x3 import run as run_conv3x3
from fasthg.ops.reference import arithmetic_dtype

Aside = Callable[[list[Tensor], Callable[[], Tensor]], Tensor]
"""`aside(read, compute)` returns `compute()`, which reads the tensors `read`, from any stream."""


class ResidualStatistics(NamedTuple):
    """Mean and biased variance of the batch, (channels,), in front of each batch norm.

    float64 for float64 maps, else float32; 0 for an empty batch.
    """

    mean1: Tensor
    var1: Tensor
    mean2: Tensor
    var2: Tensor
    mean3: Tensor
    var3: Tensor


def has_kernels(x: Tensor, half: int) -> bool:
    """Whether kernels of `conv1x1_bn` do both 1x1 convolutions, `half` channels between them."""
    return conv1x1_bn.has_kernel(x, half) and conv1x1_bn.has_kernel(x, x.shape[1])


def _in_turn(read: list[Tensor], compute: Callable[[], Tensor]) -> Tensor:
    return compute()


def _matrix(weight: Tensor, x: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as (out, in), rounded to x's dtype."""
    return weight.flatten(1).to(x.dtype)


def _train(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    """y, the statistics, and what the backward reads beside x: z1, a1, z2 and z3.

    a1, the input of the 3x3 convolution, could be made again from z1: a seventh of the kept memory
    less, for two passes over maps of half the channels more. Memory is not what limits a step.
    """
    with torch.autocast(x.device.type, enabled=False):
        z1, mean1, var1 = conv1x1_bn.run(x, _matrix(weight1, x), None)
        a1 = infer(z1, mean1, var1, beta1, None, None, True, eps)
        z2 = run_conv3x3(a1, weight2)
        mean2, var2 = moments(z2)
        norm2 = Norm(mean2, var2, beta2, None, True, eps)
        z3, mean3, var3 = conv1x1_bn.run(z2, _matrix(weight3, x), norm2)
        y = infer(z3, mean3, var3, beta3, None, x, False, eps)
    return y, mean1, var1, mean2, var2, mean3, var3, z1, a1, z2, z3


def _empty_results(x: Tensor, weight1: Tensor, *others: Any) -> tuple[Tensor, ...]:
    full, half = x.shape[1], len(weight1)
    real = arithmetic_dtype(x.dtype)
    statistics = (x.new_empty(c, dtype=real) for c in (half, half, half, half, full, full))
    y, *maps = (
        _layout.empty((x.shape[0], c, *x.shape[2:]), x.dtype, x.device)
        for c in (full, half, half, half, full)
    )
    return y, *statistics, *maps


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


@once_differentiable
def _backward(ctx: Any, grad_y: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 8
    return *_backward_operator(grad_y, *ctx.saved_tensors, ctx.eps), None


def _gradients(grad_y: Tensor, *arguments: Any, aside: Aside = _in_turn) -> tuple[Tensor, ...]:
    """Gradients of x, and of weights and offsets in their order.

    The backward of other layers waits for the gradients of inputs, and nothing for those of
    weights: each of these comes after the gradient of the same convolution's input.

    Args:
        grad_y: gradient of y.
        arguments: x, weights and offsets; statistics and maps as `_train` returns them; eps.
    """
    x, weight1, beta1, weight2, beta2, weight3, beta3, *values, eps = arguments
    mean1, var1, mean2, var2, mean3, var3, z1, a1, z2, z3 = values
    norm1, norm2, norm3 = (
        Norm(mean, var, beta, None, relu, eps)
        for mean, var, beta, relu in (
            (mean1, var1, beta1, True),
            (mean2, var2, beta2, True),
            (mean3, var3, beta3, False),
        )
    )

    def of_1x1(
        grad: Tensor, of: NormGradient, weight: Tensor, x: Tensor, norm: Norm | None
    ) -> Tensor:
        statistics = [t for n in (of.norm, norm) if n is not None for t in n[:3]]
        read = [grad, of.z, of.grad_beta, of.grad_gamma, x, *statistics]
        made = aside(read, lambda: of_weight(grad, of, weight.flatten(1), x, norm))
        return made.view(weight.shape)

    grad_y = _extension.as_dtype(grad_y, x.dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, enabled=False):
        of3 = NormGradient.of(grad_y, z3, norm3)
        grad_a2, of2 = of_normalised_input(grad_y, of3, _matrix(weight3, x), z2, norm2)
        grad_weight3 = of_1x1(grad_y, of3, weight3, z2, norm2)
        grad_z2 = of2.of_input(grad_a2)
        del grad_a2
        grad_a1 = conv3x3_grad_x(grad_z2, weight2)
        grad_weight2 = aside([grad_z2, a1], lambda: conv3x3_grad_weight(grad_z2, a1, weight2))
        of1 = NormGradient.of(grad_a1, z1, norm1)
        grad_x = of_input(grad_a1, of1, _matrix(weight1, x), grad_y)
        grad_weight1 = of_1x1(grad_a1, of1, weight1, x, None)
    return (
        grad_x,
        *(grad_weight1, of1.grad_beta.to(beta1.dtype)),
        *(grad_weight2, of2.grad_beta.to(beta2.dtype)),
        *(grad_weight3, of3.grad_beta.to(beta3.dtype)),
    )


def _empty_gradients(grad_y: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    weight2 = others[2]
    made = (w.new_empty(w.shape) if w is not weight2 else torch.empty_like(w) for w in others[:6])
    return _layout.empty_like(x), *made


_INPUTS = (
    "Tensor x, Tensor weight1, Tensor beta1, Tensor weight2, Tensor beta2, Tensor weight3,"
    " Tensor beta3"
)
_KEPT = "mean1", "var1", "mean2", "var2", "mean3", "var3", "z1", "a1", "z2", "z3"
_operator = _extension.register(
    f"residual_block({_INPUTS}, float eps) -> ({', '.join(['Tensor'] * (1 + len(_KEPT)))})",
    _train,
    _empty_results,
    setup_context=_keep,
    backward=_backward,
    cpu="norms and convolutions in turn are the faster ones there",
)
_backward_operator = _extension.register(
    f"residual_block_backward(Tensor grad_y, {_INPUTS}, {', '.join(f'Tensor {n}' for n in _KEPT)},"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _empty_gradients,
)


class _Aside(torch.autograd.Function):
    """The operator, with the gradients of its weights computed aside."""

    @staticmethod
    def forward(ctx: Any, aside: Aside, *inputs: Any) -> tuple[Tensor, ...]:
        output = _train(*inputs)
        _keep(ctx, inputs, output)
        ctx.aside = aside
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 9
        return None, *_gradients(grad_y, *ctx.saved_tensors, ctx.eps, aside=ctx.aside), None


def residual_block(
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
) -> tuple[Tensor, ResidualStatistics]:
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
        aside: runs what computes the gradient of a weight; only where autograd alone looks at the
            call, not where torch compiles, traces or transforms it.

    Returns:
        y, shaped as x, x's dtype, channels last, once differentiable with respect to all tensors;
        and the statistics, which are not.

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
    arguments = (x, *weights, eps)
    if aside is _in_turn or _extension.needs_dispatcher(arguments, profiled=False):
        y, *values = _operator(*arguments)
    else:
        _extension.refuse_tangents("residual_block", arguments)
        y, *values = _Aside.apply(aside, *arguments)
    return y, ResidualStatistics(*values[:6])


def _check(x: Tensor, weights: tuple[Tensor, ...]) -> None:
    """Check shapes, dtype and devices; raises ValueError."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            "residual_block: x: expected floating (batch, channels, height, width), got"
            f" {x.dtype} {tuple(x.shape)}"
        )
    full, half = x.shape[1], len(weights[0])
    expected = (
        *((half, full, 1, 1), (half,), (half, half, 3, 3), (half,)),
        *((full, half, 1, 1), (full,)),
    )
    names = ("weight1", "beta1", "weight2", "beta2", "weight3", "beta3")
    named = dict(zip(names, zip(weights, expected, strict=True), strict=True))
    _arguments.check_like("residual_block", x, named)


def residual_block_inference(
    x: Tensor,
    weight1: Tensor,
    offset1: Tensor,
    weight2: Tensor,
    offset2: Tensor,
    weight3: Tensor,
    offset3: Tensor,
    weight_skip: Tensor | None = None,
) -> Tensor:
    """The block with batch norm folded into weights and offsets: three convolutions and a ReLU.

    Args:
        x: (batch, in, height, width), any floating dtype; channels last in memory without a copy.
        weight1, offset1: (half, in, 1, 1), (half,); weight2, offset2: (half, half, 3, 3), (half,).
        weight3, offset3: (out, half, 1, 1), (out,); weights and offset2 are cast to x's dtype.
        weight_skip: (out, in, 1, 1), its offset in offset3; None = x itself is added, in = out.

    Returns:
        y (batch, out, height, width), x's dtype, channels last, once differentiable.

    Equivalent to:
        inner = F.relu(F.conv2d(x, weight1, offset1))
        inner = F.relu(F.conv2d(inner, weight2, offset2, padding=1))
        y = F.conv2d(inner, weight3, offset3)
        y += x if weight_skip is None else F.conv2d(x, weight_skip)

    Memory: with a map of `out` channels as the unit and in = out, 6 units; all in one kernel would
    be 2, the floor (33 %).
    """
    inner = conv1x1_act(x, weight1.flatten(1), offset1, relu=True)
    inner = conv3x3(inner, weight2, offset2, relu=True)
    if weight_skip is None:
        return conv1x1_act(inner, weight3.flatten(1), offset3, x)
    return conv1x1_act(inner, weight3.flatten(1), offset3, x2=x, weight2=weight_skip.flatten(1))
