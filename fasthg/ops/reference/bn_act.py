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
    of_y: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, beta and gamma, and of_y behind the ReLU, in the arithmetic dtype.

    y: the forward's result, read where it says what the ReLU let through; None: x says so.
    frozen: mean and var are constants.
    """
    work = arithmetic_dtype(x.dtype)
    of_y = of_y.to(work)
    if relu:
        before = normalise(x, mean, var, beta, gamma, eps=eps) if y is None else y
        of_y = torch.where(before <= 0, 0, of_y)
    deviation = torch.rsqrt(var + eps)[:, None, None]
    standard = (x.to(work) - mean[:, None, None]) * deviation
    of_beta, of_gamma = of_y.sum((0, 2, 3)), (of_y * standard).sum((0, 2, 3))
    of_x = of_y
    if not frozen:
        count = x.numel() // x.shape[1]
        of_beta_here, of_gamma_here = (t[:, None, None] / count for t in (of_beta, of_gamma))
        of_x = of_x - of_beta_here - standard * of_gamma_here
    of_x = of_x * deviation
    if gamma is not None:
        of_x = of_x * gamma.to(work)[:, None, None]
    return of_x, of_beta, of_gamma, of_y
