"""Memory of batches on a GPU, with streams that only write down what is asked of them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from random_batch import batch

from fasthg.data import prefetch
from fasthg.data.batch import READ_BY_STEP
from fasthg.data.prefetch import Prefetcher


class Recorder:
    """Stands for a stream, an event or a copy on the device."""

    def __init__(self, log: list[tuple[object, ...]], name: str) -> None:
        self.log, self.name = log, name

    def record(self) -> None:
        self.log.append(("record", self.name))

    def record_event(self) -> Recorder:
        return self

    def synchronize(self) -> None:
        self.log.append(("synchronize", self.name))

    def wait_event(self, event: Recorder) -> None:
        self.log.append(("wait", self.name, event.name))

    def record_stream(self, stream: Recorder) -> None:
        self.log.append(("record_stream", self.name, stream.name))


def test_copies_are_recorded_for_the_stream_that_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else their memory could be given to the next copy while the step still reads it."""
    log: list[tuple[object, ...]] = []
    compute = Recorder(log, "compute")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Recorder(log, "copies"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: Recorder(log, "copied"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(prefetch._Slot, "to", lambda _, name, *__: Recorder(log, name))
    result = next(Prefetcher(iter([batch(0)]), torch.device("cuda")))
    assert all(getattr(result, name).name == name for name in READ_BY_STEP)
    copied = log.index(("record", "copied"))
    assert log[copied + 1 :] == [
        ("wait", "compute", "copied"),
        *(("record_stream", name, "compute") for name in READ_BY_STEP),
    ]
