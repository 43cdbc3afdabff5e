"""Pixel operations that both loaders share or reproduce, in NumPy without OpenCV or DALI.

Each step takes and gives uint8; a value is rounded to the nearest grey level once, at its end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fasthg.data.augment import COLOUR_CBG
from fasthg.data.rng import uniforms

BLUR_WINDOW = 5
SMOOTH_ABOVE = 2.0
"""Shrinking up to this factor is left to bilinear sampling, which then still sees every pixel."""
_STREAM = 2


def smoothing(shrink: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sigma in image px of the Gaussian that precedes the warp, 0 where none is needed.

    shrink: image px per input px along an axis. `(shrink - 1) / 2` was closest to area averaging
    of the sigmas tried.
    """
    return np.where(shrink > SMOOTH_ABOVE, (shrink - 1) / 2, 0.0)


def smoothing_radius(sigma: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Reach in px of the kernel for a sigma: three sigmas, as DALI's Gaussian has by default."""
    return np.ceil(3 * np.asarray(sigma, np.float64)).astype(np.int64)


def noise_bank(size: int, scale: float) -> npt.NDArray[np.int16]:
    """Normal noise in whole grey levels, `(2 size, 2 size)`, the same in every process and run.

    A sample adds the `(size, size)` window at its drawn offset to all three channels. Whole levels
    lose nothing, because noise is added to whole levels and the sum is rounded.
    size: input px. scale: standard deviation as a fraction of 255.
    """
    side = 2 * size
    radius, turn = uniforms(0, _STREAM, 0, np.arange(side * side // 2), 2)
    # Box-Muller: two normal values from two uniform ones.
    length = np.sqrt(-2 * np.log(radius)) * scale * 255
    normal = np.concatenate([length * np.cos(2 * np.pi * turn), length * np.sin(2 * np.pi * turn)])
    return np.rint(np.clip(normal, -255, 255)).astype(np.int16).reshape(side, side)


def colour_table(
    counts: npt.NDArray[np.float64],
    order: int,
    brightness: float,
    contrast: float,
    gamma_first: float,
    gamma_last: float,
) -> npt.NDArray[np.uint8]:
    """The gamma-brightness-contrast chain as one table per channel, `(channels, 256)`.

    With white = 1: gamma is `max(x, 0) ** g`, brightness `x + b`, contrast `(x - m) * c + m` with
    m the mean of the channel as it is at that point; clipping waits for the end. Each step but the
    mean acts on a value alone, so the chain is a table of 256 entries once the mean is known, and
    the mean follows from the histogram `counts` `(channels, 256)`.
    order: one of augment's COLOUR_GBCG, COLOUR_BCG, COLOUR_CBG; gammas of 1 change nothing.
    """
    share = counts / counts.sum(axis=1, keepdims=True)
    x = np.broadcast_to(np.arange(256) / 255, counts.shape)
    if gamma_first != 1:
        x = x**gamma_first
    if order != COLOUR_CBG:
        x = x + brightness
    mean = (share * x).sum(axis=1, keepdims=True)
    x = (x - mean) * contrast + mean
    if order == COLOUR_CBG:
        x = x + brightness
    return to_bytes(np.maximum(x, 0) ** gamma_last)


def saturate(
    image: npt.NDArray[np.uint8], brightness: float, saturation: float
) -> npt.NDArray[np.uint8]:
    """The fast colour distortion: brightness, then HSV saturation times a factor, at most 1.

    image: `(height, width, 3)`, the channels in any order. In HSV the value v = max(rgb) and the
    hue stay, so each channel c becomes `v - (v - c) * f` with f limited to `v / (v - min(rgb))`.
    """
    x = np.maximum(image.astype(np.float32) / 255 + np.float32(brightness), 0)
    value = x.max(axis=2, keepdims=True)
    spread = value - x.min(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where(spread > 0, value / spread, saturation)
    return to_bytes(value - (value - x) * np.minimum(limit, saturation).astype(np.float32))


def to_bytes(x: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Grey levels from values with white = 1, clipped, halves upwards."""
    return np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)
