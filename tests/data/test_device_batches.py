"""Batches on a GPU: the order of copies on fake streams, and contents on a real GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_batch
import torch

from fasthg.config import Config
from fasthg.data.batch import READ_BY_STEP
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.prefetch import AHEAD, Prefetcher
from fasthg.data.sampler import BatchSampler

CUDA = torch.device("cuda", 0)


class FakeGpu:
    """Streams, events and tensors that write each call with the current stream into `calls`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.current = "compute"
        self.events = 0
        patch.setattr(torch.cuda, "Stream", lambda device: self.stream("copies"))
        patch.setattr(torch.cuda, "Event", self.event)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.stream(self.current))
        patch.setattr(torch.cuda, "stream", self.entered)
        patch.setattr(torch, "empty_like", lambda tensor, pin_memory: tensor)

    def log(self, *call: str) -> None:
        self.calls.append(call)

    def event(self) -> Any:
        self.events += 1
        name = f"event{self.events}"
        return SimpleNamespace(
            name=name,
            synchronize=lambda: self.log("synchronize", name),
            record=lambda: self.log("record", name, self.current),
        )

    def stream(self, name: str) -> Any:
        def record_event() -> Any:
            event = self.event()
            self.log("record", event.name, name)
            return event

        return SimpleNamespace(
            name=name,
            record_event=record_event,
            wait_event=lambda event: self.log("wait", event.name, name),
        )

    @contextlib.contextmanager
    def entered(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def tensor(self, name: str, *, on_gpu: bool = False) -> Any:
        def copy(device: torch.device, non_blocking: bool) -> Any:
            assert non_blocking
            self.log("copy", name, self.current)
            return self.tensor(name, on_gpu=True)

        fake = SimpleNamespace(is_cuda=on_gpu, shape=(1,), to=copy)
        fake.copy_ = lambda source: source
        fake.record_stream = lambda stream: self.log("record_stream", name, stream.name)
        return fake


class FakeBatch(SimpleNamespace):
    def replace(self, **tensors: Any) -> FakeBatch:
        return FakeBatch(**{**vars(self), **tensors})


def test_copies_wait_for_no_step_and_steps_for_their_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu(monkeypatch)
    batches = [FakeBatch(**{name: gpu.tensor(name) for name in READ_BY_STEP}) for _ in range(4)]
    prefetcher = Prefetcher(iter(batches), CUDA)  # type: ignore[arg-type]
    slots = [f"event{number + 1}" for number in range(AHEAD)]
    for number in range(4):
        gpu.calls.clear()
        batch = next(prefetcher)
        assert all(getattr(batch, name).is_cuda for name in READ_BY_STEP)
        slot = slots[number % AHEAD]
        bound = [("synchronize", f"event{AHEAD + number - 1}")] if number >= AHEAD else []
        assert gpu.calls == [
            # Follows the step before; the host waits for a step that is AHEAD steps old.
            ("record", f"event{AHEAD + 1 + number}", "compute"),
            *bound,
            # The page-locked memory is written again only after its last copy.
            ("synchronize", slot),
            *[("copy", name, "copies") for name in READ_BY_STEP],
            ("record", slot, "copies"),
            ("wait", slot, "compute"),
            # Memory of the copies' stream, read on the compute stream.
            *[("record_stream", name, "compute") for name in READ_BY_STEP],
        ]


def test_a_tensor_on_the_device_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    batch = FakeBatch(**{name: gpu.tensor(name, on_gpu=name == "images") for name in READ_BY_STEP})
    images = batch.images
    assert next(Prefetcher(iter([batch]), CUDA)).images is images  # type: ignore[list-item]
    assert ("copy", "images", "copies") not in gpu.calls
    assert ("copy", "keypoints", "copies") in gpu.calls


def test_dali_buffers_are_held_until_they_are_copied(
    mice: RecordIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU pipeline of which only memory, stream and events are fakes."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from fasthg.data.dali_loader import DaliLoader

    done: list[bool] = []
    waited: list[int] = []

    def record_event() -> Any:
        number = len(done)
        done.append(False)
        return SimpleNamespace(
            query=lambda: done[number], synchronize=lambda: waited.append(number)
        )

    stream = SimpleNamespace(cuda_stream=7, record_event=record_event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch, "from_dlpack", lambda tensor: tensor)
    monkeypatch.setattr(torch, "from_dlpack", lambda tensor: tensor)
    buffers: list[Any] = []

    def run(cuda_stream: int) -> Any:
        assert cuda_stream == 7
        buffer = torch.full((2, 4), len(buffers), dtype=torch.uint8)
        buffers.append(weakref.ref(buffer))
        return [SimpleNamespace(as_tensor=lambda: buffer)]

    sampler = BatchSampler(mice, Config(), training=True, seed=0)
    loader = DaliLoader(sampler, CUDA, 1)
    loader._graph = SimpleNamespace(run=run)
    first, second = loader._run(0), loader._run(0)
    assert buffers[0]() is not None and buffers[1]() is not None
    buffers[0]().fill_(9)
    assert (first == 0).all() and (second == 1).all()
    done[0] = True
    loader._run(0)
    assert buffers[0]() is None
    assert buffers[1]() is not None and waited == []
    loader.close()
    assert waited == [1, 2]
    assert buffers[1]() is None and buffers[2]() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGpu:
    """Steps that run long after the host has dropped their batch."""

    def test_copied_batches_keep_their_contents(self) -> None:
        batches = [random_batch.batch(number, size=16) for number in range(24)]
        results = []
        for batch in Prefetcher(iter(batches), torch.device("cuda")):
            torch.cuda._sleep(20_000_000)
            results.append((batch.images.clone(), batch.keypoints.clone()))
            del batch
            torch.empty(16, 64, 64, 3, dtype=torch.uint8, device="cuda").fill_(255)
        for (images, keypoints), batch in zip(results, batches, strict=True):
            assert torch.equal(images.cpu(), batch.images)
            assert torch.equal(keypoints.cpu(), batch.keypoints)

    def test_batches_of_dali_keep_their_contents(self, mice: RecordIndex) -> None:
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        from fasthg.data.dali_loader import DaliLoader

        sampler = BatchSampler(mice, Config(BATCH_SIZE=8), training=True, seed=4)
        passes = []
        for cycles in (0, 50_000_000):
            loader = DaliLoader(sampler, torch.device("cuda", 0), 2, prefetch=1)
            results = []
            for batch in Prefetcher(loader.batches(0, 20), torch.device("cuda", 0)):
                if cycles:
                    torch.cuda._sleep(cycles)
                results.append(batch.images.clone())
                del batch
                if not cycles:
                    torch.cuda.synchronize()
            passes.append(torch.stack(results).cpu().numpy())
            loader.close()
        assert np.array_equal(*passes)
