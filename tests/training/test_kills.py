"""Trainings killed (SIGKILL) anywhere and resumed end with the bits of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from killing import POINTS, train_until
from rich.console import Console
from tiny_run import result, run, tiny

from fasthg.config import Config
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.runs.run_folder import RunFolder
from fasthg.training.trainer import train

KILLS = int(os.environ.get("FASTHG_KILLS", "2"))
"""Random kills of one training; each costs a second."""


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2}, size=(192, 160))
    return folder


def _config(mice: Path, runs: Path, **keys: Any) -> Config:
    data = {s.upper(): str(mice / f"{s}_dataset-*") for s in ("train", "val")}
    usual = {"SAVE_INTERVAL_SECS": 0, "MAX_TO_KEEP": 2, "VALIDATE_EVERY_N_STEPS": 4, "DATA": data}
    return tiny(mice, runs, **{**usual, **keys})


def _finished(config: Config, resume: Path | None, point: str | None = None) -> int:
    return Forked(train_until, config, resume, point).ended(600)[0]


# What a state holds does not depend on the point, so one point does for other precisions.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "optimizer", "points"),
    [("fp32", "rmsprop", POINTS), ("bf16", "adamw", POINTS[3:4])],
)
def test_killed_at_every_point_of_a_save(
    mice: Path, tmp_path: Path, precision: str, optimizer: str, points: tuple[str, ...]
) -> None:
    keys = {"PRECISION": precision, "OPTIMIZER": optimizer}
    config = _config(mice, tmp_path / "whole", **keys)
    assert _finished(config, None) == 0
    expected = result(RunFolder(tmp_path / "whole" / "tiny"))
    for number, point in enumerate(points):
        config = _config(mice, tmp_path / str(number), **keys)
        folder = RunFolder(tmp_path / str(number) / "tiny")
        assert _finished(config, None, point) == -signal.SIGKILL, point
        assert _finished(config, folder.path) == 0, point
        assert result(folder) == expected, point
        left = [p.name for p in folder.path.rglob(".*.*")]
        assert not left, point


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_at_random(mice: Path, tmp_path: Path, precision: str) -> None:
    steps = 12 * (KILLS + 1)
    keys = {"PRECISION": precision, "NUM_TRAIN_ITERATIONS": steps, "NUM_INPUT_THREADS": 1}
    config = _config(mice, tmp_path / "whole", **keys)
    began = time.monotonic()
    assert _finished(config, None) == 0
    each = (time.monotonic() - began) / steps
    expected = result(RunFolder(tmp_path / "whole" / "tiny"))
    config = _config(mice, tmp_path / "killed", **keys)
    folder = RunFolder(tmp_path / "killed" / "tiny")
    rng = random.Random(0)
    for kill in range(KILLS):
        started = Forked(train_until, config, folder.path if folder.last.exists() else None, None)
        # At least eleven steps are left, however late this process is told.
        step = 12 * kill + rng.randint(1, 12)
        started.wait_for(lambda step=step: _newest_step(folder) >= step)  # type: ignore[misc]
        time.sleep(rng.uniform(0, each))
        started.process.kill()
        assert started.ended()[0] == -signal.SIGKILL
    assert _finished(config, folder.path) == 0
    assert result(folder) == expected


def _newest_step(folder: RunFolder) -> int:
    names = (path.stem for path in folder.checkpoints.glob("step_*.pt"))
    return max((int(name.removeprefix("step_")) for name in names), default=0)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(_config(mice, tmp_path / "whole"))
    # It ends where the whole one validates, too: what is the best then is so in both.
    half = run(_config(mice, tmp_path / "half", NUM_TRAIN_ITERATIONS=4))
    data = bytearray(half.run.last.read_bytes())
    data[len(data) // 2] ^= 1
    half.run.last.write_bytes(data)  # and step_00000004.pt, which is the same file
    again = train(_config(mice, tmp_path / "half"), Console(width=300), resume=half.run.path)
    said = capsys.readouterr().out
    assert "step_00000004.pt: damaged, its checksum is wrong" in said
    assert "; resuming from step_00000003.pt" in said
    assert (half.run.checkpoints / "step_00000004.pt.damaged").exists()
    assert result(again.run) == result(whole.run)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["portable", "dali"])
def test_both_loaders_resume_exactly(mice: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    keys = {"LOADER": loader, "NUM_INPUT_THREADS": 1}
    whole = run(_config(mice, tmp_path / "whole", **keys))
    run(_config(mice, tmp_path / "half", **keys, NUM_TRAIN_ITERATIONS=4))
    folder = tmp_path / "half" / "tiny"
    again = run(_config(mice, tmp_path / "half", **keys), resume=folder)
    assert result(again.run) == result(whole.run)
    shutil.rmtree(tmp_path)
