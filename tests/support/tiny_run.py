"""A training so small that tests can have many: what it is of, and what it came to."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from torch import Tensor

from fasthg.config import Config
from fasthg.runs.checkpoint import load_state, load_weights
from fasthg.runs.run_folder import RunFolder
from fasthg.training import trainer
from fasthg.training.trainer import TrainResult


def tiny(mice: Path, runs: Path, **keys: Any) -> Config:
    base: dict[str, Any] = {
        "DATA": {s.upper(): str(mice / f"{s}_dataset-*") for s in ("train", "val", "test")},
        "RUNS_DIR": str(runs),
        "RUN_NAME": "tiny",
        "NUM_STACKS": 1,
        "FEATURES": 8,
        "STEM_FEATURES": 4,
        "INPUT_SIZE": 64,
        "HEATMAP_SIZE": 16,
        "BATCH_SIZE": 4,
        "NUM_INPUT_THREADS": 0,
        "NUM_TRAIN_ITERATIONS": 6,
        "VALIDATE_EVERY_N_STEPS": 3,
        "LOG_EVERY_N_STEPS": 2,
        "HEAD_INIT_SCALE": 0.01,
        "PRECISION": "fp32",
        "LOCATOR": "off",
    }
    return Config(**{**base, **keys})


def run(config: Config, *, draw: bool = False, **options: Any) -> TrainResult:
    """Train quietly.

    draw: draw the validation for TensorBoard, which takes most of the time of so small a training;
        without, the image is black.
    """
    black = {"draw_instances": lambda *_: np.zeros((8, 8, 3), np.uint8)}
    with contextlib.nullcontext() if draw else mock.patch.multiple(trainer, **black):
        return trainer.train(config, Console(quiet=True), **options)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def result(folder: RunFolder) -> str:
    """Digest of all that a training came to: last state, best weights, metrics without times."""
    digest = hashlib.sha256()
    state, (weights, metadata) = load_state(folder.last), load_weights(folder.best)
    metadata.pop("config")
    for row in rows(folder):
        # These differ from run to run, as clocks do.
        speeds = {"images_per_s", "wait_share", "time", "elapsed_s"}
        digest.update(repr([(k, v) for k, v in row.items() if k not in speeds]).encode())
    _add(digest, {**state, "keys": None, "weights": weights, "metadata": metadata})
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, Tensor):
        digest.update(value.numpy().tobytes())
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
