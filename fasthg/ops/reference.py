"""The operators in plain torch: any device, any floating dtype, differentiable but for rmsprop_ema.

They define the results. Tests hold the compiled kernels against them in float64, and they serve
where there is no compiled kernel. Shapes, units and errors are those of the operators themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Sources and reasons of these numbers stand in csrc/heatmap_peaks_math.h, which has them too.
BLUR_SIGMA = 1.0
BLUR_RADIUS = 3
STENCIL_RADIUS = 2
MINIMUM_CURVATURE = 1e-6
MINIMUM_DETERMINANT = 1e-3
MAXIMUM_STEP = 1.0


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
    work = torch.float64 if predictions.dtype == torch.float64 else torch.float32
    height, width = predictions.shape[-2:]
    targets = gaussian_heatmaps(
        keypoints.to(work), sigmas.to(work), height, width, visibility, subpixel=subpixel
    )
    return (predictions.to(work) - targets).square().sum((2, 3, 4)) / 2


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator computes for tensors of `dtype`: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (channels,) of maps (batch, channels, height, width)."""
    x = x.to(arithmetic_dtype(x.dtype))
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var


def normalise(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> Tensor:
    """`relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual)`, in the arithmetic dtype.

    x, residual: (batch, channels, height, width); all others: (channels,).
    """
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = scale * gamma
    work = arithmetic_dtype(x.dtype)
    mean, scale, beta = (t.to(work)[:, None, None] for t in (mean, scale, beta))
    y = (x.to(work) - mean) * scale + beta
    if residual is not None:
        y = y + residual.to(work)
    return functional.relu(y) if relu else y


def bn_act(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """`normalise` by the batch's own `moments`. Returns y in x's dtype, mean and var."""
    mean, var = moments(x)
    y = normalise(x, mean, var, beta, gamma, residual, relu=relu, eps=eps)
    return y.to(x.dtype), mean.detach(), var.detach()


def bn_act_backward(
    of_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    *,
    relu: bool,
    frozen: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, beta and gamma, and of_y behind the ReLU, in the arithmetic dtype.

    y: the forward's result, read where it says what the ReLU let through; None: x says so.
    frozen: mean and var are constants.
    """
    work = arithmetic_dtype(x.dtype)
    of_y = of_y.to(work)
    if relu:
        before = normalise(x, mean, var, beta, gamma, eps=eps) if y is None else y
        of_y = torch.where(before <= 0, 0, of_y)
    deviation = torch.rsqrt(var + eps)[:, None, None]
    standard = (x.to(work) - mean[:, None, None]) * deviation
    of_beta, of_gamma = of_y.sum((0, 2, 3)), (of_y * standard).sum((0, 2, 3))
    of_x = of_y
    if not frozen:
        count = x.numel() // x.shape[1]
        of_beta_here, of_gamma_here = (t[:, None, None] / count for t in (of_beta, of_gamma))
        of_x = of_x - of_beta_here - standard * of_gamma_here
    of_x = of_x * deviation
    if gamma is not None:
        of_x = of_x * gamma.to(work)[:, None, None]
    return of_x, of_beta, of_gamma, of_y


def heatmap_peaks(heatmaps: Tensor, method: str = "dark") -> tuple[Tensor, Tensor]:
    """Find the peak of each map; see `fasthg.ops.heatmap_peaks` for the four methods.

    heatmaps: (batch, parts, height, width). Returns xy (batch, parts, 2) in heatmap cells and
    score (batch, parts), both float64 for float64 heatmaps, else float32.
    """
    work = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
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
            xy = xy + _offsets(maps, cell, method)
    empty = flat.isnan().all(-1)
    return xy.masked_fill(empty[..., None], torch.nan), score.masked_fill(empty, torch.nan)


def rmsprop_ema(
    values: Tensor,
    gradient: Tensor,
    squares: Tensor,
    momenta: Tensor | None,
    averages: Tensor | None,
    bfloat16: Tensor | None,
    rate: Tensor,
    average_weight: Tensor | None,
    found_inf: Tensor | None,
    decayed: int,
    weight_decay: float,
    decay: float,
    momentum: float,
    eps: float,
) -> None:
    """Averages towards the values, then `weights -= rate * g / sqrt(squares + eps)`, in place."""
    weights = values[: len(gradient)]
    if averages is not None and average_weight is not None:
        averages.lerp_(values, average_weight.reshape(()))
    g = gradient.clone()
    g[:decayed] += weight_decay * weights[:decayed]
    new_squares = decay * squares + (1 - decay) * g * g
    change = rate.reshape(()) * g / (new_squares + eps).sqrt()
    if momenta is not None:
        change = momentum * momenta + change
    # Chosen on the device: asking for the number would wait for the GPU.
    kept = torch.zeros((), device=values.device) if found_inf is None else found_inf.reshape(())
    updated = [(squares, new_squares), (momenta, change), (weights, weights - change)]
    updated += [(bfloat16, (weights - change).to(torch.bfloat16))]
    for old, new in updated:
        if old is not None:
            old.copy_(torch.where(kept == 0, new, old))


def _plateau_centres(maps: Tensor, cell: Tensor, score: Tensor) -> Tensor:
    """Middle of the box around the 4-connected cells that equal the maximum, from `cell` on."""
    height, width = maps.shape[-2:]
    columns = torch.arange(width, device=maps.device)
    rows = torch.arange(height, device=maps.device)[:, None]
    equal = maps == score[..., None, None]
    reached = equal & (columns == cell[..., 0, None, None]) & (rows == cell[..., 1, None, None])
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]], device=maps.device)[None, None]
    while True:
        spread = functional.conv2d(reached.flatten(0, 1)[:, None].float(), cross, padding=1)
        grown = equal & (spread.view_as(maps) > 0)
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


def _offsets(maps: Tensor, cell: Tensor, method: str) -> Tensor:
    """Offset (batch, parts, 2) in cells from the peak cell to the sub-cell peak."""
    height, width = maps.shape[-2:]
    reach = BLUR_RADIUS + STENCIL_RADIUS
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
    slope = torch.stack(
        [middle[..., 1, 2] - middle[..., 1, 0], middle[..., 2, 1] - middle[..., 0, 1]], -1
    )
    # Comparisons rather than sign(), so that a NaN neighbour gives no step.
    quarter = 0.25 * ((slope > 0).to(maps.dtype) - (slope < 0).to(maps.dtype))
    quarter = torch.where((cell > 0) & (cell < size - 1), quarter, 0.0)
    if method == "quarter":
        return quarter

    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-0.5 * (taps / BLUR_SIGMA) ** 2)
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
