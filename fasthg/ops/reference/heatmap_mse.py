"""Distance of predictions to Gaussian target maps in plain torch."""

from __future__ import annotations

from torch import Tensor

from fasthg.ops.reference.dtypes import arithmetic_dtype
from fasthg.ops.reference.gaussian_heatmaps import gaussian_heatmaps


def heatmap_mse(
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None = None,
    *,
    subpixel: bool = False,
) -> Tensor:
    """Half the squared distance between predictions and the maps of `gaussian_heatmaps`.

    predictions: (stacks, batch, parts, height, width). Returns (stacks, batch), summed over parts
    and cells; float64 for float64 predictions, else float32.
    """
    work = arithmetic_dtype(predictions.dtype)
    height, width = predictions.shape[-2:]
    targets = gaussian_heatmaps(
        keypoints.to(work), sigmas.to(work), height, width, visibility, subpixel=subpixel
    )
    return (predictions.to(work) - targets).square().sum((2, 3, 4)) / 2
