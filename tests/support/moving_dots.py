"""A network that finds coloured dots, frames of dots that move, and videos of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

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
