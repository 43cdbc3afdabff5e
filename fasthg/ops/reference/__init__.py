"""The operators in plain torch: any device, any floating dtype. All are differentiable but for
rmsprop_ema and moving_statistics.

They define the results. Tests hold the compiled kernels against them in float64, and they serve
where there is no compiled kernel. Shapes, units and errors are those of the operators themselves.
"""

from __future__ import annotations

from fasthg.ops.reference.bn_act import bn_act, bn_act_backward, moments, normalise
from fasthg.ops.reference.conv1x1_act import conv1x1_act
from fasthg.ops.reference.conv3x3 import conv3x3
from fasthg.ops.reference.dtypes import arithmetic_dtype
from fasthg.ops.reference.gaussian_heatmaps import gaussian_heatmaps
from fasthg.ops.reference.heatmap_mse import heatmap_mse
from fasthg.ops.reference.heatmap_peaks import heatmap_peaks
from fasthg.ops.reference.max_pool2x import max_pool2x, max_pool2x_backward
from fasthg.ops.reference.moving_statistics import moving_statistics
from fasthg.ops.reference.residual_block import residual_block
from fasthg.ops.reference.rmsprop_ema import rmsprop_ema
from fasthg.ops.reference.upsample2x_add import upsample2x_add, upsample2x_add_backward

__all__ = [
    "arithmetic_dtype",
    "bn_act",
    "bn_act_backward",
    "conv1x1_act",
    "conv3x3",
    "gaussian_heatmaps",
    "heatmap_mse",
    "heatmap_peaks",
    "max_pool2x",
    "max_pool2x_backward",
    "moments",
    "moving_statistics",
    "normalise",
    "residual_block",
    "rmsprop_ema",
    "upsample2x_add",
    "upsample2x_add_backward",
]
