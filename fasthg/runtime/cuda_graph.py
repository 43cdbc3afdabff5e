"""CUDA graphs: all kernels of a function launched by one call, without the cost of Python."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Eager runs before a capture: in the first ones, libraries choose algorithms and allocate."""


class Replayable(Protocol):
    """Captured work."""

    def replay(self) -> Tensor:
        """Run it again; its result, at the same address each time."""


class Graph:
    """A captured CUDA graph with its result."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Tensor) -> None:
        self._graph, self._result = graph, result

    def replay(self) -> Tensor:
        """Launch the graph on the current stream."""
        self._graph.replay()
        return self._result


class _Layout(NamedTuple):
    """What a captured input must have in common with the next one: a copy would cast silently."""

    shape: torch.Size
    dtype: torch.dtype
    strides: tuple[int, ...]


class GraphedCallable:
    """A function of tensors, captured once for the layout of its inputs and replayed thereafter.

    A layout is shape, dtype and strides of every input. Inputs of another layout drop the graph.

    Args:
        work: function of the inputs; see `capture` for what it may do.
        device: device of the graph.
        eager: calls of one layout that run eagerly before the capture.
        restore_state: entered around the runs before a capture; its exit undoes what they changed.
    """

    def __init__(
        self,
        work: Callable[..., Tensor],
        device: torch.device,
        *,
        eager: int = 0,
        restore_state: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._work, self._device = work, device
        self._eager, self._restore_state = eager, restore_state
        self._layouts: list[_Layout] | None = None
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self.captured: Replayable | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Result of the work; the next call may write over it."""
        layouts = [_Layout(t.shape, t.dtype, t.stride()) for t in inputs]
        if layouts != self._layouts:
            # The memory of the old graph is freed before the next capture.
            self._layouts, self._calls, self._inputs, self.captured = layouts, 0, (), None
        self._calls += 1
        if self._calls <= self._eager:
            return self._work(*inputs)
        if self.captured is None:
            held = tuple(tensor.clone() for tensor in inputs)
            with self._restore_state():
                captured = capture(lambda: self._work(*held), self._device)
            self._inputs, self.captured = held, captured
        for held_input, tensor in zip(self._inputs, inputs, strict=True):
            held_input.copy_(tensor)
        return self.captured.replay()


def capture(work: Callable[[], Tensor], device: torch.device) -> Replayable:
    """Run `work` WARM_UP times, then capture it; the caller undoes what the runs changed.

    Whatever changes between replays must lie in tensors that stay: values of Python are captured as
    they are now. `work` must not wait for the device. Meanwhile no other thread may wait for the
    whole device or free memory of CUDA, as DALI does when its batch is dropped.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # An older graph that Python collects during a capture would end it.
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        # On a stream of its own: by default all captures share one, and the end of one graph frees
        # the workspaces that cuBLAS took on that stream for others. Other threads, such as a
        # loader's, may launch meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = work().detach()
    finally:
        if collects:
            gc.enable()
    return Graph(graph, result)
