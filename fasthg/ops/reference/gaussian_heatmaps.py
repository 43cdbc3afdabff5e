"""Gaussian target maps in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_heatmaps(
    keypoints: Tensor,
    sigmas: Tensor,
    height: int,
    width: int,
    visibility: Tensor | None = None,
    *,
    subpixel: bool = False,
) -> Tensor:
    """Draw `exp(-((i - u)² + (j - v)²) / (2 sigma²))`, one map a part, peak 1, no cut-off.

    keypoints: (batch, parts, 2) (x, y), heatmap cells. sigmas: (parts,) or (batch, parts), cells.
    visibility: (batch, parts), > 0 = draw. Returns (batch, parts, height, width) in keypoints'
    dtype; all zero where invisible, not finite, or sigma is not positive.
    """
    sigmas = sigmas.expand(keypoints.shape[:2])
    drawn = torch.isfinite(keypoints).all(-1) & (sigmas > 0)
    if visibility is not None:
        drawn = drawn & (visibility > 0)
    # Harmless stand-ins keep NaN out of the arithmetic, and so out of the gradient.
    centres = torch.where(drawn[..., None], keypoints, 0.0)
    sigmas = torch.where(drawn, sigmas, 1.0)[..., None]
    if not subpixel:
        centres = torch.round(centres)
    columns = torch.arange(width, device=keypoints.device, dtype=keypoints.dtype)
    rows = torch.arange(height, device=keypoints.device, dtype=keypoints.dtype)
    across = torch.exp(-0.5 * ((columns - centres[..., 0:1]) / sigmas) ** 2)
    down = torch.exp(-0.5 * ((rows - centres[..., 1:2]) / sigmas) ** 2)
    down = torch.where(drawn[..., None], down, 0.0)
    return down[..., :, None] * across[..., None, :]
