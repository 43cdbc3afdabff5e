"""Synthetic data set: two mice in a cage, seen from above, in MARS' format.

For trying out training, for benchmarks of any size and for tests without data. A frame is a pure
function of (seed, split, number, size): the same on every machine but for the last bit of a blur.
Left and right parts look alike, as on real mice: only where they lie tells them apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import box_around
from fasthg.data.convert.splits import SPLITS
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.synthetic.cage import SCENES, Image, scene, sensor
from fasthg.data.synthetic.mouse import PART_NAMES, Mouse, paint, pose, random_look

__all__ = ["ANIMALS", "PART_NAMES", "Frame", "make_record", "render", "write_dataset"]

ANIMALS = ("black", "white")
ALIKE = ("black", "black")
APART = 0.4
"""Least distance of two mice in body lengths: they touch, and parts of one are covered at times."""
CONTACT = 0.05
"""The same where one may lie on the other, as in the films."""
_JPEG_QUALITY = 90
_MOST_FRAMES = 1_000_000
"""Of a split: numbers of frames are unique in the data set."""


@dataclass(frozen=True)
class Frame:
    """image: (height, width, 3) uint8 BGR; keypoints: (2, 7, 2) float32, image px, black mouse
    first, parts as in PART_NAMES; visibility: (2, 7) uint8, 1 where the other mouse lies on top."""

    image: Image
    keypoints: npt.NDArray[np.float32]
    visibility: npt.NDArray[np.uint8]


def render(
    seed: int,
    split: str,
    number: int,
    size: tuple[int, int] = (512, 384),
    kinds: tuple[str, str] = ANIMALS,
    nearest: float = APART,
) -> Frame:
    """Draw frame `number` of `split`; `size` is (width, height) in px, at least 128 each.

    kinds: colours of the two mice. nearest: least distance of their middles, body lengths.
    """
    width, height = size
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    canvas = scene(seed, int(rng.integers(SCENES)), size).copy()
    length = 0.27 * min(width, height * 4 / 3) * rng.uniform(0.85, 1.15)
    mice = _place(rng, length, size, kinds, nearest)
    below, above = rng.permutation(2)
    paint(canvas, mice[below], random_look(rng, kinds[below]))
    cover = paint(canvas, mice[above], random_look(rng, kinds[above]))
    gain = rng.uniform(0.8, 1.15)
    corner = int(rng.integers(height)), int(rng.integers(width))
    sharpness, grain = rng.uniform(0.4, 0.9), rng.uniform(1, 4)
    image = sensor(canvas * np.float32(gain), corner, sharpness, grain)

    keypoints = np.stack([mouse.keypoints for mouse in mice]).astype(np.float32)
    visibility = np.full(keypoints.shape[:2], 2, np.uint8)
    x, y = np.round(keypoints[below]).astype(int).T
    covered = cover[y.clip(0, height - 1), x.clip(0, width - 1)] > 127
    visibility[below, covered] = 1
    return Frame(image, keypoints, visibility)


def _place(
    rng: np.random.Generator,
    length: float,
    size: tuple[int, int],
    kinds: tuple[str, str],
    nearest: float,
) -> list[Mouse]:
    """Two mice within the image, in half of the frames close to each other."""
    low = np.full(2, 0.06 * min(size))
    high = np.array(size) - low
    mice: list[Mouse] = []
    close = rng.random() < 0.5
    for name in kinds:
        for attempt in range(200):
            centre = rng.uniform(low, high)
            if mice and close and attempt < 100:
                angle = rng.uniform(0, 2 * np.pi)
                away = rng.uniform(nearest + 0.05, 1.0) * length
                centre = mice[0].centre + away * np.array([np.cos(angle), np.sin(angle)])
            mouse = pose(rng, name, centre, length)
            inside = (mouse.keypoints > low).all() and (mouse.keypoints < high).all()
            near = min((float(np.hypot(*(mouse.centre - m.centre))) for m in mice), default=np.inf)
            if inside and near > nearest * length:
                break
        else:
            # Small images leave little space: the middle always has some.
            mouse = pose(rng, name, np.array(size) / 2, 0.5 * length)
        mice.append(mouse)
    return mice


def make_record(
    seed: int,
    split: str,
    number: int,
    size: tuple[int, int] = (512, 384),
    kinds: tuple[str, str] = ANIMALS,
    nearest: float = APART,
) -> Record:
    """The frame as a record with two objects, `kinds[0]` first; arguments as of `render`."""
    frame = render(seed, split, number, size, kinds, nearest)
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
        number=[*SPLITS, split].index(split) * _MOST_FRAMES + number,
        filename=f"{split}{number:06d}.jpg",
        path="synthetic",
        bbox=np.stack([box_around(points) for points in keypoints]),
        keypoints=keypoints,
        visibility=frame.visibility,
        bbox_label=(0, ANIMALS.index(kinds[1])),
        bbox_text=kinds,
    )


def write_dataset(
    out: Path,
    *,
    seed: int,
    frames: Mapping[str, int],
    size: tuple[int, int] = (512, 384),
    kinds: tuple[str, str] = ANIMALS,
    nearest: float = APART,
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
            write_frames(path, _payloads(seed, split, numbers, size, kinds, nearest))
            written.append(path)
    return written


def _payloads(
    seed: int,
    split: str,
    numbers: range,
    size: tuple[int, int],
    kinds: tuple[str, str],
    nearest: float,
) -> Iterator[bytes]:
    for number in numbers:
        yield encode(make_record(seed, split, number, size, kinds, nearest))
