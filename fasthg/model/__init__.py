"""The MARS stacked-hourglass network and its TensorFlow weights."""

from __future__ import annotations

from fasthg.model.folded import fold_batch_norm
from fasthg.model.hourglass import StackedHourglass, build_model
from fasthg.model.layers import decayed_parameters

__all__ = ["StackedHourglass", "build_model", "decayed_parameters", "fold_batch_norm"]
