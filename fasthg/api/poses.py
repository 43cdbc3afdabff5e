"""Poses as Python gets them: of one frame, of several images, of a film."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fasthg.errors import EnvironmentFault

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class FramePoses:
    """The animals of one frame; NaN where an animal is not there.

    Coordinates are image px from the upper left corner of the upper left pixel, whose centre is at
    0.5, 0.5.
    """

    frame: int
    """Its number, from 0."""
    time: float
    """Seconds from the film's zero; NaN for images."""
    animals: tuple[str, ...]
    parts: tuple[str, ...]
    keypoints: npt.NDArray[np.float64]
    """(animals, parts, 2) x, y."""
    scores: npt.NDArray[np.float32]
    """(animals, parts) height of the heatmap's peak, about 1 for a sure part."""
    boxes: npt.NDArray[np.float64]
    """(animals, 4) x1 y1 x2 y2 that each animal was looked for in, before padding."""

    def table(self) -> pandas.DataFrame:
        """See `PoseList.table`."""
        return _table([self])


class PoseList(list[FramePoses]):
    """Poses of several images."""

    def table(self) -> pandas.DataFrame:
        """One row for each frame, animal and part: frame, time_s, animal, part, x, y, score.

        These are the columns of `fasthg predict --to csv`.

        Raises:
            EnvironmentFault: pandas is not installed.
        """
        return _table(self)


class PoseStream(Iterator[FramePoses]):
    """Poses of a film, made while they are read; to be read once.

    A stream that is not read to its end is closed by `close`, by `with`, or when it is forgotten.
    """

    def __init__(self, frames: Generator[FramePoses]) -> None:
        self._frames = frames

    def __iter__(self) -> PoseStream:
        return self

    def __next__(self) -> FramePoses:
        return next(self._frames)

    def __enter__(self) -> PoseStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads that decode and predict."""
        self._frames.close()

    def table(self) -> pandas.DataFrame:
        """All frames that were not read yet; see `PoseList.table`."""
        return _table(self)


def _table(frames: Iterable[FramePoses]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise EnvironmentFault("table: needs pandas; run: pip install pandas") from None
    read = list(frames)
    columns = ["frame", "time_s", "animal", "part", "x", "y", "score"]
    if not read:
        return pandas.DataFrame(columns=columns)
    tables = []
    for pose in read:
        animals, parts = len(pose.animals), len(pose.parts)
        tables.append(
            {
                "frame": np.full(animals * parts, pose.frame),
                "time_s": np.full(animals * parts, pose.time),
                "animal": np.repeat(np.array(pose.animals, object), parts),
                "part": np.tile(np.array(pose.parts, object), animals),
                "x": pose.keypoints[..., 0].ravel(),
                "y": pose.keypoints[..., 1].ravel(),
                "score": pose.scores.ravel(),
            }
        )
    return pandas.DataFrame({c: np.concatenate([table[c] for table in tables]) for c in columns})
