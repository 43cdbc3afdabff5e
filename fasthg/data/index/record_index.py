"""RecordIndex: the annotations of a data set as arrays, and the position of each image in its file.

One pass reads every record once; images stay on disk. The items of an index are animals
("instances"), not frames.
"""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fasthg.data.forks import in_processes
from fasthg.data.index import cache as index_cache
from fasthg.data.index.builder import Fault, IndexBuilder, index_file
from fasthg.data.records.schema import readable
from fasthg.errors import DataError

# Open files per thread: data sets have hundreds of shards, systems allow 256 to 1024 open files.
_OPEN_FILES = 16
# Fields that are no arrays and therefore are not cached.
_NOT_KEPT = ("files", "num_parts", "_open")
# Fields that are bytes, and arrays in the cache.
_TEXTS = ("_ids", "_names")
# Below this many bytes one process is done before others have started.
_WORTH_PROCESSES = 1 << 25


def expand(patterns: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Paths of the files that match the patterns: sorted within a pattern, without duplicates.

    A pattern is a path or a glob; a path that exists is never read as a glob. Raises DataError for
    a pattern without a match and for a folder.
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    files: dict[str, None] = {}
    for item in patterns:
        pattern = os.path.expanduser(os.fspath(item))
        if os.path.isdir(pattern):
            hint = os.path.join(pattern, "train_dataset-*")
            raise DataError(f"{pattern}: is a folder; give files or a glob, for example {hint}")
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in paths if not os.path.isdir(path)]
        if not paths:
            what = "no file matches this glob" if glob.has_magic(pattern) else "no such file"
            raise DataError(f"{pattern}: {what}; check DATA in the config or the path given")
        files.update(dict.fromkeys(paths))
    if not files:
        raise DataError("no data files given; set DATA in the config")
    return list(files)


def _read(
    files: list[str],
    num_parts: int,
    verify_crc: bool,
    faults: list[Fault] | None,
    processes: int,
) -> dict[str, Any]:
    """Arrays of the index of `files`, by name of the field."""
    builder = IndexBuilder(num_parts, faults)
    if processes > 1 and faults is None and _bytes_of(files) >= _WORTH_PROCESSES:
        read = partial(index_file, num_parts=num_parts, verify_crc=verify_crc)
        for file_index in in_processes(read, files, processes):
            builder.add_file_index(file_index)
    else:
        for path in files:
            builder.add_file(path, verify_crc=verify_crc)
    return builder.finish(files)


def _bytes_of(files: list[str]) -> int:
    """Total size of the files that exist; a missing one raises when it is read."""
    return sum(os.path.getsize(path) for path in files if os.path.exists(path))


