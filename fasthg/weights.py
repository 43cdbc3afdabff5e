"""Trained weights on their own: what describes them, and how a network is made of them."""

from __future__ import annotations

import json
from pathlib import Path

from fasthg import __version__
from fasthg.checkpoint import load_weights
from fasthg.config import Config, dump_config
from fasthg.errors import DataError
from fasthg.model import StackedHourglass, build_model


def weights_metadata(config: Config, step: int, error_px: float) -> dict[str, str]:
    """What a weights file says of itself; values are JSON."""
    values = {
        "fasthg": __version__,
        "step": step,
        "val_error_mean_px": error_px if error_px < float("inf") else None,
        "parts": config.PARTS.NAMES,
        "sigmas": config.PARTS.SIGMAS,
        "left_right_pairs": config.PARTS.LEFT_RIGHT_PAIRS,
        "input_size": config.INPUT_SIZE,
        "heatmap_size": config.HEATMAP_SIZE,
        "num_stacks": config.NUM_STACKS,
        "features": config.FEATURES,
        "config": dump_config(config),
    }
    return {key: json.dumps(value) for key, value in values.items()}


def load_model(path: Path, config: Config) -> tuple[StackedHourglass, dict[str, str]]:
    """The network of a weights file, in evaluation mode, and the file's metadata.

    Raises:
        DataError: the file is missing, damaged, or of another network than `config` describes.
    """
    tensors, metadata = load_weights(path)
    model = build_model(config)
    saved, ours = json.loads(metadata.get("parts", "null")), list(config.PARTS.NAMES)
    if saved is not None and saved != ours:
        raise DataError(f"{path}: its parts are {saved}, the configuration's {ours}; use its own")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            f"{path}: does not fit the configuration ({str(error).splitlines()[0]}); "
            "use the run's own NUM_STACKS, FEATURES and PARTS"
        ) from error
    return model.eval(), metadata
