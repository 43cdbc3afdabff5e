"""The networks of a run, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fasthg.config import Config
from fasthg.inference.locator import Locator, frames_are_crops, load_locator
from fasthg.inference.predictor import Forward
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile, load_model
from fasthg.runtime.device import choose_device, choose_precision


@dataclass(frozen=True)
class Networks:
    """What predicts images and films."""

    pose: Forward
    locator: Locator | None
    """None where the run has none, none was asked for, or weights alone were given."""
    frames_are_crops: bool
    """Whether the run has no locator because its frames are crops of one animal."""
    metadata: Mapping[str, str]
    """Of the pose network's weights."""


def open_networks(run: RunFolder | WeightsFile, config: Config, *, locate: bool = True) -> Networks:
    """Load the best weights of a run, or a file's, and the run's locator.

    Args:
        config: of the run, with overrides.
        locate: whether animals are to be found; False loads no locator.

    Raises:
        DataError: weights are missing, damaged, or of another network.
        EnvironmentFault: DEVICE is not there.
    """
    locator, crops = None, False
    if locate and isinstance(run, RunFolder):
        locator = load_locator(run, config)
        crops = locator is None and frames_are_crops(run)
    model, metadata = load_model(run.best, config)
    device = choose_device(config.DEVICE)
    precision = choose_precision(config.PRECISION, device, config.FEATURES).dtype
    return Networks(Forward(model.to(device), config, precision), locator, crops, metadata)
