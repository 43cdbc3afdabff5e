"""A weights file of a small network whose moving statistics are unlike those of the start."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fasthg.config import Config
from fasthg.interop.export import Trained, open_trained
from fasthg.model import build_model
from fasthg.model.layers import BatchNorm
from fasthg.runs.checkpoint import save_weights
from fasthg.runs.weights import trained, weights_metadata

KEYS = {
    "FEATURES": 16,
    "STEM_FEATURES": 8,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "BATCH_SIZE": 4,
    "NUM_INPUT_THREADS": 0,
}


def written(path: Path, seed: int = 0, **keys: object) -> Path:
    config = Config.model_validate({**KEYS, **keys})
    torch.manual_seed(seed)
    model = build_model(config)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 1, 2)
    save_weights(path, model.state_dict(), weights_metadata(config, 7, 1.5))
    return path


def opened(path: Path, *overrides: str) -> Trained:
    """The network of a weights file, as the command line opens it."""
    source = trained(path)
    return open_trained(source, source.config(list(overrides)))
