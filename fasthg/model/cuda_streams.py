"""What runs side by side in a CUDA graph: the paths of an hourglass, and gradients of weights.

A GPU that works on small maps one kernel after the other is mostly idle. A graph's kernels overlap
where the streams that they were captured on do not wait for each other; results stay the same to
the last bit. Outside a capture nothing here has an effect: launched one by one, kernels would
hardly overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# For each capturing stream and level of an hourglass.
_paths: dict[tuple[int, int], torch.cuda.Stream] = {}


def _captures(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or not x.is_cuda:
        return False
    return torch.cuda.is_current_stream_capturing()


def side_stream(x: Tensor, level: int) -> torch.cuda.Stream | None:
    """The stream for the full-size path of an hourglass; None: on the current one.

    Autograd runs the backward of each path on its stream, too.

    Args:
        x: what both paths read.
        level: of the hourglass within its stack.
    """
    if not _captures(x):
        return None
    key = torch.cuda.current_stream(x.device).cuda_stream, level
    if key not in _paths:
        _paths[key] = torch.cuda.Stream(x.device)
    return _paths[key]


class _WeightGradientStream:
    """Gradients of weights on their way, and the maps that they read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.read: list[Tensor] = []

    def join(self) -> None:
        """Let the current stream wait; what was read may be freed."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.read.clear()


# Of the backward that runs.
_beside: _WeightGradientStream | None = None


@contextlib.contextmanager
def overlap_weight_gradients(loss: Tensor) -> Iterator[None]:
    """While this is open, a backward of `loss` finds the gradients of `convolve` beside the rest.

    They are nobody's input: the backward of the layers before does not wait for them. At its end
    the current stream does.
    """
    global _beside
    if not _captures(loss):
        yield
        return
    before, _beside = _beside, _WeightGradientStream(loss.device)
    try:
        yield
    finally:
        _beside.join()
        _beside = before


def join_weight_gradients(x: Tensor) -> Tensor:
    """x; in its backward the gradients of weights found so far are waited for.

    Until then the maps that they read stay: without an end now and then, all of the network's.
    """
    if not (_captures(x) and x.requires_grad):
        return x
    y: Tensor = _JoinWeightGradients.apply(x)
    return y


class _JoinWeightGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        if _beside is not None:
            _beside.join()
        return slope


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution without bias, whose weight's gradient may be found beside the rest."""
    weight = conv.weight
    if not (_captures(x) and torch.is_grad_enabled()) or x.dtype != weight.dtype:
        y: Tensor = conv(x)
    else:
        y = _OverlappedConvolution.apply(x, weight, conv.stride, conv.padding)
    return y


class _OverlappedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.given = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ctx.needs_input_grad[:2]

        def gradients(grad_x: bool, grad_weight: bool) -> list[Tensor | None]:
            if not (grad_x or grad_weight):
                return [None, None]
            found: list[Tensor | None] = torch.ops.aten.convolution_backward(
                *(slope, x, weight, None, *ctx.given, (1, 1), False, (0, 0), 1),
                (grad_x, grad_weight, False),
            )
            return found

        if _beside is None:
            found = gradients(grad_x, grad_weight)
            return found[0], found[1], None, None
        beside = _beside
        beside.stream.wait_stream(torch.cuda.current_stream(beside.device))
        with torch.cuda.stream(beside.stream):
            grad_weight = gradients(False, grad_weight)[1]
        beside.read += (x, slope)
        return gradients(grad_x, False)[0], grad_weight, None, None
