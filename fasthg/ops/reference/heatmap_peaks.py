"""Peaks of heatmaps in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fasthg.ops.reference.dtypes import arithmetic_dtype

# Sources and reasons of these numbers stand in csrc/heatmap_peaks_math.h, which has them too.
BLUR_SIGMA = 1.0
BLUR_RADIUS = 3
STENCIL_RADIUS = 2
MINIMUM_CURVATURE = 1e-6
MINIMUM_DETERMINANT = 1e-3
MAXIMUM_STEP = 1.0


def heatmap_peaks(
    heatmaps: Tensor, method: str = "dark", blur_sigma: float = BLUR_SIGMA
) -> tuple[Tensor, Tensor]:
    """Find the peak of each map; see `fasthg.ops.heatmap_peaks` for the four methods.

    heatmaps: (batch, parts, height, width). blur_sigma: of dark, heatmap cells; the operator has
    the stock value. Returns xy (batch, parts, 2) in heatmap cells and score (batch, parts), both
    float64 for float64 heatmaps, else float32.
    """
    work = arithmetic_dtype(heatmaps.dtype)
    maps = heatmaps.detach().to(work).contiguous()
    width = maps.shape[-1]
    flat = maps.flatten(2)
    # NaN never wins; torch.max returns any of several equal cells, argmax of a bool the first.
    comparable = torch.where(flat.isnan(), -torch.inf, flat)
    score = comparable.amax(-1)
    first = ((comparable == score[..., None]) & ~flat.isnan()).to(torch.uint8).argmax(-1)
    cell = torch.stack([first % width, first.div(width, rounding_mode="floor")], -1)
    if method == "plateau":
        xy = _plateau_centres(maps, cell, score)
    else:
        xy = cell.to(work)
        if method != "argmax":
            xy = xy + _offsets(maps, cell, method, blur_sigma)
    empty = flat.isnan().all(-1)
    return xy.masked_fill(empty[..., None], torch.nan), score.masked_fill(empty, torch.nan)


def _plateau_centres(maps: Tensor, cell: Tensor, score: Tensor) -> Tensor:
    """Middle of the box around the 4-connected cells that equal the maximum, from `cell` on."""
    height, width = maps.shape[-2:]
    columns = torch.arange(width, device=maps.device)
    rows = torch.arange(height, device=maps.device)[:, None]
    equal = maps == score[..., None, None]
    reached = equal & (columns == cell[..., 0, None, None]) & (rows == cell[..., 1, None, None])
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]], device=maps.device)[None, None]
    while True:
        neighbours = functional.conv2d(reached.flatten(0, 1)[:, None].float(), cross, padding=1)
        grown = equal & (neighbours.view_as(maps) > 0)
        if torch.equal(grown, reached):
            break
        reached = grown
    xy = []
    for positions, other in ((columns, -2), (rows[:, 0], -1)):
        occupied = reached.any(other)
        first = torch.where(occupied, positions, len(positions)).amin(-1)
        last = torch.where(occupied, positions, -1).amax(-1)
        xy.append((first + last) / 2)
    return torch.stack(xy, -1).to(maps.dtype)


def _offsets(maps: Tensor, cell: Tensor, method: str, blur_sigma: float) -> Tensor:
    """Offset (batch, parts, 2) in cells from the peak cell to the sub-cell peak."""
    height, width = maps.shape[-2:]
    radius = math.ceil(BLUR_RADIUS * blur_sigma / BLUR_SIGMA)
    reach = radius + STENCIL_RADIUS
    padded = functional.pad(maps, [reach] * 4)
    inside = functional.pad(torch.ones_like(maps), [reach] * 4)
    around = torch.arange(2 * reach + 1, device=maps.device)
    rows = (cell[..., 1, None] + around)[..., :, None]
    columns = (cell[..., 0, None] + around)[..., None, :]
    index = (rows * padded.shape[-1] + columns).flatten(2)
    shape = (*cell.shape[:2], len(around), len(around))
    patch = padded.flatten(2).gather(2, index).view(shape)
    valid = inside.flatten(2).gather(2, index).view(shape)

    size = torch.tensor([width, height], device=maps.device)
    middle = patch[..., reach - 1 : reach + 2, reach - 1 : reach + 2]
    difference = torch.stack(
        [middle[..., 1, 2] - middle[..., 1, 0], middle[..., 2, 1] - middle[..., 0, 1]], -1
    )
    # Comparisons rather than sign(), so that a NaN neighbour gives no step.
    quarter = 0.25 * ((difference > 0).to(maps.dtype) - (difference < 0).to(maps.dtype))
    quarter = torch.where((cell > 0) & (cell < size - 1), quarter, 0.0)
    if method == "quarter":
        return quarter

    taps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-0.5 * (taps / blur_sigma) ** 2)
    kernel = (weights[:, None] * weights)[None, None]
    blurred, total = (
        functional.conv2d(t.flatten(0, 1)[:, None], kernel).view(*cell.shape[:2], 5, 5)
        for t in (patch, valid)
    )
    blurred = blurred / total
    h = torch.log(torch.where(blurred > 0, blurred, torch.nan))
    dx = (h[..., 2, 3] - h[..., 2, 1]) / 2
    dy = (h[..., 3, 2] - h[..., 1, 2]) / 2
    dxx = (h[..., 2, 4] - 2 * h[..., 2, 2] + h[..., 2, 0]) / 4
    dyy = (h[..., 4, 2] - 2 * h[..., 2, 2] + h[..., 0, 2]) / 4
    dxy = (h[..., 3, 3] - h[..., 1, 3] - h[..., 3, 1] + h[..., 1, 1]) / 4
    determinant = dxx * dyy - dxy * dxy
    step = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], -1) / determinant[..., None]
    usable = (
        ((cell >= STENCIL_RADIUS) & (cell < size - STENCIL_RADIUS)).all(-1)
        & (dxx < -MINIMUM_CURVATURE)
        & (dyy < -MINIMUM_CURVATURE)
        & (determinant > MINIMUM_DETERMINANT * dxx * dyy)
    )
    return torch.where(usable[..., None], step.clamp(-MAXIMUM_STEP, MAXIMUM_STEP), quarter)
