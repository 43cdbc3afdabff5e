"""EARLY_STOP_PATIENCE: when a training ends, what it says, and how it goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import result, rows, run, tiny

from fasthg.data.synthetic.dataset import write_dataset
from fasthg.report.provenance import Provenance
from fasthg.runs.checkpoint import load_state, load_weights
from fasthg.runs.listing import summarise
from fasthg.runtime.distributed import ProcessGroup
from fasthg.training import trainer
from fasthg.training.locator import locator_config
from fasthg.training.trainer import Training, Validation, train

WHY = "2 validations in a row brought no smaller error"


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 4, "val": 1}, size=(160, 128))
    return folder


@pytest.fixture(autouse=True)
def curve(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Validation error by step, in place of a measured one: least at step 2, or at 8."""
    errors = {1: 9.0, 2: 4.0, 3: 5.0, 4: 4.0, 5: 4.5, 6: 4.1, 7: 4.1, 8: 3.0, 9: 3.5, 10: 3.4}

    def measured(self: Training, split: Any) -> Validation:
        value = errors[self.done]
        return Validation(value, {"val_error_mean_px": value}, f"error {value}")

    monkeypatch.setattr(Training, "_measure", measured)
    return errors


def patient(mice: Path, runs: Path, patience: int | None, **keys: Any) -> Any:
    keys = {"NUM_TRAIN_ITERATIONS": 10, "VALIDATE_EVERY_N_STEPS": 1, **keys}
    keys["LOG_EVERY_N_STEPS"] = 1
    data = {s.upper(): str(mice / f"{s}_dataset-*") for s in ("train", "val")}
    return tiny(mice, runs, DATA=data, EARLY_STOP_PATIENCE=patience, BATCH_SIZE=2, **keys)


def test_a_training_ends_when_its_patience_does(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = patient(mice, tmp_path, 2)
    ended = train(config, Console(width=300))
    # An equal error is no improvement: step 4 does not start the count anew.
    assert (ended.step, ended.signal) == (4, None)
    assert load_state(ended.run.last)["step"] == 4
    assert load_weights(ended.run.best)[1]["step"] == "2"
    assert rows(ended.run)[-1].items() >= {"step": 4, "stopped_early": WHY}.items()
    assert ended.run.stopped_early() == (4, WHY)
    assert f"step 4: stops early: {WHY}" in capsys.readouterr().out
    assert summarise(ended.run.path).state == "stopped early"
    origin = Provenance.of(ended.run, config)
    assert "4 of 10 steps (stopped early)" in dict(origin.facts(config))["Network"]


def test_patience_beyond_the_end_changes_no_bit(mice: Path, tmp_path: Path) -> None:
    off = run(patient(mice, tmp_path / "off", None))
    # After the best of step 2 five validations are worse; step 8 is better.
    on = run(patient(mice, tmp_path / "on", 6))
    assert on.step == 10 and on.run.stopped_early() is None
    assert result(on.run) == result(off.run)


def test_the_count_survives_a_resume_bit_for_bit(mice: Path, tmp_path: Path) -> None:
    whole = run(patient(mice, tmp_path / "whole", 2))
    # It is interrupted between the two validations that count.
    cut = run(patient(mice, tmp_path / "cut", None, NUM_TRAIN_ITERATIONS=3))
    assert load_state(cut.run.last)["validations_without_improvement"] == 1
    again = run(patient(mice, tmp_path / "cut", 2), resume=cut.run.path)
    assert again.step == 4
    assert result(again.run) == result(whole.run)


def test_a_stopped_run_goes_on_only_with_more_patience(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(patient(mice, tmp_path, 2))
    before = result(first.run)
    same = train(patient(mice, tmp_path, 2), Console(width=300), resume=first.run.path)
    assert (same.step, same.signal, result(first.run)) == (4, None, before)
    said = capsys.readouterr().out
    assert f"stopped early at step 4, as {WHY}; raise EARLY_STOP_PATIENCE or set it to" in said
    on = run(patient(mice, tmp_path, None), resume=first.run.path)
    assert on.step == 10 and on.run.stopped_early() is None
    assert summarise(on.run.path).state == "finished"


def test_the_last_step_is_no_early_stop(mice: Path, tmp_path: Path) -> None:
    ended = run(patient(mice, tmp_path, 2, NUM_TRAIN_ITERATIONS=4))
    assert ended.step == 4 and ended.run.stopped_early() is None


def test_other_validation_data_start_the_count_anew(mice: Path, tmp_path: Path) -> None:
    first = run(patient(mice, tmp_path, None, NUM_TRAIN_ITERATIONS=3))
    other = patient(mice, tmp_path, 2)
    data = other.DATA.model_copy(update={"VAL": other.DATA.TRAIN})
    # Steps 4 (the first, so the best), 5 and 6.
    ended = run(other.model_copy(update={"DATA": data}), resume=first.run.path)
    assert ended.step == 6


class Other(ProcessGroup):
    """As if another process were out of patience from a step on."""

    def __init__(self, calls: Iterator[int], at: int) -> None:
        self.calls, self.at = calls, at

    def largest(self, *values: float) -> list[float]:
        if len(values) < 4:  # rates, not requests
            return list(values)
        return [*values[:3], max(values[3], next(self.calls) >= self.at)]


def test_all_ranks_stop_where_one_does(mice: Path, tmp_path: Path) -> None:
    config = patient(mice, tmp_path, 6)
    device = trainer.choose_device("cpu")
    folder = trainer.RunFolder.create(config, None, "x")
    with trainer.open_data(config, device) as (train_split, validation):
        group = Other(itertools.count(), 3)
        training = Training(
            *(config, device, train_split, validation, folder, Console(quiet=True), group)
        )
        assert training.fit().step == 3


def test_the_locator_has_no_patience(mice: Path, tmp_path: Path) -> None:
    from fasthg.data.index.record_index import RecordIndex

    config = patient(mice, tmp_path, 2)
    index = RecordIndex.open(str(mice / "train_dataset-*"), 7)
    assert locator_config(config, index, ()).EARLY_STOP_PATIENCE is None
