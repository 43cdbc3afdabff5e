"""Training losses: of the pose network, against Gaussian heatmaps that are never stored, and of
the locator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fasthg.ops import gaussian_heatmaps, heatmap_mse

SIZE_UNIT = 8.0
"""Cells; the locator's size maps hold the logarithm of width and height in this unit."""


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


def locator_loss(
    predictions: Tensor, keypoints: Tensor, visibility: Tensor, sigmas: Tensor, *, classes: int
) -> Tensor:
    """Loss of centre and size maps per stack and image.

    `sum((target - prediction)^2) / 2` over the cells of all centre maps, whose target is the
    greatest of the animals' Gaussians, plus the Huber loss of the sizes at the cells where that is
    above 0.3, weighted by it; the sizes are those of the animal whose Gaussian is the greatest.

    Args:
        predictions: `(stacks, batch, 1 + classes + 2, height, width)`: centres of any animal, of
            each class, logarithms of width and height in SIZE_UNIT.
        keypoints, visibility, sigmas: of a `FrameSampler`, `(batch, 2 * slots, ...)`; slot `c` is
            that of class `c`. Visibility 2: an animal; 1: cells where its Gaussian is above 0.1 do
            not count, as its box is not known; 0: none.
        classes: 0 where animals have none.

    Returns:
        `(stacks, batch)` float32, divided by the batch.
    """
    slots = keypoints.shape[1] // 2
    size = predictions.shape[-2], predictions.shape[-1]
    gaussians = gaussian_heatmaps(
        keypoints[:, :slots], sigmas[:, :slots], size, visibility[:, :slots], subpixel=True
    )
    known = (visibility[:, :slots] == 2)[..., None, None]
    counts = ((gaussians * ~known).amax(dim=1, keepdim=True) <= 0.1).float()
    gaussians = gaussians * known
    anyone, owner = gaussians.max(dim=1)
    centres = torch.cat([anyone[:, None], gaussians[:, :classes]], dim=1)
    wanted = torch.log(keypoints[:, slots:].nan_to_num(SIZE_UNIT).clamp_min(1) / SIZE_UNIT)
    owners = owner.flatten(1)[..., None].expand(-1, -1, 2)
    sizes = wanted.gather(1, owners).transpose(1, 2).unflatten(2, size)
    weight = torch.where(anyone > 0.3, anyone, 0.0)[:, None] * counts
    predicted = predictions.float()
    squared = (predicted[:, :, : 1 + classes] - centres).square() * counts
    centre = squared.flatten(2).sum(2) / 2
    error = functional.huber_loss(
        predicted[:, :, 1 + classes :],
        sizes.expand_as(predicted[:, :, 1 + classes :]),
        reduction="none",
        delta=0.5,
    )
    return (centre + (weight * error).flatten(2).sum(2)) / predictions.shape[1]
