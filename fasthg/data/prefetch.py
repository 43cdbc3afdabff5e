"""Batches on their way from the loader to the device, one step ahead of their use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from fasthg.data.batch import READ_BY_STEP, Batch

AHEAD = 2
"""Steps that the host may be ahead of a GPU: enough that the GPU never waits for a launch."""


class Prefetcher(Iterator[Batch]):
    """A loader's batches with what a step reads on the device.

    On a GPU a batch is copied from page-locked memory on a stream of its own, while the steps
    launched before still run; the current stream waits for the copy, the host does not. On a CPU
    batches pass as they are. Use each batch on the current stream before asking for the next.

    Args:
        batches: of a `Loader`.
        device: where the step runs.
    """

    waited: float = 0.0
    """Seconds that the loader let the last `next` wait."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)
            self._slots = [_Slot() for _ in range(AHEAD)]
            self._launched: deque[torch.cuda.Event] = deque()

    def __next__(self) -> Batch:
        """The next batch; raises what the loader raises, and StopIteration at its end."""
        begin = time.perf_counter()
        batch = next(self._batches)
        self.waited = time.perf_counter() - begin
        return batch if self._device.type != "cuda" else self._copied(batch)

    def _copied(self, batch: Batch) -> Batch:
        compute = torch.cuda.current_stream(self._device)
        # Behind the step that used the batch before; waiting for an older one bounds the queue.
        self._launched.append(compute.record_event())
        if len(self._launched) > AHEAD:
            self._launched.popleft().synchronize()
        slot = self._slots[0]
        self._slots.reverse()
        slot.copied.synchronize()
        with torch.cuda.stream(self._copies):
            moved = {
                name: slot.to(name, getattr(batch, name), self._device) for name in READ_BY_STEP
            }
            slot.copied.record()
        compute.wait_event(slot.copied)
        for tensor in moved.values():
            # Freed by the host while the step may still read it.
            tensor.record_stream(compute)
        return batch.replace(**moved)


class _Slot:
    """Page-locked memory for one batch, and the event after which it may be written again."""

    def __init__(self) -> None:
        self.copied = torch.cuda.Event()
        self._locked: dict[str, Tensor] = {}

    def to(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """Queue a copy to the device; what is there already stays as it is."""
        if tensor.is_cuda:
            return tensor
        locked = self._locked.get(name)
        if locked is None or locked.shape != tensor.shape:
            self._locked[name] = locked = torch.empty_like(tensor, pin_memory=True)
        return locked.copy_(tensor).to(device, non_blocking=True)
