"""Writes videos by PyAV, H.264 where there is an encoder of it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.errors import EnvironmentFault
from fasthg.files import write_atomically
from fasthg.inference.video.video_file import import_av

_CODECS = ("libx264", "libopenh264", "mpeg4")
# Times are written in units of this, fine enough for every rate of frames.
TICK = Fraction(1, 90000)


def encoder(
    av: Any, container: Any, path: Path, rate: Fraction | int, size: tuple[int, int]
) -> Any:
    """A stream of `container` for pictures with times in units of TICK.

    path: named in the error. rate: frames a second. size: width and height, px, both even: chroma
    of yuv420p is half as large each way.

    Raises:
        EnvironmentFault: PyAV has no encoder.
    """
    for codec in _CODECS:
        if codec not in av.codecs_available:
            continue
        stream = container.add_stream(codec, rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        if codec == "mpeg4":
            # Its clock has 16 bits.
            stream.codec_context.time_base = Fraction(1, 1000)
        return stream
    raise EnvironmentFault(
        f"{path}: PyAV has no encoder of {', '.join(_CODECS)}; install PyAV's own wheel"
    )


def write_video(
    path: Path, images: Iterator[npt.NDArray[np.uint8]], size: tuple[int, int], rate: int
) -> None:
    """Write BGR uint8 images (height, width, 3) as an mp4, atomically, as they come.

    size: width and height, px, both even. rate: frames a second.

    Raises:
        EnvironmentFault: PyAV is missing or has no encoder.
        FasthgError: as `write_atomically`. What `images` raises passes unchanged.
    """
    av = import_av(path)

    def write(at: Path) -> None:
        with av.open(str(at), "w", format="mp4") as container:
            stream = encoder(av, container, path, rate, size)
            for number, image in enumerate(images):
                picture = av.VideoFrame.from_ndarray(image, format="bgr24")
                picture.pts, picture.time_base = round(number / (rate * TICK)), TICK
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))

    write_atomically(path, write)
