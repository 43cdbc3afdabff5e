"""Rows of a source as they are finished, in a file of their own next to the results.

`.<name>.rows`: a line of JSON that says what the rows were made from and of which file, then one
record of fixed length a frame. It is written through after every batch, so that whatever ends a
prediction leaves the finished rows; `resume` goes on after them. It is removed when all results are
written.

The file is locked while it is open. Every record carries a checksum of its number and content: what
a crash or another process left between the records is never read as a pose.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fasthg.errors import DataError, FasthgError
from fasthg.inference.video.keypoints import Poses

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = 2
_PATH = "path"


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
    first: int = 0
    """Number of the first row's frame."""
    skipped: int = 0
    """Rows at the beginning that stand for frames that were not asked for; they are empty."""

    def __len__(self) -> int:
        return len(self.times)

    def from_zero(self) -> Rows:
        """These rows after an empty one for each frame before the first, for files and drawings
        that know frames by their place."""
        if not self.first:
            return self

        def after(values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
            before = np.full((self.first, *values.shape[1:]), empty, values.dtype)
            return np.concatenate([before, values])

        return replace(
            self,
            names=("",) * self.first + self.names if self.names else (),
            times=after(self.times, np.nan),
            keypoints=after(self.keypoints, np.nan),
            scores=after(self.scores, np.nan),
            boxes=after(self.boxes, np.nan),
            sizes=after(self.sizes, 0),
            first=0,
            skipped=self.first,
        )


class RowStore:
    """The rows file of one source, open for appending by one process at a time."""

    def __init__(
        self,
        path: Path,
        source: Path,
        animals: int,
        parts: int,
        made_from: Mapping[str, Any],
        resume: bool,
    ) -> None:
        """source: its path is told of in the file; it may have moved since. made_from: what must be
        the same for rows to be kept. resume: keep them.

        Raises:
            DataError: the rows there were made from something else.
            FasthgError: the folder cannot be written, or another process predicts into the file.
        """
        self.path = path
        self._record = np.dtype(
            [
                ("check", "<u4"),
                ("time", "<f8"),
                ("keypoints", "<f8", (animals, parts, 2)),
                ("scores", "<f4", (animals, parts)),
                ("boxes", "<f8", (animals, 4)),
                ("sizes", "<i4", (2,)),
            ]
        )
        made = json.loads(json.dumps({"format": _FORMAT, **made_from}))
        self._head = (json.dumps({**made, _PATH: os.path.abspath(source)}) + "\n").encode()
        with contextlib.ExitStack() as stack:
            try:
                self._file = stack.enter_context(_locked(path))
                self.done = self._kept(made) if resume else 0
                """Rows that were there."""
                if not self.done:
                    self._file.truncate(0)
                    self._file.seek(0)
                    self._file.write(self._head)
                # A row that a full disk or a kill cut off goes.
                self._file.truncate(len(self._head) + self.done * self._record.itemsize)
                self._file.seek(0, os.SEEK_END)
            except OSError as error:
                raise FasthgError(
                    f"{path}: cannot write ({error.strerror}); give another folder with -o"
                ) from None
            stack.pop_all()
        self._rows = self.done

    def _kept(self, made: Mapping[str, Any]) -> int:
        """How many rows of the file can be kept: those before the first that is not whole."""
        self._file.seek(0)
        line = self._file.readline()
        found = _head(line)
        if found is None:
            return 0
        other = [key for key in made if found.get(key) != made[key]]
        if other:
            raise DataError(
                f"{self.path}: these rows were made with another {other[0]}; "
                "leave out --resume to start anew"
            )
        self._head = line  # it names another path, of another length, where the source was moved
        return self._whole(np.frombuffer(self._content(), self._record))

    def _content(self) -> bytes:
        """The file after its head, less a last record that was cut off."""
        self._file.flush()
        self._file.seek(len(self._head))
        content = self._file.read()
        return content[: len(content) // self._record.itemsize * self._record.itemsize]

    def _checks(self, rows: npt.NDArray[Any], first: int) -> npt.NDArray[np.uint32]:
        """Checksums of records, of which `first` is the number of the first one."""
        start = np.dtype(np.uint32).itemsize
        content = [row.tobytes()[start:] for row in rows]
        checks = [zlib.crc32(each, first + 1 + number) for number, each in enumerate(content)]
        return np.array(checks, np.uint32)

    def _whole(self, rows: npt.NDArray[Any]) -> int:
        """How many records from the first on are what was written."""
        wrong = np.flatnonzero(rows["check"] != self._checks(rows, 0))
        return int(wrong[0]) if len(wrong) else len(rows)

    def append(self, poses: Poses) -> None:
        """Add rows; they are in the file afterwards.

        Raises:
            FasthgError: the disk is full.
        """
        rows = np.zeros(len(poses), self._record)
        rows["time"], rows["keypoints"] = poses.times, poses.keypoints
        rows["scores"], rows["boxes"], rows["sizes"] = poses.scores, poses.boxes, poses.sizes
        rows["check"] = self._checks(rows, self._rows)
        try:
            self._file.write(rows.tobytes())
            self._file.flush()
        except OSError as error:
            raise FasthgError(
                f"{self.path}: cannot write ({error.strerror}); free disk space, then --resume"
            ) from None
        self._rows += len(rows)

    def rows(
        self,
        source: Path,
        names: Sequence[str],
        animals: Sequence[str],
        parts: Sequence[str],
        image_ids: Mapping[int, int],
        first: int = 0,
    ) -> Rows:
        """All rows so far, with what they are of. first: the number of the first one's frame.

        Raises:
            FasthgError: the file no longer holds what was written.
        """
        found = np.frombuffer(self._content(), self._record)
        if len(found) != self._rows or self._whole(found) != self._rows:
            raise FasthgError(
                f"{self.path}: row {self._whole(found)} is not what was written, another process "
                "or the disk changed it; predict again, into another folder with -o"
            )
        return Rows(
            *(source, tuple(names[first : first + len(found)]), tuple(animals), tuple(parts)),
            times=found["time"],
            keypoints=found["keypoints"],
            scores=found["scores"],
            boxes=found["boxes"],
            sizes=found["sizes"],
            image_ids=image_ids,
            first=first,
        )

    def remove(self) -> None:
        """Delete the file, and close it, which ends the lock."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What a full disk did not take is written once more by close; the error is told already.
        with contextlib.suppress(*(() if error is None else (OSError,))):
            self._file.close()


def rows_of_another(path: Path, source: Path, identity: str) -> str | None:
    """The source of the rows in a file, where there are some and they are of another source."""
    try:
        with path.open("rb") as file:
            head, rows = _head(file.readline()), file.read(1)
    except OSError:
        return None
    if head is None or not rows:
        return None
    # A source of the same identity was moved.
    if head.get(_PATH) == os.path.abspath(source) or head.get("source") == identity:
        return None
    return str(head.get(_PATH, "another source"))


def _head(line: bytes) -> dict[str, Any] | None:
    """What a file's first line says of its rows; None where it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _locked(path: Path) -> BinaryIO:
    """A file open for reading and writing, made where it is missing, locked until it is closed.

    On a file system without locks nothing is locked. The lock is of the open file, not of the
    process, so two predictions in threads of one process exclude each other too.

    Raises:
        FasthgError: another prediction holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise FasthgError(
                    f"{path}: another fasthg predicts into it; wait for its end or give another "
                    "folder with -o"
                ) from None
            except OSError:
                return file
        # Whoever held the lock may have removed the file since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()
