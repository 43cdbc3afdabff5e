"""Parameters of the augmentation, drawn as arrays before any image is decoded.

A row of `AugmentParams` depends only on (seed, epoch, instance): not on the batch, the loader, the
number of workers or where a run was resumed. Frequencies and ranges come from the configuration,
whose keys keep the meaning they have in MARS' documentation.

Both loaders apply the steps in this order, each from uint8 to uint8:

1. one warp (padding, box shift, stretch, flip, rotation), preceded by a smoothing blur where the
   crop shrinks by more than `SMOOTH_ABOVE`,
2. colour, 3. blur, 4. noise, 5. JPEG artefacts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fasthg.config import Config
from fasthg.data.rng import uniforms

# Values of AugmentParams.colour. The letters are gamma, brightness and contrast, as applied.
COLOUR_NONE, COLOUR_GBCG, COLOUR_BCG, COLOUR_CBG, COLOUR_FAST = range(5)
# Three orders, the last drawn twice as often: the reference picks one of four and two are the same.
_ORDERS = np.array([COLOUR_GBCG, COLOUR_BCG, COLOUR_CBG, COLOUR_CBG], np.uint8)

MAX_BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)
GAMMA = (0.75, 1.0)
CONTRAST = (0.5, 1.1)
_STREAM = 1
_COUNT = 23


@dataclass(frozen=True)
class AugmentParams:
    """Augmentation of each instance of a batch; a value without effect means "not drawn"."""

    pad: npt.NDArray[np.float64]
    """(batch,) padding factor of the loose crop; 0 where the crop is the box."""
    shift: npt.NDArray[np.float64]
    """(batch, 4) how far each box edge x1 y1 x2 y2 moves outwards, image px."""
    flip: npt.NDArray[np.bool_]
    """(batch,) mirror left and right."""
    angle: npt.NDArray[np.float64]
    """(batch,) rotation, degrees counter-clockwise."""
    colour: npt.NDArray[np.uint8]
    """(batch,) one of the COLOUR_ constants."""
    brightness: npt.NDArray[np.float32]
    """(batch,) added to every channel; white is 1."""
    contrast: npt.NDArray[np.float32]
    """(batch,) factor about each channel's mean."""
    saturation: npt.NDArray[np.float32]
    """(batch,) factor on HSV saturation (COLOUR_FAST only)."""
    gamma_first: npt.NDArray[np.float32]
    """(batch,) exponent before the rest; 1 except for COLOUR_GBCG."""
    gamma_last: npt.NDArray[np.float32]
    """(batch,) exponent after the rest."""
    blur: npt.NDArray[np.uint8]
    """(batch,) sigma of the 5x5 Gaussian, input px; 0 = none."""
    noise: npt.NDArray[np.bool_]
    """(batch,) add a noise plane."""
    noise_offset: npt.NDArray[np.int32]
    """(batch, 2) x, y of the plane's corner in the noise bank, px."""
    quality: npt.NDArray[np.uint8]
    """(batch,) JPEG quality 1..100; 0 = none."""

    def take(self, rows: npt.NDArray[np.int64]) -> AugmentParams:
        """The parameters of `rows`, in that order; a row may be taken twice."""
        return AugmentParams(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )


def fixed_padding(cfg: Config) -> float:
    """The padding of a crop where none is drawn, as a fraction of the box side.

    Rounded to float32, because TensorFlow hands it to the reference's code so: an edge that a
    padding of 0.65 puts on a whole px is one px further in with 0.64999998.
    """
    return float(np.float32(cfg.LOOSE_BBOX_PAD_FACTOR)) if cfg.LOOSE_BBOX_CROP else 0.0


def no_augmentation(cfg: Config, count: int) -> AugmentParams:
    """Parameters that leave `count` instances as they are: the fixed padding and nothing else."""
    one = np.ones(count, np.float32)
    return AugmentParams(
        pad=np.full(count, fixed_padding(cfg)),
        shift=np.zeros((count, 4)),
        flip=np.zeros(count, np.bool_),
        angle=np.zeros(count),
        colour=np.zeros(count, np.uint8),
        brightness=np.zeros(count, np.float32),
        contrast=one,
        saturation=one,
        gamma_first=one,
        gamma_last=one,
        blur=np.zeros(count, np.uint8),
        noise=np.zeros(count, np.bool_),
        noise_offset=np.zeros((count, 2), np.int32),
        quality=np.zeros(count, np.uint8),
    )


