"""A training in a thread that is not the main one."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tiny_run import result, run, tiny

from fasthg.data.synthetic.dataset import write_dataset
from fasthg.training.trainer import TrainResult, train


@pytest.fixture
def mice(tmp_path: Path) -> Path:
    write_dataset(
        tmp_path / "mice", seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160)
    )
    return tmp_path / "mice"


@pytest.mark.slow
def test_a_second_thread_trains_what_the_main_thread_does(mice: Path, tmp_path: Path) -> None:
    expected = run(tiny(mice, tmp_path / "main", RUN_NAME="run"))
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    output = io.StringIO()
    results: list[TrainResult] = []

    def work() -> None:
        config = tiny(mice, tmp_path / "thread", RUN_NAME="run")
        results.append(train(config, Console(file=output)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert results and results[0].step == expected.step and results[0].signal is None
    assert result(results[0].run) == result(expected.run)
    assert "not the main thread" in output.getvalue()
    assert handlers == [
        signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    ]
