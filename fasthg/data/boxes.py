"""Boxes from keypoints, as MARS makes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GROWTH = 0.04
_SMALLEST = 0.02


def box_around(
    keypoints: npt.NDArray[np.floating], growth: float = GROWTH
) -> npt.NDArray[np.float32]:
    """The box of an animal, (4,) float32 x1 y1 x2 y2, from its parts (parts, 2).

    All coordinates are divided by image width and height. On each axis the extent of the labelled
    (not NaN) parts grows on both sides by `growth` of the image, or by the distance to the nearer
    image border where that is less: the rule of MARS' annotation tools. Parts outside the image
    count as on its border. A side below 2 % of the image (parts in a row along the border) becomes
    that long. Raises ValueError where no part is labelled.
    """
    labelled = keypoints[np.isfinite(keypoints).all(axis=1)].clip(0, 1)
    if not len(labelled):
        raise ValueError("no labelled part to put a box around")
    low, high = labelled.min(axis=0), labelled.max(axis=0)
    grow = np.minimum(np.minimum(low, 1 - high), growth)
    low, high = low - grow, high + grow
    short = np.maximum(0, _SMALLEST - (high - low)) / 2
    low = np.clip(low - short, 0, 1 - _SMALLEST)
    high = np.maximum(high, np.minimum(1, low + _SMALLEST))
    return np.concatenate([low, high]).astype(np.float32)