class _OpenFiles(threading.local):
    """Open files of one thread, least recently used closed first.

    Threads have handles of their own because a handle has one read position.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.handles: dict[str, BinaryIO] = {}

    def get(self, path: str) -> BinaryIO:
        if self.process != os.getpid():
            # A forked child shares file positions with its parent: it opens files of its own.
            self.__init__()  # type: ignore[misc]
        handle = self.handles.pop(path, None)
        if handle is None:
            if len(self.handles) >= _OPEN_FILES:
                self.handles.pop(next(iter(self.handles))).close()
            # Unbuffered: a JPEG is read once and in full.
            handle = open(path, "rb", buffering=0)  # noqa: SIM115  closed by age or with the thread
        self.handles[path] = handle
        return handle


@dataclass(eq=False, repr=False)
class RecordIndex:
    """Annotations of R records with N instances (animals) of P parts.

    files: the TFRecord files; first_record (files,) int64: index of each file's first record.
    Per record: file_id (R,) int32 into `files`; jpeg_offset (R,) int64 and jpeg_length (R,) int32,
    the image's bytes in that file; width, height (R,) int32, px; image_number (R,) int64, the
    frame's `image/id` as an integer, -1 where it is none.
    Per instance: record (N,) int32; object_number (N,) int16 within its record;
    bbox (N, 4) float32, x1 y1 x2 y2 divided by image width and height;
    keypoints (N, P, 2) float32, image px, NaN where unlabelled; visibility (N, P) uint8, 0
    unlabelled, 1 occluded, 2 visible; area (N,) float32, image px², the box's where none is given;
    name (N,) int16 into `names`, -1 where the record names no animal.
    """

    files: tuple[str, ...]
    num_parts: int
    first_record: npt.NDArray[np.int64]
    file_id: npt.NDArray[np.int32]
    jpeg_offset: npt.NDArray[np.int64]
    jpeg_length: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    image_number: npt.NDArray[np.int64]
    record: npt.NDArray[np.int32]
    object_number: npt.NDArray[np.int16]
    bbox: npt.NDArray[np.float32]
    keypoints: npt.NDArray[np.float32]
    visibility: npt.NDArray[np.uint8]
    area: npt.NDArray[np.float32]
    name: npt.NDArray[np.int16]
    _ids: bytes
    _id_end: npt.NDArray[np.int64]
    _names: bytes
    _open: _OpenFiles = field(default_factory=_OpenFiles)

    @classmethod
    def build(
        cls,
        patterns: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        num_parts: int,
        *,
        verify_crc: bool = True,
        faults: list[Fault] | None = None,
        processes: int = 1,
    ) -> RecordIndex:
        """Read every record of the files that `patterns` (paths or globs) name, once.

        Raises DataError, one line with file, record and remedy: no file, a damaged or foreign file,
        annotated animals without boxes, counts that contradict each other, boxes that are not
        finite or less than a pixel wide or high, objects with more or fewer than `num_parts` parts,
        no animal at all. Damaged images raise nothing here: only their position is read. With
        `faults` only a missing file raises; every other fault is appended there and its record or
        animal left out of the index. `processes` read large data sets, one file each, unless
        `faults` is given.
        """
        files = expand(patterns)
        return cls(
            files=tuple(files),
            num_parts=num_parts,
            **_read(files, num_parts, verify_crc, faults, processes),
        )

    @classmethod
    def open(
        cls,
        patterns: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        num_parts: int,
        *,
        processes: int = 1,
    ) -> RecordIndex:
        """As `build`, but loaded from the disk cache of `index.cache` where it has an entry.

        Arrays may be read-only. Processes that open the same files at once wait for the first.
        """
        files = expand(patterns)
        entry = index_cache.entry_of(files, num_parts)
        if entry is None:
            return cls.build(files, num_parts, processes=processes)
        names = [each.name for each in fields(cls) if each.name not in _NOT_KEPT]
        kept = index_cache.load(entry, names)
        if kept is None:
            with index_cache.locked(entry):
                kept = index_cache.load(entry, names)
                if kept is None:
                    kept = _read(files, num_parts, True, None, processes)
                    # Not where a file changed meanwhile: either state of it may have been read.
                    if index_cache.entry_of(files, num_parts) == entry:
                        texts = {name: np.frombuffer(kept[name], np.uint8) for name in _TEXTS}
                        index_cache.store(entry, kept | texts)
                        # Mapped arrays are shared between processes.
                        kept = index_cache.load(entry, names) or kept
        kept |= {name: bytes(kept[name]) for name in _TEXTS}
        return cls(files=tuple(files), num_parts=num_parts, **kept)

    def __len__(self) -> int:
        return len(self.record)

    def __repr__(self) -> str:
        return (
            f"RecordIndex({len(self)} instances of {self.num_parts} parts in {self.num_records} "
            f"records of {len(self.files)} files)"
        )

    @property
    def num_records(self) -> int:
        """R: number of records, with those without animals."""
        return len(self.file_id)

    @property
    def names(self) -> tuple[str, ...]:
        """What the records call their animals: classes or individuals, in order of appearance."""
        return tuple(n.decode(errors="replace") for n in self._names.split(b"\0") if n)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and ids in memory."""
        values = vars(self).values()
        arrays = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        return int(arrays) + len(self._ids) + len(self._names)

    def fingerprint(self) -> str:
        """Hexadecimal digest of all annotations, image sizes and ids in their order.

        Independent of the folder of the files and of their division into shards.
        """
        digest = hashlib.blake2b(self._ids, digest_size=16)
        for name in (
            *("_id_end", "jpeg_length", "width", "height", "record"),
            *("bbox", "keypoints", "visibility", "area"),
        ):
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()

    def jpeg(self, record: int) -> bytes:
        """Encoded image of a record, read from its file; safe in threads and forked processes.

        Raises DataError where the file vanished or became shorter.
        """
        path, length = self.files[self.file_id[record]], int(self.jpeg_length[record])
        try:
            handle = self._open.get(path)
            handle.seek(int(self.jpeg_offset[record]))
            data = handle.read(length)
        except OSError as error:
            raise DataError(
                f"{self.describe_record(record)}: {error.strerror or error}; check the file"
            ) from None
        if len(data) != length:
            raise DataError(
                f"{self.describe_record(record)}: the file became shorter; start again to index it"
            )
        return data

    def image_id(self, record: int) -> str:
        """What a record's frame is called: the name that fasthg's converters give it, or `image/id`
        of other writers; empty where the record has none."""
        return self._id_bytes(record).decode(errors="replace")

    def _id_bytes(self, record: int) -> bytes:
        start = int(self._id_end[record - 1]) if record else 0
        return self._ids[start : int(self._id_end[record])]

    def describe_record(self, record: int) -> str:
        """Name of a record for messages: file, number within the file (from 0), image id."""
        file_id = int(self.file_id[record])
        number = int(record) - int(self.first_record[file_id])
        name = os.path.basename(self.files[file_id])
        return f"{name} record {number} (id '{readable(self._id_bytes(record))}')"

    def describe(self, instance: int) -> str:
        """Name of an instance for messages: its record and its number among the objects there."""
        record = int(self.record[instance])
        return f"{self.describe_record(record)}, object {int(self.object_number[instance])}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=_OpenFiles())
