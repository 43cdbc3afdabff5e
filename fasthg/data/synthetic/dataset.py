"""Synthetic data set: two mice in a cage, seen from above, in MARS' format.

For trying out training, for benchmarks of any size and for tests without data. A frame is a pure
function of (seed, split, number, size): the same on every machine but for the last bit of a blur.
Left and right parts look alike, as on real mice: only where they lie tells them apart.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import box_around
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.synthetic.mouse import PART_NAMES, Mouse, blur, paint, pose

Image = npt.NDArray[np.uint8]

__all__ = ["ANIMALS", "PART_NAMES", "Frame", "make_record", "render", "write_dataset"]

ANIMALS = ("black", "white")
_JPEG_QUALITY = 90
_SCENES = 12


@dataclass(frozen=True)
class Frame:
    """image: (height, width, 3) uint8 BGR; keypoints: (2, 7, 2) float32, image px, black mouse
    first, parts as in PART_NAMES; visibility: (2, 7) uint8, 1 where the other mouse lies on top."""

    image: Image
    keypoints: npt.NDArray[np.float32]
    visibility: npt.NDArray[np.uint8]


def render(seed: int, split: str, number: int, size: tuple[int, int] = (512, 384)) -> Frame:
    """Draw frame `number` of `split`; `size` is (width, height) in px, at least 128 each."""
    width, height = size
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    canvas = _scene(seed, int(rng.integers(_SCENES)), size).copy()
    length = 0.27 * min(width, height * 4 / 3) * rng.uniform(0.85, 1.15)
    mice = _place(rng, length, size)
    below, above = rng.permutation(2)
    paint(canvas, mice[below], rng)
    cover = paint(canvas, mice[above], rng)
    gain = rng.uniform(0.8, 1.15)
    image = _sensor(canvas * np.float32(gain), rng)

    keypoints = np.stack([mouse.keypoints for mouse in mice]).astype(np.float32)
    visibility = np.full(keypoints.shape[:2], 2, np.uint8)
    x, y = np.round(keypoints[below]).astype(int).T
    covered = cover[y.clip(0, height - 1), x.clip(0, width - 1)] > 127
    visibility[below, covered] = 1
    return Frame(image, keypoints, visibility)


def _place(rng: np.random.Generator, length: float, size: tuple[int, int]) -> list[Mouse]:
    """Two mice within the image, in half of the frames close to each other."""
    low = np.full(2, 0.06 * min(size))
    high = np.array(size) - low
    mice: list[Mouse] = []
    close = rng.random() < 0.5
    for name in ANIMALS:
        for attempt in range(200):
            centre = rng.uniform(low, high)
            if mice and close and attempt < 100:
                angle = rng.uniform(0, 2 * np.pi)
                away = rng.uniform(0.45, 1.0) * length
                centre = mice[0].centre + away * np.array([np.cos(angle), np.sin(angle)])
            mouse = pose(rng, name, centre, length)
            inside = (mouse.keypoints > low).all() and (mouse.keypoints < high).all()
            apart = not mice or float(np.hypot(*(mouse.centre - mice[0].centre))) > 0.4 * length
            if inside and apart:
                break
        else:
            # Small images leave little space: the middle always has some.
            mouse = pose(rng, name, np.array(size) / 2, 0.5 * length)
        mice.append(mouse)
    return mice


@functools.lru_cache(maxsize=2 * _SCENES)
def _scene(seed: int, number: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
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
    scene: npt.NDArray[np.float32] = floor * (1.08 - 0.45 * distance**2 + tilt)[..., None]
    scene.flags.writeable = False
    return scene


@functools.lru_cache(maxsize=4)
def _noise(size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A plane of N(0, 1), (2 height, 2 width): each frame takes a window of it."""
    return np.random.default_rng(7).normal(size=(2 * size[1], 2 * size[0])).astype(np.float32)


def _sensor(canvas: npt.NDArray[np.float32], rng: np.random.Generator) -> Image:
    height, width = canvas.shape[:2]
    top, left = int(rng.integers(height)), int(rng.integers(width))
    noise = _noise((width, height))[top : top + height, left : left + width, None]
    canvas = blur(canvas, float(rng.uniform(0.4, 0.9)))
    image: Image = np.clip(canvas + float(rng.uniform(1, 4)) * noise, 0, 255).astype(np.uint8)
    return image


def make_record(seed: int, split: str, number: int, size: tuple[int, int] = (512, 384)) -> Record:
    """The frame as a record with two objects, black mouse first."""
    frame = render(seed, split, number, size)
    width, height = size
    keypoints = (frame.keypoints / np.array(size)).astype(np.float32)
    ok, encoded = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV cannot encode an image of {width}x{height}")
    return Record(
        encoded=encoded.tobytes(),
        width=width,
        height=height,
        image_id=f"{split}{number:06d}",
        filename=f"{split}{number:06d}.jpg",
        path="synthetic",
        bbox=np.stack([box_around(points) for points in keypoints]),
        keypoints=keypoints,
        visibility=frame.visibility,
    )


def write_dataset(
    out: Path,
    *,
    seed: int,
    frames: Mapping[str, int],
    size: tuple[int, int] = (512, 384),
    shard_size: int = 1000,
) -> list[Path]:
    """Write `frames[split]` frames of each split as `{split}_dataset-0000i-of-0000n` in `out`.

    Returns the files written, each complete or absent. Raises ValueError for sizes below 128 px.
    """
    if min(size) < 128:
        raise ValueError(f"size {size[0]}x{size[1]}: a synthetic frame needs at least 128x128 px")
    written = []
    for split, count in frames.items():
        shards = max(1, -(-count // shard_size))
        for shard in range(shards):
            numbers = range(shard * shard_size, min(count, (shard + 1) * shard_size))
            path = Path(out) / f"{split}_dataset-{shard:05d}-of-{shards:05d}"
            write_frames(path, _payloads(seed, split, numbers, size))
            written.append(path)
    return written


def _payloads(seed: int, split: str, numbers: range, size: tuple[int, int]) -> Iterator[bytes]:
    for number in numbers:
        yield encode(make_record(seed, split, number, size))
