"""Interim."""

from __future__ import annotations
import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def conv1x1_act(x, weight, bias=None, residual=None, *, x2=None, weight2=None, relu=False):
    y = torch.nn.functional.conv2d(
        x, weight.view(*weight.shape[:2], 1, 1), None if bias is None else bias.to(x.dtype)
    )
    if residual is not None:
        y = y.add_(residual)
    if x2 is not None:
        y = y.add_(torch.nn.functional.conv2d(x2, weight2.view(*weight2.shape[:2], 1, 1)))
    if relu:
        y = y.relu()
    return y


def channel_covariance(x):
    r = rows(x)
    if r.dtype == torch.bfloat16:
        n = len(r)
        k = max(1, n // 1024)
        mean = r.float().mean(0)
        if n % k == 0:
            c = r.view(k, n // k, -1)
            sq = torch.bmm(c.transpose(1, 2), c).float().sum(0) / n
        else:
            sq = (r.t() @ r).float() / n
        return mean, sq - torch.outer(mean, mean)
    mean = r.mean(0)
    c = r - mean
    return mean, c.t() @ c / len(r)


def bn_fold(weight, mean, covariance, beta, eps, dtype):
    mean_out = weight @ mean
    var_out = ((weight @ covariance) * weight).sum(1)
    s = torch.rsqrt(var_out + eps)
    return (s[:, None] * weight).to(dtype), beta - s * mean_out, mean_out, var_out


def bn_fold_backward(product, total, weight, mean, covariance, mean_out, var_out, rows, eps, dtype):
    s = torch.rsqrt(var_out + eps)
    m1 = total / rows
    m2 = s * ((product * weight).sum(1) / rows - mean_out * m1)
    of_weight = s[:, None] * (
        product - torch.outer(total, mean) - (rows * m2 * s)[:, None] * (weight @ covariance)
    )
    back = (s[:, None] * weight).t().to(dtype)
    mix = -(weight.t() * (s * s * m2)) @ weight
    constant = (s * s * m2 * mean_out - s * m1) @ weight
    return of_weight, total, back.contiguous(), mix.to(dtype), constant
