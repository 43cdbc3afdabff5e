"""`fasthg train CONFIG --dry-run`: what it prints and refuses, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fasthg.cli import main
from fasthg.config import Config
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import DataError, FasthgError
from fasthg.train import dry_run
from fasthg.train.dry_run import Facts, describe
from fasthg.train.step import TrainStep

SMALL = {
    "NUM_STACKS": 1,
    "FEATURES": 8,
    "STEM_FEATURES": 4,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "BATCH_SIZE": 4,
    "NUM_INPUT_THREADS": 0,
    "PRECISION": "fp32",
    "DEVICE": "cpu",
    "HEAD_INIT_SCALE": 0.01,
    "NUM_TRAIN_ITERATIONS": 1000,
    "VALIDATE_EVERY_N_STEPS": 300,
}


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 6, "val": 4}, size=(192, 160))
    return folder


def small(mice: Path, runs: Path, **keys: Any) -> Config:
    data = {split.upper(): str(mice / f"{split}_dataset-*") for split in ("train", "val")}
    return Config(**{**SMALL, "DATA": data, "RUNS_DIR": str(runs), **keys})


def call(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fasthg", "train", *arguments, "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), *capsys.readouterr()


@pytest.fixture
def command(mice: Path, tmp_path: Path, repository: Path) -> list[str]:
    """Of a dry run in a RUNS_DIR that is not there."""
    keys = [f"{key}={value}" for key, value in SMALL.items()]
    data = [f"DATA.{s.upper()}={mice}/{s}_dataset-*" for s in ("train", "val")]
    runs = f"RUNS_DIR={tmp_path}/some/runs"
    return [str(repository / "configs" / "mars.yaml"), *keys, *data, runs]


def test_the_facts_are_printed_and_nothing_stays(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dry_run, "VALIDATED", 1)
    code, out, err = call([*command, "QUEUE_MIN=4"], capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert "no effect: QUEUE_MIN" in out
    assert "step 2/2" in out
    assert "step 2: validation error mean" in out
    for pattern in (
        r"memory   0\.\d\d GiB estimated: 0\.\d\d for weights and optimiser, 0\.\d\d for maps",
        r"memory   0\.\d\d GiB measured \(by which this process grew\)",
        r"step     [\d.e-]+ s, the first [\d.e-]+ s",
        r"whole    about .*: 1000 x [\d.e-]+ s, validation 4 x [\d.e-]+ s, save 1 x [\d.e-]+ s",
        r"saved    0\.\d MB a checkpoint; 4 stay, and one more every 3 hours",
        r"         a validation was tried on 1 of its 2 batches",
    ):
        assert re.search(f"^{pattern}$", out, re.MULTILINE), pattern
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays(mice: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    facts = dry_run.dry_run(small(mice, tmp_path / "runs", RUN_NAME="mine"), Console(quiet=True))
    assert facts is not None
    assert all(value > 0 for value in facts[:-1])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("DATA.TRAIN=none-*", 1, "none-*: no file matches"),
        ("DATA.TRAIN=null", 2, "DATA.TRAIN: not set"),
        ("RUNS_DIR=/dev/null", 1, "cannot make a run folder"),
    ],
)
def test_it_refuses_what_a_training_refuses(
    override: str,
    code: int,
    words: str,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _, err = call([*command, override], capsys, monkeypatch)
    assert found == code
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_it_does_not_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(["--resume", "runs/a"], capsys, monkeypatch)
    assert (code, err) == (2, "error: --dry-run: give a CONFIG and no --resume\n")


def test_a_failed_step_leaves_nothing(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(mice, tmp_path / "runs", OPTIMIZER="sgd", INITIAL_LEARNING_RATE=1e30)
    with pytest.raises(DataError, match=r"not finite .*; lower INITIAL_LEARNING_RATE .* again$"):
        dry_run.dry_run(config, Console(quiet=True))

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TrainStep, "__call__", full)
    with pytest.raises(FasthgError, match=r"^the memory is full: .*; set RECOMPUTE=stack"):
        dry_run.dry_run(small(mice, tmp_path / "runs"), Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_signal_ends_it(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = TrainStep.__call__

    def interrupted(self: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    code, out, err = call(command, capsys, monkeypatch)
    assert (code, err) == (130, "")
    assert "measured" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        ({"SAVE_INTERVAL_SECS": 600}, "13.9 hours: 100000 x 0.5 s, validation 4 x 10 s, save 84 x"),
        ({"SAVE_INTERVAL_SECS": 0}, "2.9 days: 100000 x 0.5 s, validation 4 x 10 s, save 100000 x"),
        ({"VALIDATE_EVERY_N_STEPS": 30_001}, "13.9 hours: 100000 x 0.5 s, validation 4 x 10 s, "),
        ({"NUM_TRAIN_ITERATIONS": 2}, "13 s: 2 x 0.5 s, validation 1 x 10 s, save 1 x 2 s"),
    ],
)
def test_the_time_of_the_whole_run(keys: dict[str, int], whole: str) -> None:
    config = Config(**{"NUM_TRAIN_ITERATIONS": 100_000, "VALIDATE_EVERY_N_STEPS": 25_000, **keys})
    facts = Facts(3.0, 0.5, 10.0, 2.0, 412_000_000, 1 << 30)
    lines = describe(config, facts, torch.device("cuda"))
    assert lines[0] == "memory   1.00 GiB measured (peak on the GPU)"
    assert lines[1] == "step     0.5 s, the first 3 s"
    assert lines[2].startswith(f"whole    about {whole}")
    assert lines[3].startswith("saved    412.0 MB a checkpoint; 4 stay")
