"""What a training reports: rates, the status line, TensorBoard events."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fasthg.errors import FasthgError
from fasthg.train.tensorboard import Summary


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_what_is_written_and_a_resumed_run_replaces_it(tmp_path: Path) -> None:
    first = Summary(tmp_path, purge_step=1)
    for step in (1, 2, 3):
        first.row({"step": step, "loss": step * 0.5, "loss_per_stack": [step, -step]})
    first.image("validation", np.full((4, 6, 3), 200, np.uint8), 3)
    # Before the end too: the training may be killed.
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert curve(tmp_path, "loss_per_stack/stack1") == [(1, -1.0), (2, -2.0), (3, -3.0)]
    image = EventAccumulator(str(tmp_path)).Reload().Images("validation")[0]
    assert (image.step, image.width, image.height) == (3, 6, 4)
    first.close()
    again = Summary(tmp_path, purge_step=3)
    again.row({"step": 3, "loss": 9.0})
    again.close()
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(list(tmp_path.iterdir())) == 2


def test_other_ranks_write_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = Summary(None, purge_step=1)
    summary.row({"step": 1, "loss": 1.0})
    summary.image("a", np.zeros((2, 2, 3), np.uint8), 1)
    summary.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_raises_where_it_is_met_and_nothing_else_changes(tmp_path: Path) -> None:
    """The limit of a file's size stands in for the disk."""
    hook, threads = threading.excepthook, threading.active_count()
    summary = Summary(tmp_path, purge_step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FasthgError, match=r"cannot write TensorBoard events \(File too large"):
            summary.image("noise", noise, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        summary.close()
    assert threading.excepthook is hook
    assert threading.active_count() == threads
