"""What all formats of suggestions are written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasthg.config import Parts

PICTURES = "labeled-data"
"""DeepLabCut's folder of pictures, which all formats share."""


@dataclass(frozen=True)
class Labels:
    """The machine labels of one suggested frame."""

    film: Path
    """The film's file."""
    folder: str
    """The film's name, that of its folder of pictures."""
    image: str
    """File name of the picture."""
    frame: int
    size: tuple[int, int]
    """Width and height, px."""
    keypoints: npt.NDArray[np.float64]
    """(animals, parts, 2) image px; NaN for a missing animal and for parts of too low a score."""
    scores: npt.NDArray[np.float64]
    """(animals, parts); NaN for a missing animal."""
    boxes: npt.NDArray[np.float64]
    """(animals, 4) x1 y1 x2 y2, image px; NaN for a missing animal."""
    why: str


@dataclass(frozen=True)
class Content:
    """What all formats are written from."""

    labels: list[Labels]
    animals: tuple[str, ...]
    parts: Parts
    scorer: str
    """Who labels, for DeepLabCut."""
    films: dict[str, int]
    """Path of each film with suggestions -> its frames."""
