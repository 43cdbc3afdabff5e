"""Side streams of a network while a CUDA graph of it is captured.

A GPU that works on small maps one kernel after the other is mostly idle. In a graph, kernels
overlap where the streams on which they were captured do not wait for each other. Two parts of a
step are overlapped with the rest: the full-size path of each hourglass level, and the gradients of
convolution weights. Results are the same to the last bit. Outside a capture nothing here has an
effect: kernels that are launched one by one would hardly overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fasthg.ops import conv1x1_act

T = TypeVar("T")


def _is_capturing(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or not x.is_cuda:
        return False
    return torch.cuda.is_current_stream_capturing()


class _WeightGradientStream:
    """The side stream of one backward, and the tensors that its kernels read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.read: list[Tensor] = []

    def join(self) -> None:
        """Let the current stream wait for the side stream, whose tensors may then be freed."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.read.clear()


class SideStreams:
    """The side streams of one network; its modules share the object.

    The backward reads it on autograd's thread, so it is neither a module global, which two
    trainings would share, nor thread-local. A copy of the network has side streams of its own.
    """

    def __init__(self) -> None:
        # For each capturing stream and level of an hourglass.
        self._paths: dict[tuple[int, int], torch.cuda.Stream] = {}
        self._weight_gradients: _WeightGradientStream | None = None

    def __reduce__(self) -> tuple[type[SideStreams], tuple[()]]:
        return SideStreams, ()

    def path(self, x: Tensor, level: int) -> torch.cuda.Stream | None:
        """The stream for the full-size path of an hourglass; None stands for the current one.

        Autograd runs the backward of each path on its stream, too.

        Args:
            x: input of both paths.
            level: level of the hourglass within its stack.
        """
        if not _is_capturing(x):
            return None
        key = torch.cuda.current_stream(x.device).cuda_stream, level
        if key not in self._paths:
            self._paths[key] = torch.cuda.Stream(x.device)
        return self._paths[key]

    @contextlib.contextmanager
    def overlap_weight_gradients(self, loss: Tensor) -> Iterator[None]:
        """While open, weight gradients of `convolve` in a backward of `loss` take a side stream.

        No other gradient depends on them, so the backward of earlier layers does not wait for them.
        At the end the current stream does.
        """
        if not _is_capturing(loss):
            yield
            return
        side, before = _WeightGradientStream(loss.device), self._weight_gradients
        self._weight_gradients = side
        try:
            yield
        finally:
            side.join()
            self._weight_gradients = before

    def join_weight_gradients(self, x: Tensor) -> Tensor:
        """x, whose backward waits for the weight gradients that are on the side stream by then.

        The tensors that those read live until then. Without a join now and then, all maps of the
        network would.
        """
        if not (_is_capturing(x) and x.requires_grad):
            return x
        y: Tensor = _JoinWeightGradients.apply(x, self)
        return y

    def gradient_of_weight(self, read: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """`compute()` on the side stream, where there is one; `read`: the tensors that it reads."""
        side = self._weight_gradients
        if side is None:
            return compute()
        side.stream.wait_stream(torch.cuda.current_stream(side.device))
        with torch.cuda.stream(side.stream):
            gradient = compute()
        side.read += read
        return gradient

    def convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution without bias; see `overlap_weight_gradients` for its weight's gradient."""
        weight = conv.weight
        if not (_is_capturing(x) and torch.is_grad_enabled()) or x.dtype != weight.dtype:
            y: Tensor = conv(x)
        else:
            y = _OverlappedConvolution.apply(x, weight, conv.stride, conv.padding, self)
        return y

    def convolve_fork(self, conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
        """x for another reader, and the 1x1 convolution of it: one pass adds both gradients.

        The gradient of x is a matrix product to which the other reader's is added before it is
        written; autograd would write the product, read both and write the sum.

        Args:
            conv: 1x1, stride 1, no bias; its weight has the dtype of x.
            x: `(batch, in, height, width)`.
        """
        skip, y = _ForkedConvolution.apply(x, conv.weight, self)
        return skip, y


class _JoinWeightGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side_streams: SideStreams) -> Tensor:
        ctx.side_streams = side_streams
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        weight_gradients = ctx.side_streams._weight_gradients
        if weight_gradients is not None:
            weight_gradients.join()
        return grad_y, None


class _ForkedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, side_streams: SideStreams
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.side_streams = side_streams
        ctx.set_materialize_grads(False)
        return x.view_as(x), torch.conv2d(x, weight)

    @staticmethod
    def backward(
        ctx: Any, grad_skip: Tensor | None, grad_y: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return grad_skip, None, None
        x, weight = ctx.saved_tensors

        def of_weight() -> Tensor | None:
            result: list[Tensor | None] = torch.ops.aten.convolution_backward(
                *(grad_y, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
                (False, True, False),
            )
            return result[1]

        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x = grad_weight = None
        if needs_weight:
            grad_weight = ctx.side_streams.gradient_of_weight((x, grad_y), of_weight)
        if needs_x:
            grad_x = conv1x1_act(grad_y, weight.flatten(1).t(), residual=grad_skip)
        return grad_x, grad_weight, None


class _OverlappedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        side_streams: SideStreams,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.side_streams = stride, padding, side_streams
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]

        def gradients(needs_x: bool, needs_weight: bool) -> list[Tensor | None]:
            """Of x and of the weight; None where it is not needed."""
            if not (needs_x or needs_weight):
                return [None, None]
            result: list[Tensor | None] = torch.ops.aten.convolution_backward(
                *(grad_y, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1),
                (needs_x, needs_weight, False),
            )
            return result

        if ctx.side_streams._weight_gradients is None:
            grad_x, grad_weight = gradients(needs_x, needs_weight)[:2]
        else:
            grad_weight = ctx.side_streams.gradient_of_weight(
                (x, grad_y), lambda: gradients(False, needs_weight)[1]
            )
            grad_x = gradients(needs_x, False)[0]
        return grad_x, grad_weight, None, None, None
