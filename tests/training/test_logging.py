"""What a training reports: rates, the status line, TensorBoard events."""

from __future__ import annotations

import io
import re
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fasthg.config import Config
from fasthg.errors import FasthgError
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import ProcessGroup
from fasthg.training.logging import EventWriter, Meter, MetricLogger, ProgressLine
from fasthg.training.step import StepResult


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_what_is_written_and_a_resumed_run_replaces_it(tmp_path: Path) -> None:
    first = EventWriter(tmp_path, purge_step=1)
    for step in (1, 2, 3):
        first.row({"step": step, "loss": step * 0.5, "loss_per_stack": [step, -step]})
    first.image("validation", np.full((4, 6, 3), 200, np.uint8), 3)
    # Before the end too: the training may be killed.
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert curve(tmp_path, "loss_per_stack/stack1") == [(1, -1.0), (2, -2.0), (3, -3.0)]
    image = EventAccumulator(str(tmp_path)).Reload().Images("validation")[0]
    assert (image.step, image.width, image.height) == (3, 6, 4)
    first.close()
    again = EventWriter(tmp_path, purge_step=3)
    again.row({"step": 3, "loss": 9.0})
    again.close()
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(list(tmp_path.iterdir())) == 2


def test_other_ranks_write_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    events = EventWriter(None, purge_step=1)
    events.row({"step": 1, "loss": 1.0})
    events.image("a", np.zeros((2, 2, 3), np.uint8), 1)
    events.close()
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasthg.training.logging.NO_EVENTS", "no TensorBoard")
    events = EventWriter(tmp_path, purge_step=1)
    events.row({"step": 1, "loss": 1.0})
    events.image("a", np.zeros((2, 2, 3), np.uint8), 1)
    events.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_raises_where_it_is_met_and_nothing_else_changes(tmp_path: Path) -> None:
    """The limit of a file's size replaces a full disk."""
    hook, threads = threading.excepthook, threading.active_count()
    events = EventWriter(tmp_path, purge_step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FasthgError, match=r"cannot write TensorBoard events \(File too large"):
            events.image("noise", noise, 1)
        events.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert threading.excepthook is hook
    assert threading.active_count() == threads


def test_rates_leave_pauses_out() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    for _ in range(4):
        now[0] += 1.0
        meter.add(images=8, waited=0.25)
    now[0] += 10.0
    meter.pause(10.0)
    assert meter.rates() == pytest.approx((8.0, 1.0, 0.25))


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with ProgressLine(Console(file=out, width=40), total=100) as progress:
        progress.update(10, 1.5, 1e-3, 80.0, 0.1, 0.02)
    line = out.getvalue()
    assert line.count("\n") == 1
    assert "step 10/100" in line
    assert "ETA 9 s" in line
    assert "waiting for data 2%" in line


def test_one_line_that_rewrites_itself_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with ProgressLine(console, total=3) as progress:
        for step in (1, 2, 3):
            progress.update(step, 1.0, 1e-3, 1.0, 1.0, 0.0)
        progress.note("a line that stays")
    assert "\x1b[2K" in out.getvalue()
    assert "a line that stays" in out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    with ProgressLine(console, total=700000, clock=lambda: now[0]) as progress:
        now[0] = 3725.0
        progress.update(352345, 0.012345, 1.5e-4, 1234.5, 39.0, 0.5)
    text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", out.getvalue())
    assert "…" not in text
    assert max(map(len, re.split(r"[\r\n]", text))) <= width
    for part in ("352345/700000", "ETA 157 days", "loss 0.01235", "lr 1.50e-04"):
        assert part in text
    assert ("━" in text) == ("1 h 02 min elapsed" in text) == (width >= 60)
    assert ("waiting for data 50%" in text) == (width >= 100)


class TwoRanks(ProcessGroup):
    """This process as one of two, the other with losses twice as large and longer waits."""

    size, active = 2, True

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def largest(self, *values: float) -> list[float]:
        return [value + 0.125 for value in values]

    def added(self, values: Any) -> Any:
        return 3 * values


@pytest.mark.parametrize("scaling", ["sum", "mean"])
def test_rates_and_losses_are_those_of_all_ranks(scaling: str, tmp_path: Path) -> None:
    config = Config(LOSS_SCALING=scaling, NUM_TRAIN_ITERATIONS=100)
    said = io.StringIO()
    for rank in (0, 1):
        run = RunFolder(tmp_path / str(rank))
        run.path.mkdir()
        logger = MetricLogger(
            config,
            run,
            EventWriter(None, 1),
            ProgressLine(Console(file=said), total=100),
            lambda *_: None,
            TwoRanks(rank),
        )
        now = [0.0]
        logger.meter = Meter(clock=lambda now=now: now[0])
        for step in (1, 2):
            now[0] += 2.0
            logger.meter.add(images=8, waited=0.5)
            result = StepResult(torch.full((3, 8), float(step)), 1e-3)
            logger.record(step, result, torch.arange(8), logged=step == 2)
    # Of 8 images in 2 s on each of two ranks.
    first, second = (RunFolder(tmp_path / str(rank)).logged() for rank in (0, 1))
    for row in first:
        del row["time"], row["elapsed_s"]
    losses = [3 * 16.0 / (2 if scaling == "mean" else 1)] * 3
    assert first == [
        {
            "step": 2,
            "loss": sum(losses),
            "loss_per_stack": losses,
            "learning_rate": 1e-3,
            "images_per_s": 8.0,
            "wait_share": 0.375,
        }
    ]
    assert second == []
    assert "8.0 img/s" in said.getvalue()
    assert said.getvalue().count("\n") == 1


def test_every_loss_is_checked_and_a_pause_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[int, float]] = []
    now = [0.0]
    monkeypatch.setattr("fasthg.training.logging.time.monotonic", lambda: now[0])
    run = RunFolder(tmp_path)
    logger = MetricLogger(
        Config(),
        run,
        EventWriter(None, 1),
        ProgressLine(Console(quiet=True), total=9),
        lambda step, losses, instances: checked.append((step, float(losses.sum()))),
    )
    logger.meter = Meter(clock=lambda: now[0])
    logger.record(1, StepResult(torch.ones(1, 2), 0.1), torch.arange(2), logged=False)
    assert checked == [(1, 2.0)]
    assert not run.logged()
    with logger.pause():
        now[0] += 100.0
    now[0] += 2.0
    logger.meter.add(images=8, waited=0.0)
    assert logger.meter.rates() == (4.0, 2.0, 0.0)
