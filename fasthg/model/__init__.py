"""The MARS stacked-hourglass network and its TensorFlow weights."""

from __future__ import annotations

from fasthg.model.cuda_streams import weight_gradients_beside
from fasthg.model.fold_bn import fold_batch_norm
from fasthg.model.hourglass import StackedHourglass, build_model
from fasthg.model.layers import collect_statistics, decayed_parameters
from fasthg.model.running_stats import MovingStatistics

__all__ = [
    "MovingStatistics",
    "StackedHourglass",
    "build_model",
    "collect_statistics",
    "decayed_parameters",
    "fold_batch_norm",
    "weight_gradients_beside",
]
