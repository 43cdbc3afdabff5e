"""The MARS stacked-hourglass network and its TensorFlow weights."""

from __future__ import annotations

from fasthg.model.fold_bn import fold_batch_norm
from fasthg.model.hourglass import StackedHourglass, build_model, normalise
from fasthg.model.layers import BatchStatsCollector, decayed_parameters
from fasthg.model.running_stats import RunningStats

__all__ = [
    "BatchStatsCollector",
    "RunningStats",
    "StackedHourglass",
    "build_model",
    "decayed_parameters",
    "fold_batch_norm",
    "normalise",
]
