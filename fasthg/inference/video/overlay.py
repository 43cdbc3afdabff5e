"""Frames with their keypoints drawn in, as a video or as images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from fasthg.files import write_atomically
from fasthg.inference.video.frame import Frame, Source
from fasthg.inference.video.painter import Painter, Style
from fasthg.inference.video.pipeline import ahead
from fasthg.inference.video.row_store import Rows
from fasthg.inference.video.video_file import VideoSource
from fasthg.inference.video.video_writer import TICK, encoder

_AHEAD = 8


def overlay(source: Source, rows: Rows, path: Path, style: Style) -> None:
    """Draw all rows: a video to `path`, an mp4 with the source's times; images into the folder
    `path` as PNG, under the names of `drawing_names`.

    rows: from frame 0 on (`Rows.from_zero`).

    Raises:
        EnvironmentFault: PyAV has no encoder.
    """
    painter = Painter(rows, style)
    frames = ahead(_until(source.frames(rows.skipped), len(rows)), _AHEAD)
    with closing(frames):
        if isinstance(source, VideoSource):
            write_atomically(path, lambda at: _video(source, frames, painter, at))
            return
        names = drawing_names(source.names)
        for frame in frames:
            if frame.image is None:
                continue
            drawn = painter.draw(frame)
            encoded = cv2.imencode(".png", drawn)[1].tobytes()
            target = path / names[frame.number]
            write_atomically(target, lambda at, data=encoded: _put(at, data))  # type: ignore[misc]


def drawing_names(names: Sequence[str]) -> list[str]:
    """File names of the drawings of images, no two alike: a.jpg is drawn to a.png.

    Where that is the drawing of another image, the whole name is kept: a.jpg.png; a PNG keeps its
    own. Records may repeat a name, and the drawings are then numbered: a.jpg.2.png.
    """
    own = {name.casefold() for name in names if name.endswith(".png")}
    taken: set[str] = set()  # folded, as some file systems do
    times: Counter[str] = Counter()
    found = []
    for name in names:
        times[name] += 1
        plain = str(Path(name).with_suffix(".png"))
        choices = itertools.chain(
            [plain] if plain == name or plain.casefold() not in own else [],
            [f"{name}.png"],
            (f"{name}.{number}.png" for number in itertools.count(max(2, times[name]))),
        )
        found.append(next(each for each in choices if each.casefold() not in taken))
        taken.add(found[-1].casefold())
    return found


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _until(frames: Iterator[Frame], count: int) -> Iterator[Frame]:
    for frame in frames:
        if frame.number >= count:
            return
        yield frame


def _video(
    source: VideoSource,
    frames: Iterator[Frame],
    painter: Painter,
    path: Path,
) -> None:
    av = source.av
    # Chroma of yuv420p is half as large each way, so sides are made even.
    width, height = (side + side % 2 for side in source.size)
    with av.open(str(path), "w", format="mp4") as container:
        stream = encoder(av, container, source.path, source.rate or 25, (width, height))
        last, begin = -1, None
        for frame in frames:
            if begin is None:  # a part of a film begins at once
                begin = frame.time if frame.number and np.isfinite(frame.time) else 0.0
            image = frame.image
            if image is None or image.shape[1::-1] != source.size:
                image = np.zeros((source.size[1], source.size[0], 3), np.uint8)
            image = painter.draw(replace(frame, image=image))
            padded = cv2.copyMakeBorder(
                *(image, 0, height - source.size[1], 0, width - source.size[0]),
                cv2.BORDER_REPLICATE,
            )
            picture = av.VideoFrame.from_ndarray(padded, format="bgr24")
            at = round((frame.time - begin) / TICK) if np.isfinite(frame.time) else last + 3600
            last = max(last + 1, at)
            picture.pts, picture.time_base = last, TICK
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
