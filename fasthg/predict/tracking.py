"""One animal's box from frame to frame, from the keypoints of the frame before.

The rule. A part counts where its score is at least `confidence`. A frame with at least half of the
parts puts the next frame's box around them, as `data.boxes.box_around` does around annotations:
each side grows by `margin` of the image. A frame with fewer is a miss and keeps the box; `PATIENCE`
misses in a row lose the animal, and the whole frame is searched until a frame has half of the parts
again. A frame that cannot be decoded is a miss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import GROWTH, box_around

PATIENCE = 3
_WHOLE = (0.0, 0.0, 1.0, 1.0)


class Tracker:
    """The box of the next frame; a function of the keypoints seen so far."""

    def __init__(self, confidence: float, margin: float = GROWTH) -> None:
        self.confidence, self.margin = confidence, margin
        self._box = np.array([_WHOLE])
        self._misses = 0

    def shares(self, frame: int, width: int, height: int) -> npt.NDArray[np.float64]:
        """(1, 4) x1 y1 x2 y2 divided by width and height; a `boxes.Locate`."""
        return self._box

    def update(
        self,
        keypoints: npt.NDArray[np.floating],
        scores: npt.NDArray[np.floating],
        size: tuple[float, float],
    ) -> None:
        """Learn what a frame held.

        keypoints: (parts, 2) image px. scores: (parts,); NaN for a frame without image.
        size: width and height, px.
        """
        points = keypoints / np.maximum(np.asarray(size, np.float64), 1)
        with np.errstate(invalid="ignore"):
            sure = (scores >= self.confidence) & np.isfinite(points).all(axis=1)
        if 2 * sure.sum() >= len(scores):
            self._box = box_around(points[sure], self.margin)[None].astype(np.float64)
            self._misses = 0
            return
        self._misses += 1
        if self._misses >= PATIENCE:
            self._box = np.array([_WHOLE])
