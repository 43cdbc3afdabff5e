"""The MARS stacked-hourglass network and its TensorFlow weights."""

from __future__ import annotations

from fasthg.model.branches import weight_gradients_beside
from fasthg.model.folded import fold_batch_norm
from fasthg.model.hourglass import StackedHourglass, build_model
from fasthg.model.layers import collect_statistics, decayed_parameters
from fasthg.model.statistics import MovingStatistics

__all__ = [
    "MovingStatistics",
    "StackedHourglass",
    "build_model",
    "collect_statistics",
    "decayed_parameters",
    "fold_batch_norm",
    "weight_gradients_beside",
]
