"""Rows of animals of three parts, and how they are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fasthg.inference.video.painter import Style
from fasthg.inference.video.row_store import Rows

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STYLE = Style(("nose", "left ear", "tail"), (RED, GREEN, BLUE), (), 0.5)
WIDTH, HEIGHT = 640, 480


def rows(points: np.ndarray, animals: tuple[str, ...] = ("animal1",), **given: object) -> Rows:
    """points: (frames, animals, parts, 2)."""
    frames, count, parts, _ = points.shape
    low, high = np.nanmin(points, axis=2) - 20, np.nanmax(points, axis=2) + 20
    made = Rows(
        source=Path("film.mp4"),
        names=(),
        animals=animals,
        parts=STYLE.parts,
        times=np.arange(frames) / 25,
        keypoints=points,
        scores=np.ones((frames, count, parts), np.float32),
        boxes=np.concatenate([low, high], axis=-1),
        sizes=np.full((frames, 2), (WIDTH, HEIGHT), np.int32),
        image_ids={},
    )
    return replace(made, **given)


def pose(x: float, y: float) -> np.ndarray:
    return np.array([[x, y], [x + 60.3, y + 10.0], [x + 40.0, y + 90.6]])
