"""The command line sets what holds for the whole process; library objects leave it alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fasthg.config import Config
from fasthg.data.split import open_split
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.model import build_model
from fasthg.runtime import process
from fasthg.runtime.process import configure_process
from fasthg.training.logging import EventWriter
from fasthg.training.step import TrainStep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Grows with every call of `keep_freed_memory`; settings of torch are put back."""
    calls: list[bool] = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield calls
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def settings() -> dict[str, Any]:
    return {
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cuBLAS": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "threading.excepthook": threading.excepthook,
        **{
            name: signal.getsignal(getattr(signal, name))
            for name in ("SIGINT", "SIGTERM", "SIGUSR1")
        },
    }


def test_library_objects_change_nothing_for_the_process(kept: list[bool], tmp_path: Path) -> None:
    write_dataset(tmp_path / "mice", seed=3, frames={"train": 4}, size=(192, 160))
    config = Config(
        NUM_STACKS=1,
        FEATURES=8,
        STEM_FEATURES=4,
        INPUT_SIZE=64,
        HEATMAP_SIZE=16,
        BATCH_SIZE=2,
        NUM_INPUT_THREADS=1,
        DETERMINISTIC=True,
        DATA={"TRAIN": str(tmp_path / "mice/train_dataset-*")},
    )

    before = settings()
    step = TrainStep(config, build_model(config), CPU)
    assert config.DATA.TRAIN is not None
    split = open_split(config, config.DATA.TRAIN, CPU, training=True)
    (tmp_path / "events").mkdir()
    events = EventWriter(tmp_path / "events", purge_step=1)
    batch = next(split.loader.batches(0, 2))
    assert settings() == before
    step(batch, 0)
    events.close()
    split.close()
    assert settings() == before and not kept


def test_a_process_on_a_cpu_keeps_freed_memory(kept: list[bool]) -> None:
    before = settings()
    configure_process(CPU, deterministic=True)
    assert kept and settings() == before


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_process_on_a_gpu_measures_convolutions_or_is_deterministic(
    kept: list[bool], deterministic: bool
) -> None:
    configure_process(CUDA, deterministic=deterministic)
    now = settings()
    assert now["cudnn.benchmark"] is not deterministic
    assert now["deterministic"] is deterministic
    assert now["cuBLAS"] == (":4096:8" if deterministic else None)
    assert now["filled"] is not deterministic
    assert not kept


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "bench"])
def test_the_command_line_configures_the_process(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from fasthg.cli import app
    from fasthg.runs.checkpoint import save_weights
    from fasthg.runs.weights import weights_metadata

    class Configured(Exception):
        pass

    def configured(device: torch.device, *, deterministic: bool) -> None:
        raise Configured(device, deterministic)

    monkeypatch.setattr(process, "configure_process", configured)
    config = Config(DETERMINISTIC=True, DEVICE="cpu", DATA={"VAL": "nothing"})
    weights, yaml = tmp_path / "w.safetensors", tmp_path / "c.yaml"
    yaml.write_text("DETERMINISTIC: true\nDEVICE: cpu\n")
    save_weights(weights, {"w": torch.zeros(1)}, weights_metadata(config, step=0, error_px=1.0))
    arguments = {
        "train": [str(yaml)],
        "bench": [str(yaml)],
        "eval": [str(weights)],
        "predict": [str(weights), str(yaml)],
    }[verb]
    result = CliRunner().invoke(app, [verb, *arguments])
    assert isinstance(result.exception, Configured), (result.exception, result.output)
    assert result.exception.args == (CPU, True)
