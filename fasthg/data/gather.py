"""Reads the annotations of many records into arrays: the one pass behind `RecordIndex`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.data.jpeg import jpeg_size
from fasthg.data.layout import (
    Layout,
    area_px,
    labelled,
    open_payload,
    scan,
    visibility_array,
)
from fasthg.data.tfrecord import read_frames
from fasthg.errors import DataError

# Records gathered as raw bytes before they become arrays: enough to make the conversion's cost
# vanish, few enough to be no part of the memory that is used.
_CHUNK = 4096
_UNKNOWN_AREA = np.array([np.nan], "<f4").tobytes()


class Gatherer:
    """Grows an index: annotation bytes of a chunk first, then arrays, joined once at the end."""

    def __init__(self, num_parts: int) -> None:
        self.parts = num_parts
        self.columns: dict[str, list[npt.NDArray[Any]]] = {}
        self.first_record: list[int] = []
        self.records = 0
        self.ids = bytearray()
        self._start_chunk()

    def _start_chunk(self) -> None:
        self.rows: list[tuple[int, int, int, int, int, int]] = []
        self.objects: list[int] = []
        self.edges = [bytearray() for _ in range(4)]
        self.axes = [bytearray() for _ in range(2)]
        self.flags = bytearray()
        self.areas = bytearray()

    def add_file(self, path: str, *, verify_crc: bool) -> None:
        """Read one file. Raises DataError as `RecordIndex.build` does."""
        file_id = len(self.first_record)
        self.first_record.append(self.records)
        for number, (offset, payload) in enumerate(read_frames(path, verify_crc=verify_crc)):
            try:
                self._add(file_id, offset, payload, scan(payload))
            except ValueError as error:
                raise DataError(f"{path}: record {number}{_named(payload)}: {error}") from None
            if len(self.rows) >= _CHUNK:
                self._end_chunk(path)
        self._end_chunk(path)

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
            raise ValueError(
                f"{layout.parts} parts an object, but PARTS.NUM_PARTS is {self.parts}; "
                f"set PARTS in the config to the parts of this data set"
            )
        self.ids += layout.image_id
        self.rows.append((file_id, offset + start, end - start, width, height, len(self.ids)))
        self.objects.append(objects)
        for buffer, values in zip(
            (*self.edges, *self.axes),
            (layout.xmin, layout.ymin, layout.xmax, layout.ymax, layout.parts_x, layout.parts_y),
            strict=True,
        ):
            buffer += values
        self.flags += visibility_array(layout.visibility, objects * self.parts).tobytes()
        self.areas += layout.area or _UNKNOWN_AREA * objects

    def _end_chunk(self, path: str) -> None:
        rows = np.array(self.rows, np.int64).reshape(-1, 6)
        counts = np.array(self.objects, np.int64)
        local = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(local)) - np.repeat(np.cumsum(counts) - counts, counts)
        size = rows[local, 3:5].astype(np.float32)

        bbox = np.stack([np.frombuffer(edge, "<f4") for edge in self.edges], axis=-1)
        box_px = np.round(bbox * np.tile(size, 2))
        sides = box_px[:, 2:] - box_px[:, :2]
        bad = np.flatnonzero(~(np.isfinite(bbox).all(axis=1) & (sides >= 1).all(axis=1)))
        if len(bad):
            raise self._bad_box(path, int(local[bad[0]]), int(number[bad[0]]), bbox[bad[0]])

        xy = np.stack([np.frombuffer(axis, "<f4") for axis in self.axes], axis=-1)
        keypoints, visibility = labelled(
            xy.reshape(-1, self.parts, 2) * size[:, None, :],
            np.frombuffer(self.flags, np.uint8).reshape(-1, self.parts).copy(),
        )
        area = area_px(np.frombuffer(self.areas, "<f4"), bbox, size[:, 0] * size[:, 1])
        for name, values in (
            ("file_id", rows[:, 0].astype(np.int32)),
            ("jpeg_offset", rows[:, 1].copy()),
            ("jpeg_length", rows[:, 2].astype(np.int32)),
            ("width", rows[:, 3].astype(np.int32)),
            ("height", rows[:, 4].astype(np.int32)),
            ("_id_end", rows[:, 5].copy()),
            ("record", (local + self.records).astype(np.int32)),
            ("object_number", number.astype(np.int16)),
            ("bbox", bbox.astype(np.float32)),
            ("keypoints", keypoints.astype(np.float32)),
            ("visibility", visibility),
            ("area", area),
        ):
            self.columns.setdefault(name, []).append(values)
        self.records += len(rows)
        self._start_chunk()

    def _bad_box(
        self, path: str, row: int, number: int, bbox: npt.NDArray[np.floating[Any]]
    ) -> DataError:
        previous = self.rows[row - 1][5] if row else self._ids_before_chunk()
        image_id = bytes(self.ids[previous : self.rows[row][5]]).decode(errors="replace")
        record = self.records + row - self.first_record[-1]
        box = " ".join(f"{edge:.4g}" for edge in bbox)
        return DataError(
            f"{path}: record {record} (id '{image_id}'): object {number} has an impossible box "
            f"(x1 y1 x2 y2 = {box}); correct or remove it and convert again"
        )

    def _ids_before_chunk(self) -> int:
        chunks = self.columns.get("_id_end", [])
        return next((int(chunk[-1]) for chunk in reversed(chunks) if len(chunk)), 0)

    def finish(self, files: Iterable[str]) -> dict[str, Any]:
        """The arrays of the index by name; DataError where `files` hold no animal."""
        if not sum(map(len, self.columns["record"])):
            names = ", ".join(files)
            raise DataError(f"{names}: no annotated animal in any record; check DATA in the config")
        joined: dict[str, Any] = {}
        for name in list(self.columns):
            # One column at a time, freeing its pieces: the peak stays near the size of the result.
            joined[name] = np.concatenate(self.columns.pop(name))
        joined["first_record"] = np.array(self.first_record, np.int64)
        joined["_ids"] = bytes(self.ids)
        return joined


def _named(payload: bytes) -> str:
    """The " (id '...')" of a record with a fault, as far as it can be read."""
    try:
        return f" (id '{open_payload(payload).string(b'image/id').decode(errors='replace')}')"
    except ValueError:
        return ""