def draw(
    cfg: Config, seed: int, epoch: npt.ArrayLike, instances: npt.NDArray[np.int64]
) -> AugmentParams:
    """The augmentation of each instance in its epoch.

    epoch: `(batch,)` or a scalar, not negative. instances: `(batch,)` indices into the index.
    Every column of random numbers is used for one choice only, so turning one augmentation on or
    off leaves the draws of the others unchanged.
    """
    u = uniforms(seed, _STREAM, epoch, instances, _COUNT)
    plain = no_augmentation(cfg, len(instances))

    pad = plain.pad
    if cfg.LOOSE_BBOX_CROP and cfg.DO_RANDOM_PADDING:
        drawn = _between(u[1], cfg.RANDOM_PADDING_MIN, cfg.RANDOM_PADDING_MAX)
        pad = np.where(u[0] < cfg.RANDOM_PADDING_FREQ, drawn, pad)

    shifted = u[2] < cfg.DO_RANDOM_BBOX_SHIFT
    angle = np.zeros(len(instances))
    if cfg.DO_RANDOM_ROTATION:
        delta = cfg.RANDOM_ROTATION_DELTA
        angle = np.where(u[8] < cfg.RANDOM_ROTATION_FREQ, _between(u[9], -delta, delta), 0.0)

    orders = np.full_like(_ORDERS, COLOUR_FAST) if cfg.COLOR_DISTORT_FAST else _ORDERS
    distorted = u[10] < cfg.DO_COLOR_DISTORTION
    colour = np.where(distorted, orders[_whole(u[11], 4)], COLOUR_NONE)
    blurred = u[16] < (cfg.RANDOM_BLUR_FREQ if cfg.DO_RANDOM_BLURRING else 0.0)
    noisy = u[18] < (cfg.RANDOM_NOISE_FREQ if cfg.DO_RANDOM_NOISE else 0.0)
    lossy = u[21] < (cfg.RANDOM_JPEG_FREQ if cfg.DO_JPEG_ARTIFACTS else 0.0)
    low, high = cfg.RANDOM_JPEG_QUALITY_MIN, cfg.RANDOM_JPEG_QUALITY_MAX

    return AugmentParams(
        pad=pad,
        shift=np.where(shifted, u[3:7] * cfg.RANDOM_BBOX_SHIFT_EXTENT, 0.0).T,
        flip=u[7] < cfg.DO_RANDOM_FLIP_LEFT_RIGHT,
        angle=angle,
        colour=colour.astype(np.uint8),
        brightness=_single(distorted, _between(u[12], -MAX_BRIGHTNESS, MAX_BRIGHTNESS), 0.0),
        contrast=_single(distorted & (colour != COLOUR_FAST), _between(u[13], *CONTRAST), 1.0),
        saturation=_single(colour == COLOUR_FAST, _between(u[13], *SATURATION), 1.0),
        gamma_first=_single(colour == COLOUR_GBCG, _between(u[14], *GAMMA), 1.0),
        gamma_last=_single(distorted & (colour != COLOUR_FAST), _between(u[15], *GAMMA), 1.0),
        blur=np.where(blurred, 1 + _whole(u[17], max(1, int(cfg.MAX_BLUR))), 0).astype(np.uint8),
        noise=noisy,
        noise_offset=np.where(noisy, _whole(u[19:21], cfg.INPUT_SIZE + 1), 0).T.astype(np.int32),
        quality=np.where(lossy, low + _whole(u[22], high - low + 1), 0).astype(np.uint8),
    )


def _between(u: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    return low + u * (high - low)


def _whole(u: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Uniform integers 0..count-1."""
    return (u * count).astype(np.int64)


def _single(
    drawn: npt.NDArray[np.bool_], value: npt.NDArray[np.float64], otherwise: float
) -> npt.NDArray[np.float32]:
    return np.where(drawn, value, otherwise).astype(np.float32)
