"""What surrounds the synthetic animals: an empty cage, and the camera's blur and noise."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.synthetic.mouse import Array, blur

Image = npt.NDArray[np.uint8]

SCENES = 12
"""Cages of one seed."""


@functools.lru_cache(maxsize=2 * SCENES)
def scene(seed: int, number: int, size: tuple[int, int]) -> Array:
    """An empty cage, (height, width, 3) float32 BGR 0..255: floor, bedding, walls, uneven light."""
    width, height = size
    rng = np.random.default_rng([seed, 0x5CE2E, number])
    colour = rng.uniform(105, 175) * np.array([0.88, 0.97, 1.0]) * rng.uniform(0.96, 1.04, 3)
    floor = np.broadcast_to(colour, (height, width, 3)).astype(np.float32).copy()
    for scale, strength in ((0.2, 9.0), (0.05, 6.0), (0.012, 5.0)):
        noise = rng.normal(size=(height, width)).astype(np.float32)
        noise = blur(noise, scale * min(size))
        floor += (strength / max(float(noise.std()), 1e-6) * noise)[..., None]
    chip = 0.012 * min(size)
    for _ in range(int(rng.uniform(250, 900))):
        at, angle = rng.uniform((0, 0), size), rng.uniform(0, np.pi)
        along = chip * rng.uniform(0.4, 1.6) * np.array([np.cos(angle), np.sin(angle)])
        shade = colour * rng.uniform(0.72, 1.25)
        ends = [tuple(int(v) for v in np.round(16 * p)) for p in (at - along, at + along)]
        cv2.line(floor, ends[0], ends[1], shade.tolist(), int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    floor = blur(floor, 0.7)

    margin = int(0.045 * min(size))
    wall = np.ones((height, width), np.float32)
    wall[margin:-margin, margin:-margin] = 0
    wall = blur(wall, 1.2)[..., None]
    grey = rng.uniform(60, 200)
    floor = floor * (1 - wall) + (0.35 * floor + 0.65 * grey) * wall
    edge = blur(wall[..., 0], 0.5 * margin)[..., None]
    floor *= 1 - 0.28 * edge * (1 - wall)

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = rng.uniform(0.2, 0.8, 2) * size
    distance = np.hypot(x - centre[0], y - centre[1]) / np.hypot(width, height)
    tilt = (x / width - 0.5) * rng.uniform(-0.2, 0.2) + (y / height - 0.5) * rng.uniform(-0.2, 0.2)
    cage: Array = floor * (1.08 - 0.45 * distance**2 + tilt)[..., None]
    cage.flags.writeable = False
    return cage


@functools.lru_cache(maxsize=4)
def _noise(size: tuple[int, int]) -> Array:
    """A plane of N(0, 1), (2 height, 2 width, 3), alike in all channels: each frame takes a window
    of it."""
    plane = np.random.default_rng(7).normal(size=(2 * size[1], 2 * size[0])).astype(np.float32)
    return np.repeat(plane[..., None], 3, axis=2)


def sensor(canvas: Array, corner: tuple[int, int], sigma: float, strength: float) -> Image:
    """The camera's blur and noise.

    canvas: (height, width, 3) float32 BGR 0..255. corner: row and column below height and width,
    where the window of noise begins. sigma: of the blur, px. strength: of the noise, levels.
    Returns (height, width, 3) uint8.
    """
    height, width = canvas.shape[:2]
    top, left = corner
    seen = blur(canvas, sigma)
    seen += strength * _noise((width, height))[top : top + height, left : left + width]
    image: Image = np.clip(seen, 0, 255, out=seen).astype(np.uint8)
    return image
