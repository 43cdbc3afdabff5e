"""Rows of a source as they are finished, in a file of their own next to the results.

`.<name>.rows`: a line of JSON that says what the rows were made from, then one record of fixed
length a frame. It is written through after every batch, so that whatever ends a prediction leaves
the finished rows; `resume` goes on after them. It is removed when all results are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.errors import DataError, FasthgError
from fasthg.inference.video.keypoints import Poses

_FORMAT = 1


@dataclass(frozen=True)
class Rows:
    """All poses of a source, for the writers of result files; NaN as in `Poses`."""

    source: Path
    names: tuple[str, ...]
    """File names of images; empty for a video."""
    animals: tuple[str, ...]
    parts: tuple[str, ...]
    times: npt.NDArray[np.float64]
    """(frames,) seconds; NaN for images."""
    keypoints: npt.NDArray[np.float64]
    """(frames, animals, parts, 2) image px."""
    scores: npt.NDArray[np.float32]
    """(frames, animals, parts)."""
    boxes: npt.NDArray[np.float64]
    """(frames, animals, 4) x1 y1 x2 y2, image px."""
    sizes: npt.NDArray[np.int32]
    """(frames, 2) width and height, px; 0 without image."""
    image_ids: Mapping[int, int]
    """Frame -> id of its image in COCO; the frame itself where it has none."""

    def __len__(self) -> int:
        return len(self.times)


class RowStore:
    """The rows file of one source, open for appending."""

    def __init__(
        self, path: Path, animals: int, parts: int, made_from: Mapping[str, Any], resume: bool
    ) -> None:
        """made_from: what must be the same for rows to be kept. resume: keep them.

        Raises:
            DataError: the rows there were made from something else.
            FasthgError: the folder cannot be written.
        """
        self.path = path
        self._record = np.dtype(
            [
                ("time", "<f8"),
                ("keypoints", "<f8", (animals, parts, 2)),
                ("scores", "<f4", (animals, parts)),
                ("boxes", "<f8", (animals, 4)),
                ("sizes", "<i4", (2,)),
            ]
        )
        made = json.loads(json.dumps({"format": _FORMAT, **made_from}))
        self._head = (json.dumps(made) + "\n").encode()
        self.done = self._kept(made) if resume and path.exists() else 0
        """Rows that were there."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if self.done else "wb")
            if not self.done:
                self._file.write(self._head)
            # A row that a full disk or a kill cut off goes.
            self._file.truncate(len(self._head) + self.done * self._record.itemsize)
            self._file.seek(0, 2)
        except OSError as error:
            raise FasthgError(
                f"{path}: cannot write ({error.strerror}); give another folder with -o"
            ) from None

    def _kept(self, made: Mapping[str, Any]) -> int:
        with self.path.open("rb") as file:
            line = file.readline()
            try:
                found = json.loads(line)
            except ValueError:
                return 0
            other = [key for key in made if found.get(key) != made[key]]
            if other:
                raise DataError(
                    f"{self.path}: these rows were made with another {other[0]}; "
                    "leave out --resume to start anew"
                )
            return (self.path.stat().st_size - len(line)) // self._record.itemsize

    def append(self, poses: Poses) -> None:
        """Add rows; they are in the file afterwards.

        Raises:
            FasthgError: the disk is full.
        """
        rows = np.zeros(len(poses), self._record)
        rows["time"], rows["keypoints"] = poses.times, poses.keypoints
        rows["scores"], rows["boxes"], rows["sizes"] = poses.scores, poses.boxes, poses.sizes
        try:
            self._file.write(rows.tobytes())
            self._file.flush()
        except OSError as error:
            raise FasthgError(
                f"{self.path}: cannot write ({error.strerror}); free disk space, then --resume"
            ) from None

    def rows(
        self,
        source: Path,
        names: Sequence[str],
        animals: Sequence[str],
        parts: Sequence[str],
        image_ids: Mapping[int, int],
    ) -> Rows:
        """All rows so far, with what they are of."""
        found = np.fromfile(self.path, self._record, offset=len(self._head))
        return Rows(
            *(source, tuple(names[: len(found)]), tuple(animals), tuple(parts)),
            times=found["time"],
            keypoints=found["keypoints"],
            scores=found["scores"],
            boxes=found["boxes"],
            sizes=found["sizes"],
            image_ids=image_ids,
        )

    def remove(self) -> None:
        """Close and delete the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
