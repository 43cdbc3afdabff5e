"""Work on the device as a CUDA graph: launched by one call, without Python and without its cost."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before the capture: in the first ones libraries choose algorithms and allocate."""


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


class GraphedCallable:
    """Work that is captured for the shapes of its inputs, and from then on replayed.

    Args:
        work: of the inputs; see `capture` for what it may do.
        device: where it runs.
        eager: so many calls with the same shapes run as they are before one is captured.
        restore_state: entered around the runs before a capture; its end undoes what they changed.
    """

    def __init__(
        self,
        work: Callable[..., Tensor],
        device: torch.device,
        *,
        eager: int = 0,
        restore_state: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._work, self._device, self._eager, self._restore_state = (
            work,
            device,
            eager,
            restore_state,
        )
        self._shapes: list[torch.Size] | None = None
        self._times = 0
        self._inputs: tuple[Tensor, ...] = ()
        self.captured: Replayable | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The work's result; the next call may write over it."""
        shapes = [tensor.shape for tensor in inputs]
        if shapes != self._shapes:
            # Frees their memory first.
            self._shapes, self._times, self._inputs, self.captured = shapes, 0, (), None
        self._times += 1
        if self._times <= self._eager:
            return self._work(*inputs)
        if self.captured is None:
            held = tuple(tensor.clone() for tensor in inputs)
            with self._restore_state():
                captured = capture(lambda: self._work(*held), self._device)
            self._inputs, self.captured = held, captured
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        return self.captured.replay()


def capture(work: Callable[[], Tensor], device: torch.device) -> Replayable:
    """Run `work` some times, then capture it; the caller undoes what the runs changed.

    Everything that `work` reads and that changes between replays lies in tensors that stay: what it
    takes from Python is captured as it is now. It does not wait for the device. Nobody else may
    wait for the whole device or free memory of CUDA meanwhile: DALI, say, whose batch is dropped.
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
