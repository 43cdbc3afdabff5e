"""What `residual_block` computes, forward and backward.

The last batch norm follows a 1x1 convolution of a and has no ReLU after it. With S = mean(a),
C = cov(a) and weights W, the mean of a Wᵀ is W S and its variance the diagonal of W C Wᵀ, so the
norm is folded into the weights (`bn_fold`), and one product computes y = a W'ᵀ + b' + x: the
convolution's own result is never stored. In the backward the sums that a batch norm needs follow
from the gradient of W. The skip convolution has the same form, with a = x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fasthg.ops import _layout
from fasthg.ops.bn_act import gradients as bn_gradients
from fasthg.ops.bn_act import infer as bn_infer
from fasthg.ops.bn_act import moments as bn_moments
from fasthg.ops.bn_act import train as bn_train
from fasthg.ops.bn_fold import gradients as bn_fold_gradients
from fasthg.ops.bn_fold import run as bn_fold
from fasthg.ops.channel_covariance import run as channel_covariance
from fasthg.ops.conv1x1_act import run as conv1x1_act
from fasthg.ops.conv3x3 import grad_weight as conv3x3_grad_weight
from fasthg.ops.conv3x3 import grad_x as conv3x3_grad_x
from fasthg.ops.conv3x3 import run as conv3x3
from fasthg.ops.reference import arithmetic_dtype


def _last(x: Tensor, values: Tensor) -> Tensor:
    """Maps in x's dtype, channels last."""
    return values.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a bᵀ over all pixels, (channels of a, channels of b), at least float32."""
    real = arithmetic_dtype(a.dtype)
    if a.is_cuda and a.dtype != real:
        rows_a, rows_b = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (a, b))
        return _layout.wide_product(rows_a, rows_b)
    # On a CPU oneDNN's gradient of a convolution is quicker than a product of its matrices.
    weight = a.new_empty(a.shape[1], b.shape[1], 1, 1)
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        a, b, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False)
    )
    return grad_weight.flatten(1).to(real)


class _Folded(NamedTuple):
    """A 1x1 convolution whose norm is part of its weights, and what the norm saw."""

    weight: Tensor
    offset: Tensor
    mean_out: Tensor
    var_out: Tensor
    mean: Tensor
    covariance: Tensor


def _matrix(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution's weights as (out, in), in the dtype of the algebra on them."""
    return weight.flatten(1).to(arithmetic_dtype(x.dtype))


def _fold(x: Tensor, weight: Tensor, beta: Tensor, eps: float) -> _Folded:
    moments = channel_covariance(x)
    weight = _matrix(x, weight)
    folded = bn_fold(weight, *moments, beta.to(weight.dtype), eps, x.dtype)
    return _Folded(*folded, *moments)


def _pixels(x: Tensor) -> int:
    """Rows of x: its images' pixels, 0 where a side is empty."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def empty_results(
    x: Tensor, weight1: Tensor, weight3: Tensor, weight_skip: Tensor | None
) -> tuple[Tensor, ...]:
    """Allocate what `train` returns; statistics and moments are 0, maps uninitialised."""
    half, full = len(weight1), len(weight3)
    of_skip: list[tuple[int, ...]] = [(0,)] * 2
    moments_of_x = list(of_skip)
    if weight_skip is not None:
        of_skip, moments_of_x = [(full,)] * 2, [(x.shape[1],), (x.shape[1], x.shape[1])]
    shapes = [*[(half,)] * 4, *[(full,)] * 2, *of_skip, (half,), (half, half), *moments_of_x]
    real = arithmetic_dtype(x.dtype)
    maps = (_empty_maps(x, channels) for channels in (full, half, half))
    return *maps, *(x.new_zeros(shape, dtype=real) for shape in shapes)


def empty_gradients(
    x: Tensor, weight1: Tensor, weight2: Tensor, weight3: Tensor, weight_skip: Tensor | None
) -> tuple[Tensor, ...]:
    """Allocate what `gradients` returns."""

    def real(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=arithmetic_dtype(x.dtype))

    half, full = len(weight1), len(weight3)
    return (
        _empty_maps(x, x.shape[1]),
        *(real(half, x.shape[1]), real(half), real(*weight2.shape), real(half)),
        *(real(full, half), real(full)),
        real(0) if weight_skip is None else real(full, x.shape[1]),
    )


def _empty_maps(x: Tensor, channels: int) -> Tensor:
    return _layout.empty((x.shape[0], channels, *x.shape[2:]), x.dtype, x.device)


def train(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    weight_skip: Tensor | None,
    beta_skip: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """y, both narrow maps, `ResidualStatistics`, and moments of the folded convolutions' inputs."""
    if not _pixels(x):
        return empty_results(x, weight1, weight3, weight_skip)
    # The algebra on statistics needs the full precision that autocast would take away.
    with torch.autocast(x.device.type, enabled=False):
        read = _last(x, x)
        y1 = _last(x, functional.conv2d(read, weight1.to(x.dtype)))
        a1, mean1, var1 = bn_train(y1, beta1, None, None, True, eps)
        y2 = conv3x3(a1, weight2)
        del a1
        a2, mean2, var2 = bn_train(y2, beta2, None, None, True, eps)
        third = _fold(a2, weight3, beta3, eps)
        if weight_skip is None or beta_skip is None:
            y = conv1x1_act(a2, third.weight, third.offset, read, None, None, False)
            skip_results = [mean1.new_empty(0) for _ in range(4)]
        else:
            skip = _fold(read, weight_skip, beta_skip, eps)
            offset = third.offset + skip.offset
            y = conv1x1_act(a2, third.weight, offset, None, read, skip.weight, False)
            skip_results = list(skip[2:])
    third_results = list(third[2:])
    moments = (*third_results[2:], *skip_results[2:])
    return y, y1, y2, mean1, var1, mean2, var2, *third_results[:2], *skip_results[:2], *moments


