"""Weights files: their metadata, and the network that is loaded from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fasthg import __version__
from fasthg.config import Config, dump_config, resolve
from fasthg.config.yaml_lines import YamlFault, parse_document
from fasthg.errors import DataError
from fasthg.model import StackedHourglass, build_model
from fasthg.runs.checkpoint import load_weights
from fasthg.runs.run_folder import WEIGHTS_SUFFIX, RunFolder


@dataclass(frozen=True)
class WeightsFile:
    """A weights file without a run; prediction and evaluation use it as they use a run folder."""

    path: Path

    @property
    def best(self) -> Path:
        """The file itself."""
        return self.path

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration in the file's metadata, with overrides.

        Raises:
            ConfigError: an override is wrong.
            DataError: the file is missing, damaged, or has no configuration.
        """
        _, metadata = load_weights(self.path)
        try:
            document = parse_document(json.loads(metadata["config"]))
        except (KeyError, ValueError, YamlFault) as error:
            raise DataError(
                f"{self.path}: has no configuration in it; give weights that fasthg wrote"
            ) from error
        return resolve(document, str(self.path), overrides)

    def eval_folder(self, split: str) -> Path:
        """Where an evaluation on `split` goes: `<name>.eval/<split>` in the file's folder."""
        return self.path.with_suffix(".eval") / split


def trained(path: Path) -> RunFolder | WeightsFile:
    """The run folder or the weights file that a path names.

    Raises:
        DataError: it is neither.
    """
    if path.suffix != WEIGHTS_SUFFIX:
        return RunFolder.open(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such weights file; give runs/<name> or a {WEIGHTS_SUFFIX} file"
        )
    return WeightsFile(path)


def weights_metadata(config: Config, step: int, error_px: float) -> dict[str, str]:
    """Metadata of a weights file: network, parts and configuration; values are JSON."""
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
