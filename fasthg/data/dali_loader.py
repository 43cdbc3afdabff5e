"""Loader that decodes and augments images with NVIDIA DALI, on a GPU or (for tests) on the CPU.

The graph is in dali_graph.py. This module feeds it, hands its output to PyTorch and restarts it
after an image that cannot be decoded. It alone imports nvidia.dali, when a loader is made.
"""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from fasthg.data.augment_ops import noise_bank
from fasthg.data.bad_images import BadImages
from fasthg.data.batch import Batch, make_batch
from fasthg.data.dali_graph import build_graph, build_probe, graph_inputs
from fasthg.data.records.jpeg import image_fault
from fasthg.data.sampler import BatchSampler, BatchSpec, replacement_rows
from fasthg.errors import EnvironmentFault, install_hint

log = logging.getLogger(__name__)


def _blank_png() -> bytes:
    """A grey image of one pixel, fed in place of a batch that has no usable image at all."""
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(b"\0\0"),
        b"IEND",
    )
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


class _Fed(NamedTuple):
    """A batch that is in the graph: fed and not yet returned."""

    step: int
    plan: BatchSpec
    faults: dict[int, str]


class _BufferCopies:
    """Copies of DALI's GPU buffers in PyTorch's memory, which outlives its last reader.

    DALI reuses a buffer on its own stream once no tensor shares it, even while another stream
    still reads it, and PyTorch's `record_stream` does nothing for memory of another allocator. Each
    buffer is therefore held until the event after its copy has completed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

    def copy(self, buffer: torch.Tensor) -> torch.Tensor:
        """Copy a tensor that shares DALI's buffer, on the current stream."""
        while self._held and self._held[0][0].query():
            self._held.popleft()
        copy = buffer.clone()
        event = torch.cuda.current_stream(self._device).record_event()
        self._held.append((event, buffer))
        return copy

    def finish(self) -> None:
        """Wait for all copies and free their buffers."""
        for event, _ in self._held:
            event.synchronize()
        self._held.clear()


