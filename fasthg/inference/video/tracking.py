"""One animal's box from frame to frame, from the keypoints of the frame before.

The rule. A part counts where its score is at least `confidence`. A frame with at least half of the
parts puts the next frame's box around them, as `data.boxes.box_around` does around annotations:
each side grows by `margin` of the image. A frame with fewer is a miss and keeps the box; `PATIENCE`
misses in a row lose the animal. It is then searched, as it is in the first frame: in the whole
image and in nine windows of half its sides, since a network that was trained on tight boxes knows
no animal in the distance. The window with the highest scores counts, and the frame is looked at
once more in the box that it gives. A frame that cannot be decoded is a miss. A box that a file
gives for a frame takes the place of what was known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import GROWTH, box_around
from fasthg.inference.video.boxes import Boxes

PATIENCE = 3
WINDOWS = np.array(
    [(0.0, 0.0, 1.0, 1.0)]
    + [(x, y, x + 0.5, y + 0.5) for y in (0.0, 0.25, 0.5) for x in (0.0, 0.25, 0.5)]
)
"""(10, 4) where a lost animal is searched: x1 y1 x2 y2 divided by width and height."""


class Tracker:
    """The box of the next frame; a function of the keypoints seen so far.

    Args:
        confidence: least score of a part that counts.
        margin: growth of a box on each side, as a share of the image.
        given: boxes of one animal, in some frames or none.
    """

    def __init__(
        self, confidence: float, margin: float = GROWTH, given: Boxes | None = None
    ) -> None:
        self.confidence, self.margin, self.given = confidence, margin, given
        self._box: npt.NDArray[np.float64] | None = None
        self._misses = 0

    def windows(self, frame: int, width: int, height: int) -> npt.NDArray[np.float64]:
        """Where to look: (n, 4) x1 y1 x2 y2 divided by width and height, n = 1 or many.

        Asked before the frame's `update`: a box given for it is where the animal is from now on.

        Raises:
            DataError: a given box is empty or lies outside the image.
        """
        if self.given is not None and self.given.where is not None:
            given = self.given.shares(frame, width, height)
            if np.isfinite(given).all():
                self._box, self._misses = given, 0
        return WINDOWS if self._box is None else self._box

    def finds(self, scores: npt.NDArray[np.floating]) -> bool:
        """Whether scores (parts,) are those of an animal."""
        with np.errstate(invalid="ignore"):
            return bool(2 * (scores >= self.confidence).sum() >= len(scores))

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
            self._box = None
