"""Operators of the trainer: compiled for CPU and CUDA, plain torch where there is no kernel.

Usable alone: nothing here needs the rest of fasthg.
"""

from __future__ import annotations

from fasthg.ops._native import OpPath, paths, serves
from fasthg.ops.bn_act import bn_act, bn_act_inference, update_statistics
from fasthg.ops.conv1x1_act import conv1x1_act
from fasthg.ops.gaussian_heatmaps import gaussian_heatmaps
from fasthg.ops.heatmap_mse import heatmap_mse
from fasthg.ops.heatmap_peaks import heatmap_peaks
from fasthg.ops.rmsprop_ema import rmsprop_ema

__all__ = [
    "OpPath",
    "bn_act",
    "bn_act_inference",
    "conv1x1_act",
    "gaussian_heatmaps",
    "heatmap_mse",
    "heatmap_peaks",
    "paths",
    "rmsprop_ema",
    "serves",
    "update_statistics",
]
