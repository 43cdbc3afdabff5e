"""Batch norm folded into the 1 x 1 convolution before it, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def bn_fold(
    weight: Tensor, mean: Tensor, covariance: Tensor, beta: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Folded weights in `dtype`; offset, mean and variance of the outputs in weight's dtype.

    weight: (outputs, inputs); mean (inputs,) and covariance (inputs, inputs), biased, of the
    convolution's input; beta: (outputs,).
    """
    mean_out = weight @ mean
    # Rounding must not turn a variance near 0 negative, nor overflow one to NaN: the diagonal terms
    # are NaN only where data are.
    var_out = ((weight @ covariance) * weight).sum(1).clamp(min=0)
    diagonal = weight.square() @ covariance.diagonal()
    var_out = torch.where(var_out.isfinite() | diagonal.isnan(), var_out, torch.inf)
    scale = torch.rsqrt(var_out + eps)
    folded = (scale[:, None] * weight).to(dtype)
    # Of the rounded weights, so that the rounding moves no mean.
    return folded, beta - folded.to(weight.dtype) @ mean, mean_out, var_out


def bn_fold_backward(
    product: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    covariance: Tensor,
    mean_out: Tensor,
    var_out: Tensor,
    rows: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of weight; back and mix in `dtype`, and constant: see the operator.

    product: (outputs, inputs), d^T a of the gradient d of the batch norm's result (rows, outputs)
    and the convolution's input a (rows, inputs); total: (outputs,), sums of d over the rows.
    """
    scale = torch.rsqrt(var_out + eps)
    share = scale / rows if rows else torch.zeros_like(scale)
    # A scale of 0 is that of an infinite variance, whose covariances may be anything.
    grad_covariance = scale.square() * ((product * weight).sum(1) - mean_out * total)
    grad_covariance = torch.where(scale == 0, 0, grad_covariance)
    grad_weight = scale[:, None] * (
        product - total[:, None] * mean - grad_covariance[:, None] * (weight @ covariance)
    )
    grad_weight = torch.where(scale[:, None] == 0, 0, grad_weight)
    back = (scale[:, None] * weight).mT.to(dtype).contiguous()
    mix_scale = share * grad_covariance
    mix = (-(weight.mT * mix_scale) @ weight).to(dtype)
    constant = -(mix.to(weight.dtype) @ mean) - back.to(weight.dtype) @ (total / max(rows, 1))
    return grad_weight, back, mix, constant
