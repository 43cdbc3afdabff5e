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
    """`fasthg.ops.bn_act` with the statistics of all processes' batches, which are of one size.

    Two collectives, one in the forward (means and variances) and one in the backward (the two sums
    that its gradient contains). Statistics and backward are the kernels of torch's SyncBatchNorm on
    a GPU, and plain torch elsewhere.

    Args:
        x: `(batch, channels, height, width)`, this process's.
        bias: `(channels,)`; its gradient is that of this process's batch alone.
        residual: as x, added before the ReLU.
        group: called in the same order by all.
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
        # Equal batches: the whole variance is the mean of theirs and the variance of their means.
        means, variances = group.stacked(torch.stack((own_mean, own_var))).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        y = bn_act_inference(x, mean, var, bias, residual=residual, relu=relu, eps=eps)
        ctx.group, ctx.residual = group, residual is not None
        ctx.save_for_backward(x, y if relu else None, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, mean, scale = ctx.saved_tensors
        if y is not None:
            slope = torch.where(y > 0, slope, 0)
        sums = _sums(slope, x, mean, scale)
        every = sums.clone()
        ctx.group.sum(every)
        found = _gradient(slope, x, mean, scale, every, ctx.group.size)
        return found, sums[0], slope if ctx.residual else None, None, None, None


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of this process's batch, `(channels,)`."""
    if x.is_cuda:
        mean, scale = torch.batch_norm_stats(x, eps)
        return mean, scale.square().reciprocal() - eps
    var, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0)
    return mean, var


def _sums(slope: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """`(2, channels)`: sums of the slope, and of its product with x - mean."""
    if x.is_cuda:
        asked = (True, False, False)
        mean_grad, mean_grad_xhat, *_ = torch.batch_norm_backward_reduce(
            slope, x, mean, scale, torch.ones_like(mean), *asked
        )
        return torch.stack((mean_grad, mean_grad_xhat))
    wide, centred = _wide(slope), _wide(x) - mean.view(_CHANNELS)
    return torch.stack((wide.sum((0, 2, 3)), (wide * centred).sum((0, 2, 3))))


def _gradient(
    slope: Tensor, x: Tensor, mean: Tensor, scale: Tensor, sums: Tensor, processes: int
) -> Tensor:
    """The gradient with respect to x, given `_sums` over all processes."""
    size = x.numel() // x.shape[1]
    if x.is_cuda:
        sizes = torch.full((processes,), size, dtype=torch.int32, device=x.device)
        ones = torch.ones_like(mean)
        return torch.batch_norm_backward_elemt(slope, x, mean, scale, ones, sums[0], sums[1], sizes)
    mean_grad, mean_grad_xhat = (sums / (size * processes)).view(2, *_CHANNELS)
    centred = _wide(x) - mean.view(_CHANNELS)
    found = _wide(slope) - mean_grad - centred * (mean_grad_xhat * scale.view(_CHANNELS).square())
    return (found * scale.view(_CHANNELS)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
