"""Batch norm, residual and ReLU in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fasthg.ops.reference.dtypes import arithmetic_dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (channels,) of maps (batch, channels, height, width)."""
    x = x.to(arithmetic_dtype(x.dtype))
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var


def normalise(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> Tensor:
    """`relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual)`, in the arithmetic dtype.

    x, residual: (batch, channels, height, width); all others: (channels,).
    """
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = scale * gamma
    work = arithmetic_dtype(x.dtype)
    mean, scale, beta = (t.to(work)[:, None, None] for t in (mean, scale, beta))
    y = (x.to(work) - mean) * scale + beta
    if residual is not None:
        y = y + residual.to(work)
    return functional.relu(y) if relu else y


def bn_act(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """`normalise` by the batch's own `moments`. Returns y in x's dtype, mean and var."""
    mean, var = moments(x)
    y = normalise(x, mean, var, beta, gamma, residual, relu=relu, eps=eps)
    return y.to(x.dtype), mean.detach(), var.detach()


def bn_act_backward(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    *,
    relu: bool,
    frozen: bool,
    eps: float,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, beta and gamma, and grad_y after the ReLU mask, in the arithmetic dtype.

    y: the forward's result, read where it says what the ReLU let through; None: x says so.
    frozen: mean and var are constants. sums: grad_beta and grad_gamma, where they are known.
    """
    work = arithmetic_dtype(x.dtype)
    grad_y = grad_y.to(work)
    if relu:
        before = normalise(x, mean, var, beta, gamma, eps=eps) if y is None else y
        grad_y = torch.where(before <= 0, 0, grad_y)
    deviation = torch.rsqrt(var + eps)[:, None, None]
    standard = (x.to(work) - mean[:, None, None]) * deviation
    grad_beta, grad_gamma = sums or (grad_y.sum((0, 2, 3)), (grad_y * standard).sum((0, 2, 3)))
    grad_x = grad_y
    if not frozen:
        count = x.numel() // x.shape[1]
        grad_beta_here, grad_gamma_here = (
            t[:, None, None] / count for t in (grad_beta, grad_gamma)
        )
        grad_x = grad_x - grad_beta_here - standard * grad_gamma_here
    grad_x = grad_x * deviation
    if gamma is not None:
        grad_x = grad_x * gamma.to(work)[:, None, None]
    return grad_x, grad_beta, grad_gamma, grad_y
