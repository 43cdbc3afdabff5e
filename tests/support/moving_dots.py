"""A network that finds coloured dots, frames of dots that move, and videos of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from fasthg.inference.locator import Found, LocatorSettings

PARTS = ("red", "green", "blue")
SIZE = (256, 192)
OFFSETS = np.array([[0, -18], [16, 12], [-16, 12]], float)


class Dots:
    """Heatmaps (1, n, 3, cells, cells): how red, green and blue each cell is."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        values = images.permute(0, 3, 1, 2).float() / 255
        # A cell's value is that around its corner: a keypoint at u peaks in cell u.
        return functional.avg_pool2d(functional.pad(values, (2, 1, 2, 1)), 4)[None]


class DotsLocator:
    """Finds the animals of dots by their red ones; sees none in the frames `blind`.

    Frames are counted, so one source at a time, from its beginning; a resumed one is not blind.
    """

    weights = "dots"

    def __init__(self, most: int = 1, blind: Iterable[int] = ()) -> None:
        self.settings = LocatorSettings(
            most=most,
            sizes=(0.1, 0.2, 0.4),
            margin=(15 / SIZE[0], 15 / SIZE[1]),
            pose_scores=(0.8, 0.9),
        )
        self._blind, self._frame = set(blind), 0

    def find(self, images: Sequence[np.ndarray | None], most: int) -> list[Found]:
        """As `Locator.find`; images are BGR."""
        found = []
        for image in images:
            self._frame += 1
            if image is None or self._frame - 1 in self._blind:
                found.append(Found.nothing())
                continue
            red = (image[..., 2] > 127) & (image[..., 1] < 60)
            _, _, _, centres = cv2.connectedComponentsWithStats(red.astype(np.uint8))
            boxes = [
                [*(c + 0.5 - OFFSETS[0] - 30), *(c + 0.5 - OFFSETS[0] + 30)] for c in centres[1:]
            ][:most]
            boxes_px = np.array(boxes, np.float64).reshape(-1, 4).clip(0, [*SIZE, *SIZE])
            ones = np.ones(len(boxes_px))
            found.append(Found(boxes_px, ones, -ones.astype(np.int64)))
        return found


def dots(centre: Sequence[float] | None, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame, BGR, with the three dots around a centre in image px; black without one."""
    width, height = size
    image = np.zeros((height, width, 3))
    if centre is not None:
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        for part, (px, py) in enumerate(OFFSETS + centre):
            image[..., 2 - part] = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 5.0**2))
    return np.rint(255 * image).astype(np.uint8)


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Callable[[int], int] = lambda number: number,
) -> Path:
    """A video of BGR frames; `times` gives a frame's time in 1 / rate s."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = None
        for number, image in enumerate(frames):
            if stream is None:
                given = options if options is not None else {"crf": "8"}
                stream = container.add_stream(codec, rate=rate, options=given)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = times(number), Fraction(1, rate)
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
    return path