class DaliLoader:
    """A Loader (see loader.py). Only one pass runs at a time: another one ends the one before."""

    name = "dali"

    def __init__(
        self,
        sampler: BatchSampler,
        device: torch.device,
        threads: int,
        *,
        prefetch: int = 2,
        decode_window: bool = True,
    ) -> None:
        """Build nothing yet: the graph is made by the first pass.

        threads: CPU threads of DALI. prefetch: batches made ahead. decode_window: decode only the
        part of the image that is needed; off = decode all of it, for decoders that cannot.
        Raises EnvironmentFault if DALI cannot be imported.
        """
        self._dali = import_dali()
        self.sampler = sampler
        self.device = device
        self.threads = threads
        self.prefetch = prefetch
        self.decode_window = decode_window
        self._bank = noise_bank(sampler.cfg.INPUT_SIZE, sampler.cfg.RANDOM_NOISE_SCALE)
        self._faults = BadImages(sampler)
        self._undecodable: dict[int, str] = {}
        self._graph: Any = None
        self._copies = _BufferCopies(device)
        self._fed: deque[_Fed] = deque()
        self._feeding = 0
        self._next = 0
        self._pass = 0
        self._closed = False

    @property
    def corrupt(self) -> dict[int, str]:
        """Records met so far whose image cannot be used, with the reason."""
        return self._faults.records

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start..stop-1; see loader.Loader."""
        if self._closed:
            raise RuntimeError("this loader is closed")
        self._pass += 1
        mine = self._pass
        limit = self.sampler.stop
        for step in range(start, stop if limit is None else min(stop, limit)):
            if mine != self._pass:
                return
            images = self._run(step)
            fed = self._fed.popleft()
            self._next = step + 1
            self._faults.report(fed.faults)
            if len(fed.plan):
                yield make_batch(images, fed.plan)
            elif self.sampler.training:
                self._faults.give_up(step)

    def close(self) -> None:
        """Free the graph and its buffers; the loader is not used afterwards."""
        self._pass += 1
        self._closed = True
        self._copies.finish()
        self._graph = None
        self._fed.clear()

    def _run(self, step: int) -> torch.Tensor:
        """The images of batch `step`; batches in sequence come out of the running graph."""
        if self._graph is None or self._next != step:
            self._restart(step)
        while True:
            try:
                outputs = self._graph.run(self._stream())
                break
            except RuntimeError as error:
                # DALI names no record, and calls the graph unusable from here on.
                undecodable = self._find_undecodable()
                if not undecodable:
                    raise
                log.debug("DALI: %s", error)
                self._undecodable.update(undecodable)
                self._restart(step)
        # The tensor shares DALI's buffer, which the dynamic executor does not reuse while the
        # tensor exists. On a GPU kernels read it even after the host has dropped the tensor.
        images = torch.from_dlpack(outputs[0].as_tensor())
        return images if self.device.type != "cuda" else self._copies.copy(images)

    def _stream(self) -> Any:
        if self.device.type != "cuda":
            return None
        return torch.cuda.current_stream(self.device).cuda_stream

    def _restart(self, step: int) -> None:
        """A fresh graph that begins at batch `step`; what was made ahead is thrown away."""
        self._copies.finish()
        self._graph = None
        self._fed.clear()
        self._feeding = self._next = step
        self._graph = build_graph(
            self._dali,
            self._feed,
            batch_size=self.sampler.batch_size,
            size=self.sampler.cfg.INPUT_SIZE,
            bank=self._bank,
            device=self.device,
            threads=self.threads,
            prefetch=self.prefetch,
            decode_window=self.decode_window,
        )

    def _feed(self, _: int) -> tuple[Any, ...]:
        """The next batch as the graph's inputs; called ahead of its use."""
        if self.sampler.stop is not None and self._feeding >= self.sampler.stop:
            raise StopIteration
        index = self.sampler.index
        plan = self.sampler.plan(self._feeding)
        images = {record: index.jpeg(record) for record in set(plan.records.tolist())}
        faults = dict(self._undecodable)
        for record, data in images.items():
            fault = image_fault(data, int(index.width[record]), int(index.height[record]))
            if fault is not None:
                faults[record] = fault
        faults = {record: faults[record] for record in images if record in faults}
        encoded = [images[record] for record in plan.records.tolist()]
        shown = plan
        if faults:
            bad = np.isin(plan.records, list(faults))
            rows = replacement_rows(bad, self.sampler.training)
            plan = shown = plan.take(rows)
            encoded = [images[record] for record in plan.records.tolist()]
            if not len(rows):
                shown, encoded = self._blank(), [_blank_png()]
        self._fed.append(_Fed(self._feeding, plan, faults))
        self._feeding += 1
        return graph_inputs(encoded, shown, self.decode_window)

    def _blank(self) -> BatchSpec:
        """One row that looks at the one pixel of `_blank_png`."""
        plan = self.sampler.plan(self._feeding).take(np.zeros(1, np.int64))
        plan.window[:] = [0, 0, 1, 1]
        return plan

    def _find_undecodable(self) -> dict[int, str]:
        """The records of the batches in flight that the decoder refuses one by one."""
        index = self.sampler.index
        undecodable: dict[int, str] = {}
        for record in dict.fromkeys(r for fed in self._fed for r in fed.plan.records.tolist()):
            probe = build_probe(self._dali, index.jpeg(record), self.device)
            try:
                probe.run()
            except RuntimeError:
                undecodable[record] = "cannot be decoded"
        return undecodable


def import_dali() -> Any:
    """The package nvidia.dali. Raises EnvironmentFault naming the package to install."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.math
        import nvidia.dali.types
    except (ImportError, OSError) as error:
        raise EnvironmentFault(
            f"NVIDIA DALI cannot be imported ({error}); on Linux: {install_hint('dali')}, "
            "or set LOADER: portable"
        ) from None
    return nvidia.dali


def window_decoding_works(data: bytes, device: torch.device) -> bool:
    """Whether this machine decodes part of a JPEG on `device`, tried in a process of its own.

    Some releases of DALI's image library crash there on some GPUs (NVIDIA/nvImageCodec issue 55),
    and a crash must not take a training run along. Takes some seconds, once for a device in a
    process. data: any encoded image of the data set.
    """
    if device not in _windows_work:
        _windows_work[device] = _try_apart(data, device)
    return _windows_work[device]


_windows_work: dict[torch.device, bool] = {}


def _try_apart(data: bytes, device: torch.device) -> bool:
    code = f"from fasthg.data.dali_loader import try_window; try_window({str(device)!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], input=data, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def try_window(device: str) -> None:
    """Decode a window of the image on standard input; ends in whatever way DALI ends it."""
    data = sys.stdin.buffer.read()
    build_probe(import_dali(), data, torch.device(device), window=True).run()
