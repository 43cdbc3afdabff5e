"""Batch norm over the batches of several processes together (BATCHNORM_SYNC)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fasthg.ops import bn_act_inference

_CHANNELS = (1, -1, 1, 1)


class SyncGroup(Protocol):
    """The processes that train together; `fasthg.runtime.distributed.ProcessGroup` is one."""

    size: int

    def sum(self, tensor: Tensor) -> None:
        """Write the sum over all processes into a tensor."""

    def stacked(self, tensor: Tensor) -> Tensor:
        """`(size, *tensor.shape)`: the tensor of every process."""


def sync_norm(
    x: Tensor, bias: Tensor, residual: Tensor | None, group: SyncGroup, *, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`fasthg.ops.bn_act` with statistics over the batches of all processes, all of one size.

    There are two collectives: the forward gathers means and variances, the backward sums the two
    sums of its gradient. On a GPU, statistics and backward are the kernels of torch's
    SyncBatchNorm, elsewhere plain torch.

    Args:
        x: `(batch, channels, height, width)` of this process.
        bias: `(channels,)`; its gradient is that of this process's batch alone.
        residual: shaped as x; added before the ReLU.
        group: all processes call it in the same order.
        relu, eps: see `BatchNorm`.

    Returns:
        y as x, and mean and biased variance `(channels,)` over all processes.
    """
    y, mean, var = _SyncNorm.apply(x, bias, residual, relu, eps, group)
    return y, mean, var


class _SyncNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
        group: SyncGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_mean, own_var = _moments(x, eps)
        # Batches of one size: total variance = mean of the variances + variance of the means.
        means, variances = group.stacked(torch.stack((own_mean, own_var))).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        y = bn_act_inference(x, mean, var, bias, residual=residual, relu=relu, eps=eps)
        ctx.group, ctx.residual = group, residual is not None
        ctx.save_for_backward(x, y if relu else None, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, mean, scale = ctx.saved_tensors
        if y is not None:
            grad_y = torch.where(y > 0, grad_y, 0)
        sums = _gradient_sums(grad_y, x, mean, scale)
        total = sums.clone()
        ctx.group.sum(total)
        grad_x = _grad_x(grad_y, x, mean, scale, total, ctx.group.size)
        return grad_x, sums[0], grad_y if ctx.residual else None, None, None, None


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of this process's batch, `(channels,)`."""
    if x.is_cuda:
        mean, scale = torch.batch_norm_stats(x, eps)
        return mean, scale.square().reciprocal() - eps
    var, mean = torch.var_mean(_at_least_float32(x), (0, 2, 3), correction=0)
    return mean, var


def _gradient_sums(grad_y: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """`(2, channels)`: sums of grad_y and of `grad_y * (x - mean)` over this process's batch."""
    if x.is_cuda:
        needs_sums, needs_weight, needs_bias = True, False, False
        sum_grad_y, sum_grad_y_centred, *_ = torch.batch_norm_backward_reduce(
            *(grad_y, x, mean, scale, torch.ones_like(mean)),
            *(needs_sums, needs_weight, needs_bias),
        )
        return torch.stack((sum_grad_y, sum_grad_y_centred))
    wide, centred = _at_least_float32(grad_y), _at_least_float32(x) - mean.view(_CHANNELS)
    return torch.stack((wide.sum((0, 2, 3)), (wide * centred).sum((0, 2, 3))))


def _grad_x(
    grad_y: Tensor, x: Tensor, mean: Tensor, scale: Tensor, sums: Tensor, processes: int
) -> Tensor:
    """The gradient with respect to x, from `_gradient_sums` added up over all processes.

    `grad_x = scale * (grad_y - mean(grad_y) - (x - mean) * scale^2 * mean(grad_y * (x - mean)))`
    with `scale = 1 / sqrt(var + eps)` and means over the batches of all processes.
    """
    size = x.numel() // x.shape[1]
    if x.is_cuda:
        sizes = torch.full((processes,), size, dtype=torch.int32, device=x.device)
        ones = torch.ones_like(mean)
        return torch.batch_norm_backward_elemt(
            grad_y, x, mean, scale, ones, sums[0], sums[1], sizes
        )
    mean_grad_y, mean_grad_y_centred = (sums / (size * processes)).view(2, *_CHANNELS)
    centred = _at_least_float32(x) - mean.view(_CHANNELS)
    factor = mean_grad_y_centred * scale.view(_CHANNELS).square()
    grad_x = _at_least_float32(grad_y) - mean_grad_y - centred * factor
    return (grad_x * scale.view(_CHANNELS)).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
