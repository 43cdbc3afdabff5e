"""Copies of a loader's batches to the device, overlapped with the steps before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from fasthg.data.batch import READ_BY_STEP, Batch

AHEAD = 2
"""Steps that the host may run ahead of a GPU: enough that the GPU never waits for a launch."""


class Prefetcher(Iterator[Batch]):
    """A loader's batches, with the tensors that a step reads on the device.

    On a GPU a batch is copied from page-locked memory on a side stream while the steps launched
    before still run; the current stream waits for the copy, the host does not. On a CPU batches
    pass unchanged. Use each batch on the current stream before asking for the next.

    A batch may be dropped while the step that reads it still runs. Its memory is PyTorch's: copies
    are recorded for the current stream, and tensors that a loader made on the device belong to
    that stream (`DaliLoader` copies DALI's buffers for this reason, because `record_stream` does
    nothing for memory of another allocator).

    Args:
        batches: of a `Loader`.
        device: where the step runs.
    """

    waited: float = 0.0
    """Seconds that the last `next` waited for the loader."""

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
        # This event follows the step that read the last batch; waiting for an older event bounds
        # the number of queued steps.
        self._launched.append(compute.record_event())
        if len(self._launched) > AHEAD:
            self._launched.popleft().synchronize()
        slot = self._slots[0]
        self._slots.reverse()
        slot.copied.synchronize()
        with torch.cuda.stream(self._copies):
            copies = {
                name: slot.to(name, getattr(batch, name), self._device) for name in READ_BY_STEP
            }
            slot.copied.record()
        compute.wait_event(slot.copied)
        for tensor in copies.values():
            # Allocated on the side stream, read on this one: not reused before that read.
            tensor.record_stream(compute)
        return batch.replace(**copies)


class _Slot:
    """Page-locked memory for one batch, and the event after which it may be written again."""

    def __init__(self) -> None:
        self.copied = torch.cuda.Event()
        self._locked: dict[str, Tensor] = {}

    def to(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """Queue a copy to the device; a tensor that is there already is returned as it is."""
        if tensor.is_cuda:
            return tensor
        locked = self._locked.get(name)
        if locked is None or locked.shape != tensor.shape:
            self._locked[name] = locked = torch.empty_like(tensor, pin_memory=True)
        return locked.copy_(tensor).to(device, non_blocking=True)
