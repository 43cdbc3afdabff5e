"""A resumed run keeps the number format that PRECISION: auto chose at its start."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_run import result, run, tiny

from fasthg.data.synthetic.dataset import write_dataset
from fasthg.runtime import device
from fasthg.training.trainer import train


@pytest.mark.slow
def test_a_second_timing_changes_nothing_in_a_resumed_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mice = tmp_path / "mice"
    write_dataset(mice, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(device, "_convolution_seconds", lambda width: (2.0, 1.0))
    keys = {"PRECISION": "auto", "DEVICE": "cpu", "VALIDATE_EVERY_N_STEPS": 2}
    whole = run(tiny(mice, tmp_path / "whole", **keys))
    first = run(tiny(mice, tmp_path / "cut", **keys, NUM_TRAIN_ITERATIONS=4))
    monkeypatch.setattr(device, "_convolution_seconds", lambda width: (1.0, 2.0))
    output = io.StringIO()
    config = tiny(mice, tmp_path / "cut", **keys)
    cut = train(config, Console(file=output, width=200), resume=first.run.path)
    assert "numbers  bfloat16 (as in the checkpoint)" in output.getvalue()
    assert "precision:" not in output.getvalue()
    assert result(cut.run) == result(whole.run)
