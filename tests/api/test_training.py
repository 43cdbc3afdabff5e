"""`fasthg.train`: hooks, threads, stopping and going on."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest

import fasthg
from fasthg.config import Config
from fasthg.errors import ConfigError


def logged(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_hooks_get_the_rows_of_the_log_in_a_thread(config: Config) -> None:
    rows: list[dict] = []
    found: list[fasthg.Training] = []

    def work() -> None:
        hook = {"on_log": rows.append, "on_validate": rows.append}
        found.append(fasthg.train(config, verbose=False, **hook))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    run = found[0]
    best = [row.pop("best") for row in rows if "val_loss" in row]
    assert best[0] is True and len(best) == 2
    assert sorted(rows, key=str) == sorted(logged(run.path), key=str)
    assert run.step == 6 and run.signal is None and run.path / "report.html" in run.files
    assert run.metrics == json.loads((run.path / "eval/test/metrics.json").read_text())


@pytest.mark.slow
def test_hook_stops_a_training_that_then_goes_on(config: Config, tmp_path: Path) -> None:
    def stop(row: dict) -> None:
        if row["step"] == 2:
            raise fasthg.StopTraining

    stopped = fasthg.train(config, on_log=stop, verbose=False)
    assert (stopped.step, stopped.signal, stopped.metrics) == (2, signal.SIGINT, None)
    resumed = fasthg.train(resume=stopped.path, evaluate=False, verbose=False)
    whole = fasthg.train(config, RUN_NAME="whole", evaluate=False, verbose=False)
    last = [(run.path / "checkpoints/best.safetensors").read_bytes() for run in (resumed, whole)]
    assert resumed.step == 6 and len(last[0]) == len(last[1])
    losses = [[r["loss"] for r in logged(run.path) if "loss" in r] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_hook_that_is_no_function_is_refused_before_the_training(config: Config) -> None:
    with pytest.raises(ConfigError, match="on_log: a int cannot be called"):
        fasthg.train(config, on_log=5, verbose=False)  # type: ignore[arg-type]
    assert not Path(config.RUNS_DIR).exists()


def test_error_of_a_hook_ends_the_training_and_keeps_what_was_saved(config: Config) -> None:
    def fail(row: dict) -> None:
        raise RuntimeError("tracker is down")

    with pytest.raises(RuntimeError, match="tracker is down"):
        fasthg.train(config, on_validate=fail, evaluate=False, verbose=False)
    assert (Path(config.RUNS_DIR) / "tiny/checkpoints/best.safetensors").exists()
