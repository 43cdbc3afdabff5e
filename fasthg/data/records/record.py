"""One annotated frame of a MARS data set, and its form as a `tf.train.Example`.

The keys are those of MARS' pose documentation, with what its writer really writes: the number of
objects is in `image/object/bbox/count` (documented: `image/object/count`), `image/object/id` holds
integers (documented: strings), areas are in px² (documented: divided by the image's), and there are
`image/path` and `image/object/parts/count`. Both forms are read. Floats lie field by field: xmin of
every object, then, under another key, ymin of every object; for parts, all parts of object 0, then
all of object 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fasthg.data.records import example
from fasthg.data.records.jpeg import jpeg_size
from fasthg.data.records.layout import (
    MAX_OBJECTS,
    MAX_SIDE,
    FloatArray,
    Layout,
    Reader,
    area_px,
    labelled,
    layout_of,
    open_payload,
    visibility_array,
)
from fasthg.errors import DataError

# Identifiers that are stored as integers of 64 bits.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def _floats(*shape: int) -> FloatArray:
    return np.zeros(shape, np.float32)


@dataclass
class Record:
    """A frame and its animals. `objects` is the number of animals, `parts` of keypoints of each.

    bbox: (objects, 4) float32, x1 y1 x2 y2, divided by image width and height.
    keypoints: (objects, parts, 2) float32, x y, divided by width and height; NaN where unlabelled.
    visibility: (objects, parts) uint8; 0 unlabelled, 1 occluded, 2 visible.
    area: (objects,) float32, image px²; NaN where unknown.
    object_id, bbox_text: one string an object; bbox_label: one integer an object.
    bbox_score, bbox_conf: (objects,) float32; part_score: (objects, parts) float32.
    Fields left as None or empty are not written.
    """

    encoded: bytes
    width: int
    height: int
    image_id: str = ""
    filename: str = ""
    path: str = ""
    bbox: FloatArray = field(default_factory=lambda: _floats(0, 4))
    keypoints: FloatArray = field(default_factory=lambda: _floats(0, 0, 2))
    visibility: npt.NDArray[np.uint8] | None = None
    area: FloatArray | None = None
    object_id: Sequence[str] = ()
    bbox_score: FloatArray | None = None
    bbox_label: Sequence[int] = ()
    bbox_text: Sequence[str] = ()
    bbox_conf: FloatArray | None = None
    part_score: FloatArray | None = None
    colorspace: str = "RGB"
    channels: int = 3
    format: str = "JPEG"
    extra: str = ""
    class_label: int = 0
    class_text: str = ""
    class_conf: float | None = None


def decode(payload: bytes, where: str) -> Record:
    """Read a serialised record. Raises DataError that begins with `where`."""
    try:
        reader = open_payload(payload)
        layout = layout_of(reader)
        return _record(reader, layout)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _record(reader: Reader, layout: Layout) -> Record:
    objects, parts = layout.objects, layout.parts
    encoded = reader.payload[slice(*layout.jpeg)]
    width, height = layout.width, layout.height
    if width <= 0 or height <= 0:
        width, height = jpeg_size(encoded) or (0, 0)
    edges = (layout.xmin, layout.ymin, layout.xmax, layout.ymax)
    bbox = np.stack([np.frombuffer(edge, "<f4") for edge in edges], axis=-1).astype(np.float32)
    xy = [np.frombuffer(axis, "<f4") for axis in (layout.parts_x, layout.parts_y)]
    keypoints, visibility = labelled(
        np.stack(xy, axis=-1).astype(np.float32).reshape(objects, parts, 2),
        visibility_array(layout.visibility, objects * parts).reshape(objects, parts),
    )
    area = None
    if layout.area:
        image_px = np.full(objects, width * height, np.float32)
        area = area_px(np.frombuffer(layout.area, "<f4"), bbox, image_px)

    def text(key: bytes) -> str:
        return reader.string(key).decode(errors="replace")

    def texts(key: bytes) -> tuple[str, ...]:
        return tuple(item.decode(errors="replace") for item in reader.strings(key))

    def array(key: bytes, *shape: int) -> FloatArray | None:
        values = reader.floats(key)
        return values.reshape(shape) if values.size == np.prod(shape) and values.size else None

    confidence = reader.floats(b"image/class/conf")
    return Record(
        encoded=encoded,
        width=width,
        height=height,
        image_id=layout.image_id.decode(errors="replace"),
        filename=text(b"image/filename"),
        path=text(b"image/path"),
        bbox=bbox,
        keypoints=keypoints,
        visibility=visibility,
        area=area,
        object_id=texts(b"image/object/id"),
        bbox_score=array(b"image/object/bbox/score", objects),
        bbox_label=tuple(reader.ints(b"image/object/bbox/label")),
        bbox_text=texts(b"image/object/bbox/text"),
        bbox_conf=array(b"image/object/bbox/conf", objects),
        part_score=array(b"image/object/parts/score", objects, parts),
        colorspace=text(b"image/colorspace"),
        channels=reader.integer(b"image/channels"),
        format=text(b"image/format"),
        extra=text(b"image/extra"),
        class_label=reader.integer(b"image/class/label"),
        class_text=text(b"image/class/text"),
        class_conf=float(confidence[0]) if confidence.size else None,
    )


def encode(record: Record) -> bytes:
    """Serialise a record as MARS' trainer and this package read it.

    Unlabelled parts become 0, 0 with visibility 0 (MARS cannot read NaN); a missing visibility
    becomes 2 for labelled parts, a missing area that of the box; an area of at most 1 is taken for
    a share of the image, as in a file; the number of objects goes under both its names. Raises
    ValueError where the arrays' shapes do not fit each other, and where `decode` would refuse what
    is written (but for an empty image).
    """
    objects, parts = _sizes(record)
    visibility = record.visibility
    if visibility is None:
        visibility = np.full((objects, parts), 2, np.uint8)
    keypoints, visibility = labelled(
        record.keypoints.astype(np.float32, copy=True), visibility.astype(np.uint8, copy=True)
    )
    keypoints = np.nan_to_num(keypoints, nan=0.0)
    bbox = record.bbox.astype(np.float32)
    area = np.full(objects, np.nan, np.float32) if record.area is None else record.area
    area = area_px(area, bbox, np.full(objects, record.width * record.height, np.float32))
    ids = record.object_id or [str(number) for number in range(objects)]
    numeric = all(_NUMBER.fullmatch(item) for item in ids)

    values: dict[str, example.Value] = {
        "image/id": [record.image_id.encode()],
        "image/filename": [record.filename.encode()],
        "image/path": [record.path.encode()],
        "image/encoded": [record.encoded],
        "image/height": [record.height],
        "image/width": [record.width],
        "image/colorspace": [record.colorspace.encode()],
        "image/channels": [record.channels],
        "image/format": [record.format.encode()],
        "image/class/label": [record.class_label],
        "image/class/text": [record.class_text.encode()],
        "image/object/count": [objects],
        "image/object/bbox/count": [objects],
        "image/object/area": area,
        "image/object/id": [int(item) for item in ids] if numeric else [i.encode() for i in ids],
        "image/object/bbox/score": (
            np.ones(objects, np.float32) if record.bbox_score is None else record.bbox_score
        ),
        "image/object/bbox/label": list(record.bbox_label) or [0] * objects,
        "image/object/parts/x": keypoints[..., 0].ravel(),
        "image/object/parts/y": keypoints[..., 1].ravel(),
        "image/object/parts/v": [int(flag) for flag in visibility.ravel()],
        "image/object/parts/count": [parts] * objects,
    }
    for column, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
        values[f"image/object/bbox/{name}"] = bbox[:, column]
    if record.extra:
        values["image/extra"] = [record.extra.encode()]
    if record.class_conf is not None:
        values["image/class/conf"] = np.array([record.class_conf], np.float32)
    if record.bbox_text:
        values["image/object/bbox/text"] = [text.encode() for text in record.bbox_text]
    if record.bbox_conf is not None:
        values["image/object/bbox/conf"] = record.bbox_conf
    if record.part_score is not None:
        values["image/object/parts/score"] = record.part_score.ravel()
    return example.encode(values)


def _sizes(record: Record) -> tuple[int, int]:
    """Numbers of objects and of parts; ValueError where something does not fit them."""
    objects, parts = record.keypoints.shape[:2]
    if objects > MAX_OBJECTS or objects * parts > example.MAX_VALUES or (objects and not parts):
        raise ValueError(
            f"{objects} objects of {parts} parts; at least 1 part, at most {MAX_OBJECTS} objects "
            f"and {example.MAX_VALUES} parts in all"
        )
    if max(record.width, record.height) > MAX_SIDE:
        raise ValueError(f"an image of {record.width}x{record.height} px; at most {MAX_SIDE}")
    for name, shape in (
        ("keypoints", (objects, parts, 2)),
        ("bbox", (objects, 4)),
        ("visibility", (objects, parts)),
        ("area", (objects,)),
        ("bbox_score", (objects,)),
        ("bbox_conf", (objects,)),
        ("part_score", (objects, parts)),
    ):
        values = getattr(record, name)
        if values is not None and values.shape != shape:
            raise ValueError(f"{name} {values.shape} does not fit {objects} objects, {parts} parts")
    return objects, parts
