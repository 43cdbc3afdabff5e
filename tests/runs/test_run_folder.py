"""The log of a run: times of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasthg.runs.run_folder import RunFolder


def test_rows_tell_when_and_after_how_much_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("fasthg.runs.run_folder.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fasthg.runs.run_folder.time.time", lambda: 1e9 + now[0])
    run = RunFolder(tmp_path)
    now[0] += 50.0  # data are opened
    run.start_clock()
    for step in (1, 2, 3):
        now[0] += 2.0
        run.log({"step": step})
    assert [row["elapsed_s"] for row in run.logged()] == [2.0, 4.0, 6.0]
    assert [row["time"] for row in run.logged()] == [1e9 + 152, 1e9 + 154, 1e9 + 156]
    # Killed; a day later another process goes on after step 2, on a machine that has just started.
    now[0] = 7.0
    again = RunFolder(tmp_path)
    again.truncate_log(2)
    again.start_clock()
    now[0] += 3.0
    again.log({"step": 3})
    assert [row["elapsed_s"] for row in again.logged()] == [2.0, 4.0, 7.0]


def test_rows_without_times_of_an_older_version(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    run = RunFolder(tmp_path)
    run.start_clock()
    run.log({"step": 2})
    assert 0 <= run.logged()[1]["elapsed_s"] < 10


def test_environment_that_is_missing_or_damaged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.environment() is None
    run.write_json("env.json", {"date": "d"})
    assert run.environment() == {"date": "d"}
    (tmp_path / "env.json").write_text("{")
    assert run.environment() is None
