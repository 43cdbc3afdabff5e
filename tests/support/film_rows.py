"""Poses of a film that nobody filmed: animals of four parts that walk steadily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fasthg.inference.video.row_store import Rows

SHAPE = np.array([[-20.0, -16], [0, 0], [20, 16], [0, 24]])
PARTS = ("nose", "neck", "hip", "tail")


def film_rows(
    frames: int = 200, animals: int = 1, *, rate: float = 25, speed: float = 1.0, **changes: Any
) -> Rows:
    """Rows with a little noise, px; animals are 150 px apart. changes: fields in their stead."""
    random = np.random.default_rng(3)
    centres = 100 + speed * np.arange(frames)[:, None, None, None] * [1.0, 0.5]
    centres = centres + 150 * np.arange(animals)[:, None, None] * [0.0, 1.0]
    points = centres + SHAPE + random.normal(0, 0.3, (frames, animals, 4, 2))
    fields: dict[str, Any] = {
        "source": Path("film.mp4"),
        "names": (),
        "animals": tuple(f"animal{number + 1}" for number in range(animals)),
        "parts": PARTS,
        "times": np.arange(frames) / rate,
        "keypoints": points,
        "scores": (0.8 + random.normal(0, 0.02, (frames, animals, 4))).astype(np.float32),
        "boxes": np.concatenate([points.min(axis=2) - 5, points.max(axis=2) + 5], axis=-1),
        "sizes": np.full((frames, 2), 640, np.int32),
        "image_ids": {},
    }
    return Rows(**{**fields, **changes})
