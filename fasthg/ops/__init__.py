"""Operators of the trainer: compiled for CPU and CUDA, plain torch where there is no kernel.

Usable alone: nothing here needs the rest of fasthg.
"""

from __future__ import annotations

from fasthg.ops._extension import OpPath, has_kernel, paths
from fasthg.ops.bn_act import bn_act, bn_act_inference, update_statistics
from fasthg.ops.conv1x1_act import conv1x1_act
from fasthg.ops.conv3x3 import conv3x3
from fasthg.ops.gaussian_heatmaps import gaussian_heatmaps
from fasthg.ops.heatmap_mse import heatmap_mse
from fasthg.ops.heatmap_peaks import heatmap_peaks
from fasthg.ops.max_pool2x import max_pool2x, max_pool2x_fork
from fasthg.ops.moving_statistics import moving_statistics
from fasthg.ops.residual_block import (
    ResidualStatistics,
    residual_block,
    residual_block_inference,
)
from fasthg.ops.rmsprop_ema import rmsprop_ema
from fasthg.ops.upsample2x_add import upsample2x_add

__all__ = [
    "OpPath",
    "ResidualStatistics",
    "bn_act",
    "bn_act_inference",
    "conv1x1_act",
    "conv3x3",
    "gaussian_heatmaps",
    "has_kernel",
    "heatmap_mse",
    "heatmap_peaks",
    "max_pool2x",
    "max_pool2x_fork",
    "moving_statistics",
    "paths",
    "residual_block",
    "residual_block_inference",
    "rmsprop_ema",
    "update_statistics",
    "upsample2x_add",
]
