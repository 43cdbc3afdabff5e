"""Mean and covariance of channels, from which batch norm after a 1x1 convolution follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _extension, _layout, reference

# Each part of the rows is summed by itself, then the parts in order: their number, which depends on
# the shape alone, decides the order of summation. Rows of a part at least, and parts at most; a GPU
# needs a part for each multiprocessor.
_PARTS = {"cpu": (1024, 16), "cuda": (256, 128)}


def _empty_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    channels, dtype = x.shape[1], reference.arithmetic_dtype(x.dtype)
    return x.new_empty(channels, dtype=dtype), x.new_empty(channels, channels, dtype=dtype)


def _has_kernel(x: Tensor) -> bool:
    """Whether there is a kernel; of float32 and float64 on CUDA torch's own product is one."""
    wide = x.dtype in (torch.float32, torch.float64)
    return _extension.has_kernel(x) and not (wide and _extension.backend(x) == "cuda")


def run(x: Tensor) -> tuple[Tensor, Tensor]:
    """`channel_covariance` without checks and gradients, for operators that contain it."""
    mean, covariance = _empty_moments(x)
    if not x.numel():
        return mean.zero_(), covariance.zero_()
    if not _has_kernel(x):
        with torch.autocast(x.device.type, enabled=False):
            results = reference.channel_covariance(x)
        for out, value in zip((mean, covariance), results, strict=True):
            out.copy_(value)
        return mean, covariance
    read = _layout.readable(x, x.dtype)
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    least, most = _PARTS[_extension.backend(x)]
    parts = min(most, -(-rows // least))
    workspace = mean.new_empty(parts * (channels + 1) * channels)
    addresses = [t.data_ptr() for t in (workspace, mean, covariance)]
    shape = (rows, channels, parts)
    _extension.call_kernel("channel_covariance", read, read.data_ptr(), *shape, *addresses)
    return mean, covariance


def _setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[0])


@once_differentiable
def _backward(ctx: Any, grad_mean: Tensor, grad_covariance: Tensor) -> Tensor:
    x, mean = ctx.saved_tensors
    count = max(x.numel() // max(x.shape[1], 1), 1)
    symmetric = (grad_covariance + grad_covariance.mT) / count
    with torch.autocast(x.device.type, enabled=False):
        centred = x.to(mean.dtype) - mean[:, None, None]
        # The mean is rounded; far from 0 its rounding error counts against the deviations.
        centred = centred - centred.mean((0, 2, 3), keepdim=True)
        grad_x: Tensor = centred.permute(0, 2, 3, 1) @ symmetric + grad_mean / count
    return grad_x.to(x.dtype).permute(0, 3, 1, 2)


_operator = _extension.register(
    "channel_covariance(Tensor x) -> (Tensor, Tensor)",
    run,
    _empty_moments,
    setup_context=_setup,
    backward=_backward,
)


def channel_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance of the channels of x, over all pixels of all images.

    The statistics of a batch norm after a 1x1 convolution of x follow from them, without the
    convolution's result: see `bn_fold`.

    Args:
        x: (batch, channels, height, width), any floating dtype; channels last in memory without a
            copy, anything else through one.

    Returns:
        mean (channels,) and covariance (channels, channels), float64 for float64 x, else float32;
        zeros for an empty x. The covariance is symmetric to the last bit. Both are differentiable
        once: `grad_x = grad_mean / n + (x - mean) (grad_covariance + grad_covariance^T) / n`.

    Equivalent to:
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        mean, covariance = rows.mean(0), torch.cov(rows.mT, correction=0)

    Error: of entry i, j relative to sqrt(var_i var_j): 1e-5, and 1e-13 in float64. Half types on
    CUDA, which the tensor cores take as they are, cannot be centred first: 1e-5 (1 + m_i m_j) with
    m = abs(mean) / sqrt(var). Sums run in a fixed order: the result does not depend on the number
    of threads and is the same in every run. The gradient's error in float32 is 1e-6 of its norm,
    also at abs(mean) = 1e4 sqrt(var).

    Memory: the floor is one read of x and channels (channels + 1) values written; the CPU kernel
    moves no more (share 1), its sums stay in the caches. Half types on CUDA write those values once
    for each part of the rows, of which there are at most 128 and each has 256 rows at least, and
    read half of them again. With 128 channels that is 1.5 times x up to 32,768 rows (share 0.4) and
    0.19 times x at 262,144 (share 0.84), if it counts at all: it fits the second-level cache. Above
    128 channels tiles read x again, twice in all at 256. Float32 and float64 on CUDA are torch's
    own: x is read twice, and a centred copy is written and read (share 0.25).

    Raises:
        ValueError: wrong shape, not floating.
    """
    _layout.check("channel_covariance", "x", x)
    mean, covariance = _operator(x)
    return mean, covariance