def gradients(
    grad_y: Tensor,
    x: Tensor,
    y1: Tensor,
    y2: Tensor,
    statistics: list[Tensor],
    moments: list[Tensor],
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    weight_skip: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of x and of weights and offsets in their order; beta_skip has that of beta3."""
    count = _pixels(x)
    if not count:
        results = empty_gradients(x, weight1, weight2, weight3, weight_skip)
        return tuple(t.zero_() for t in results)
    mean1, var1, mean2, var2, *others = statistics
    with torch.autocast(x.device.type, enabled=False):
        grad_y, read = _last(x, grad_y), _last(x, x)
        # Some ten times quicker than torch's sum of a half type on a CPU.
        total = bn_moments(grad_y)[0] * count

        def folded_gradients(
            a: Tensor, weight: Tensor, moments: list[Tensor], moments_out: list[Tensor]
        ) -> Any:
            """Gradients of a folded convolution's weights and of its input a."""
            sums = _product(grad_y, a), total, _matrix(x, weight)
            (mean, covariance), (mean_out, var_out) = moments, moments_out
            all_moments = mean, covariance, mean_out, var_out
            grad_weight, back, mix, constant = bn_fold_gradients(
                *sums, *all_moments, count, eps, x.dtype
            )
            return grad_weight, conv1x1_act(grad_y, back, constant, None, a, mix, False)

        a2 = bn_infer(y2, mean2, var2, beta2, None, None, True, eps)
        grad_weight3, grad_a2 = folded_gradients(a2, weight3, moments[:2], others[:2])
        del a2
        grad_y2, grad_beta2, _, _ = bn_gradients(
            grad_a2, y2, None, mean2, var2, beta2, None, True, False, eps
        )
        del grad_a2
        a1 = bn_infer(y1, mean1, var1, beta1, None, None, True, eps)
        grad_weight2 = conv3x3_grad_weight(grad_y2, a1, weight2)
        del a1
        grad_a1 = conv3x3_grad_x(grad_y2, weight2)
        del grad_y2
        grad_y1, grad_beta1, _, _ = bn_gradients(
            grad_a1, y1, None, mean1, var1, beta1, None, True, False, eps
        )
        del grad_a1
        if weight_skip is None:
            grad_weight_skip, skip_gradient = total.new_empty(0), grad_y
        else:
            grad_weight_skip, skip_gradient = folded_gradients(
                read, weight_skip, moments[2:], others[2:]
            )
        back1 = weight1.flatten(1).t()
        grad_x = conv1x1_act(grad_y1, back1, None, skip_gradient, None, None, False)
        grad_weight1 = _product(grad_y1, read)
        grad_weight2 = grad_weight2.to(total.dtype).contiguous()
    grad_weights = (
        grad_weight1,
        grad_beta1,
        grad_weight2,
        grad_beta2,
        grad_weight3,
        total,
        grad_weight_skip,
    )
    return grad_x, *grad_weights
