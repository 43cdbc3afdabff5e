"""Builder of a `RecordIndex`: one pass over TFRecord files that collects annotations in arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fasthg.data.records.jpeg import jpeg_size
from fasthg.data.records.schema import (
    CountError,
    Layout,
    area_px,
    labelled,
    open_payload,
    readable,
    scan,
    visibility_array,
)
from fasthg.data.records.tfrecord import Damage, Frame, read_frames, salvage_frames
from fasthg.errors import DataError

# Records collected as raw bytes before they are converted to arrays: enough that the conversion
# costs next to nothing per record, few enough that the bytes need little memory.
_CHUNK = 4096
# More names than these are numbers of single animals rather than names that come again.
_MOST_NAMES = 256
_UNKNOWN_AREA = np.array([np.nan], "<f4").tobytes()


Kind = Literal["record", "counts", "box"]


class Fault(NamedTuple):
    """A record or an animal that was left out of an index, and why.

    kind: "record" unreadable, "counts" contradictory, "box" impossible. record: its row in the
    index; the row of an unreadable record has no image and no animal.
    """

    kind: Kind
    where: str
    cause: str
    record: int


class FileIndex(NamedTuple):
    """Annotations of one file, read by an IndexBuilder of its own."""

    columns: dict[str, list[npt.NDArray[Any]]]
    records: int
    ids: bytes
    names: tuple[bytes, ...]


def index_file(path: str, num_parts: int, verify_crc: bool) -> FileIndex:
    """Index of one file, for a worker process. Raises DataError as `RecordIndex.build` does."""
    builder = IndexBuilder(num_parts)
    builder.add_file(path, verify_crc=verify_crc)
    return FileIndex(builder.columns, builder.records, bytes(builder.ids), tuple(builder.names))


class IndexBuilder:
    """Collects annotation bytes by chunks, converts each to arrays, and joins these at the end.

    faults: list to append to instead of raising; the records and animals at fault are left out.
    """

    def __init__(self, num_parts: int, faults: list[Fault] | None = None) -> None:
        self.parts = num_parts
        self.faults = faults
        self.columns: dict[str, list[npt.NDArray[Any]]] = {}
        self.first_record: list[int] = []
        self.records = 0
        self.ids = bytearray()
        self.names: dict[bytes, int] = {}
        self._start_chunk()

    def _start_chunk(self) -> None:
        self.rows: list[tuple[int, int, int, int, int, int, int]] = []
        self.objects: list[int] = []
        self.edges = [bytearray() for _ in range(4)]
        self.axes = [bytearray() for _ in range(2)]
        self.flags = bytearray()
        self.areas = bytearray()
        self.named: list[int] = []

    def add_file(self, path: str, *, verify_crc: bool) -> None:
        """Read one file. Raises DataError as `RecordIndex.build` does."""
        file_id = len(self.first_record)
        self.first_record.append(self.records)
        for number, frame in enumerate(self._frames(path, verify_crc)):
            if isinstance(frame, Damage):
                self._leave_out("record", path, number, "", f"at byte {frame.offset}: {frame.what}")
                self._add_nothing(file_id)
                continue
            offset, payload = frame
            try:
                self._add(file_id, offset, payload, scan(payload))
            except ValueError as error:
                named = _named(payload)
                if self.faults is None:
                    raise DataError(f"{path}: record {number}{named}: {error}") from None
                kind: Kind = "counts" if isinstance(error, CountError) else "record"
                self._leave_out(kind, path, number, named, str(error))
                self._add_nothing(file_id)
            if len(self.rows) >= _CHUNK:
                self._end_chunk(path)
        self._end_chunk(path)

    def add_file_index(self, file_index: FileIndex) -> None:
        """Append the index of the next file; its arrays are changed in place and kept."""
        for column in file_index.columns["file_id"]:
            column[:] = len(self.first_record)
        for name, before in (("record", self.records), ("_id_end", len(self.ids))):
            for column in file_index.columns[name]:
                column += before
        # The last entry is for animals without a name, whose number is -1.
        numbers = np.array([*map(self._number, file_index.names), -1], np.int16)
        for column in file_index.columns["name"]:
            column[:] = numbers[column]
        for name, columns in file_index.columns.items():
            self.columns.setdefault(name, []).extend(columns)
        self.first_record.append(self.records)
        self.records += file_index.records
        self.ids += file_index.ids

    def _frames(self, path: str, verify_crc: bool) -> Iterator[Frame | Damage]:
        if self.faults is None:
            return read_frames(path, verify_crc=verify_crc)
        return salvage_frames(path)

    def _leave_out(
        self,
        kind: Kind,
        path: str,
        number: int,
        named: str,
        cause: str,
        row: int | None = None,
    ) -> None:
        assert self.faults is not None
        where = f"{Path(path).name} record {number}{named}"
        record = self.records + (len(self.rows) if row is None else row)
        self.faults.append(Fault(kind, where, cause, record))

    def _add_nothing(self, file_id: int) -> None:
        """Add a row without image and animals, so that later records keep their numbers."""
        self.rows.append((file_id, 0, 0, 1, 1, len(self.ids), -1))
        self.objects.append(0)

    def _add(self, file_id: int, offset: int, payload: bytes, layout: Layout) -> None:
        objects, width, height = layout.objects, layout.width, layout.height
        start, end = layout.jpeg
        if width <= 0 or height <= 0:
            size = jpeg_size(payload[start:end])
            if size is None:
                raise ValueError(
                    "no image/width and image/height, and none in the JPEG's header; "
                    "convert the image again"
                )
            width, height = size
        if objects and layout.parts != self.parts:
            raise CountError(
                f"{layout.parts} parts an object, but PARTS.NUM_PARTS is {self.parts}; "
                f"set PARTS in the config to the parts of this data set"
            )
        self.ids += layout.image_id
        self.rows.append(
            (file_id, offset + start, end - start, width, height, len(self.ids), layout.number)
        )
        self.objects.append(objects)
        for buffer, values in zip(
            (*self.edges, *self.axes),
            (layout.xmin, layout.ymin, layout.xmax, layout.ymax, layout.parts_x, layout.parts_y),
            strict=True,
        ):
            buffer += values
        self.flags += visibility_array(layout.visibility, objects * self.parts).tobytes()
        self.areas += layout.area or _UNKNOWN_AREA * objects
        self.named += [*map(self._number, layout.names)] or [-1] * objects

    def _number(self, name: bytes) -> int:
        """Number of an animal's name, from 0 in the order of appearance."""
        if name not in self.names and len(self.names) >= _MOST_NAMES:
            return -1
        return self.names.setdefault(name, len(self.names))

    def _end_chunk(self, path: str) -> None:
        rows = np.array(self.rows, np.int64).reshape(-1, 7)
        counts = np.array(self.objects, np.int64)
        local = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(local)) - np.repeat(np.cumsum(counts) - counts, counts)
        size = rows[local, 3:5].astype(np.float32)

        bbox = np.stack([np.frombuffer(edge, "<f4") for edge in self.edges], axis=-1)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a box in a file may hold any four floats
            box_px = np.round(bbox * np.tile(size, 2))
            sides = box_px[:, 2:] - box_px[:, :2]
        sound = np.isfinite(bbox).all(axis=1) & (sides >= 1).all(axis=1)
        if not sound.all():
            self._refuse_boxes(path, local, number, bbox, np.flatnonzero(~sound))

        xy = np.stack([np.frombuffer(axis, "<f4") for axis in self.axes], axis=-1)
        flags = np.frombuffer(self.flags, np.uint8).reshape(-1, self.parts)
        with np.errstate(over="ignore"):
            xy_px = xy.reshape(-1, self.parts, 2) * size[:, None, :]
        keypoints, visibility = labelled(xy_px[sound], flags[sound])
        areas = np.frombuffer(self.areas, "<f4")
        local, number, bbox, size = (each[sound] for each in (local, number, bbox, size))
        name = np.array(self.named, np.int16)[sound]
        area = area_px(areas[sound], bbox, size[:, 0] * size[:, 1])
        for column, values in (
            ("file_id", rows[:, 0].astype(np.int32)),
            ("jpeg_offset", rows[:, 1].copy()),
            ("jpeg_length", rows[:, 2].astype(np.int32)),
            ("width", rows[:, 3].astype(np.int32)),
            ("height", rows[:, 4].astype(np.int32)),
            ("_id_end", rows[:, 5].copy()),
            ("image_number", rows[:, 6].copy()),
            ("record", (local + self.records).astype(np.int32)),
            ("object_number", number.astype(np.int16)),
            ("bbox", bbox.astype(np.float32)),
            ("keypoints", keypoints.astype(np.float32)),
            ("visibility", visibility),
            ("area", area),
            ("name", name),
        ):
            self.columns.setdefault(column, []).append(values)
        self.records += len(rows)
        self._start_chunk()

    def _refuse_boxes(
        self,
        path: str,
        local: npt.NDArray[np.int64],
        number: npt.NDArray[np.int64],
        bbox: npt.NDArray[np.floating[Any]],
        bad: npt.NDArray[np.int64],
    ) -> None:
        for place in bad.tolist():
            row = int(local[place])
            previous = self.rows[row - 1][5] if row else self._ids_before_chunk()
            image_id = readable(bytes(self.ids[previous : self.rows[row][5]]))
            record = self.records + row - self.first_record[-1]
            named = f" (id '{image_id}')"
            box = " ".join(f"{edge:.4g}" for edge in bbox[place])
            cause = f"object {number[place]} has an impossible box (x1 y1 x2 y2 = {box})"
            if self.faults is None:
                raise DataError(
                    f"{path}: record {record}{named}: {cause}; correct or remove it and convert "
                    "again"
                )
            self._leave_out("box", path, record, named, cause, row)

    def _ids_before_chunk(self) -> int:
        chunks = self.columns.get("_id_end", [])
        return next((int(chunk[-1]) for chunk in reversed(chunks) if len(chunk)), 0)

    def finish(self, files: Iterable[str]) -> dict[str, Any]:
        """Arrays of the index by name. Raises DataError where `files` hold no animal."""
        if self.faults is None and not sum(map(len, self.columns["record"])):
            names = ", ".join(files)
            raise DataError(f"{names}: no annotated animal in any record; check DATA in the config")
        joined: dict[str, Any] = {}
        for name in list(self.columns):
            # Column by column, so that peak memory stays near the size of the result.
            joined[name] = np.concatenate(self.columns.pop(name))
        joined["first_record"] = np.array(self.first_record, np.int64)
        joined["_ids"] = bytes(self.ids)
        joined["_names"] = b"\0".join(self.names)
        return joined


def _named(payload: bytes) -> str:
    """` (id '...')` of a record at fault, for its message; empty where the id is unreadable."""
    try:
        return f" (id '{readable(open_payload(payload).string(b'image/id'))}')"
    except ValueError:
        return ""
