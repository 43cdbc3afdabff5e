"""The training loss: squared error against Gaussian heatmaps that are never stored."""

from __future__ import annotations

from torch import Tensor

from fasthg.ops import heatmap_mse


def heatmap_loss(
    predictions: Tensor,
    keypoints: Tensor,
    visibility: Tensor,
    sigmas: Tensor,
    *,
    subpixel: bool = False,
    scaling: str = "sum",
) -> Tensor:
    """Loss per stack and image.

    `sum((target - prediction)^2) / 2` over parts and cells. An invisible part's target is an
    empty map; visibility does not mask the loss (as MARS).

    Args:
        predictions: `(stacks, batch, parts, height, width)`.
        keypoints, visibility, sigmas: as in `Batch`, on the device of the predictions.
        subpixel: centre the targets on the keypoint itself, not on its nearest cell.
        scaling: "sum" as MARS; "mean" divides by batch x parts.

    Returns:
        `(stacks, batch)` float32; the training loss is its sum.
    """
    loss = heatmap_mse(predictions, keypoints, sigmas, visibility, subpixel=subpixel)
    if scaling == "mean":
        loss = loss / (predictions.shape[1] * predictions.shape[2])
    return loss
