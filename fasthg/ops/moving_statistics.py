"""The moving statistics of all batch norms at once, over flat buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from fasthg.ops import _extension, reference


def _run(running: Tensor, batch: Tensor, correction: Tensor, weight: Tensor) -> None:
    if not _extension.has_kernel(running):
        reference.moving_statistics(running, batch, correction, weight)
    elif running.numel():
        addresses = (t.data_ptr() for t in (running, batch, correction, weight))
        _extension.call_kernel("moving_statistics", running, *addresses, running.numel())
    # What torch's own in-place operators do, so that a backward through an old value is refused.
    torch.autograd.graph.increment_version([running])


_operator = _extension.register(
    "moving_statistics(Tensor(a!) running, Tensor batch, Tensor correction, Tensor weight) -> ()",
    _run,
    lambda *arguments: None,
)


def moving_statistics(running: Tensor, batch: Tensor, correction: Tensor, weight: Tensor) -> None:
    """Update running statistics of batch norms in place with those of a batch.

    All are one-dimensional, without gaps, on one device, and of one dtype, float32 or float64.

    Args:
        running: (total,), means and variances of any number of layers.
        batch: (total,), what this batch has in their place: means and biased variances.
        correction: (total,), factors of `batch`: 1 for a mean, count / (count - 1) for a variance
            of `count` values, which makes it unbiased.
        weight: one value, the share of the batch (1 - decay). Read on the device, so a CUDA graph
            may be replayed with another.

    Equivalent to:
        running.lerp_(batch * correction, weight)

    Error: two roundings of the larger of old and new value. Without autograd. The number of threads
    changes no bit.

    Memory traffic: 4 values for each of `running` (running read and written, batch and correction
    read); the floor is 3, without correction.

    Raises:
        ValueError: a shape, dtype, device or layout that differs from the above.
    """
    if running.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"moving_statistics: running: expected float32 or float64, got {running.dtype}"
        )
    shape = (running.numel(),)
    for name, tensor in (
        ("running", running),
        ("batch", batch),
        ("correction", correction),
        ("weight", weight),
    ):
        right = tensor.numel() == 1 if name == "weight" else tensor.shape == shape
        if not right or not tensor.is_contiguous():
            expected = "one value" if name == "weight" else f"{shape} without gaps"
            raise ValueError(
                f"moving_statistics: {name}: expected {expected}, got {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}"
            )
        if tensor.dtype != running.dtype:
            raise ValueError(
                f"moving_statistics: {name}: expected {running.dtype}, got {tensor.dtype}"
            )
        if tensor.device != running.device:
            raise ValueError(
                f"moving_statistics: {name} is on {tensor.device}, running on {running.device}: "
                "move them to one device"
            )
    _operator(running, batch, correction, weight)
