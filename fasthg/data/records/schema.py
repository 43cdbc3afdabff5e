"""Schema of a MARS record: one annotated frame and its fields in a `tf.train.Example`.

`decode` and `encode` convert between a `Record` and its bytes. `scan` reads only what an index
needs, without copying the image. Both readers apply the same rules, which are below.

The keys are those of MARS' pose documentation, in the form that MARS' writer really writes: the
number of objects is in `image/object/bbox/count` (documented: `image/object/count`),
`image/object/id` holds integers (documented: strings), areas are in px² (documented: divided by the
image's), and there are `image/path` and `image/object/parts/count`. Both forms are read. Floats are
stored field by field: xmin of every object, then, under another key, ymin of every object; for
parts, all parts of object 0, then all of object 1.

`image/id` is text, but MARS' evaluation and notebooks read it as an integer. Records that fasthg
writes therefore hold a frame's number there, and what people call the frame (`day1/img0042`) in
`image/extra`, as JSON: `{"name": "day1/img0042"}`. Read again, that name is the frame's `image_id`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fasthg.data.records import protobuf
from fasthg.data.records.jpeg import jpeg_size
from fasthg.errors import DataError

FloatArray = npt.NDArray[np.float32]

# `RecordIndex.object_number` has 16 bits, and so has a side of the image in a JPEG's header.
MAX_OBJECTS = (1 << 15) - 1
MAX_SIDE = (1 << 16) - 1

_AGAIN = "convert the annotations again"
_NOTHING = (0, 0)
_LEAST_AREA = np.nextafter(np.float32(1), np.float32(2))
_EDGES = (b"xmin", b"ymin", b"xmax", b"ymax")


class CountError(ValueError):
    """Numbers of animals, parts or values in a record contradict each other."""


class Layout(NamedTuple):
    """The fields of a serialised record that an index needs, with floats still as bytes.

    `jpeg` is a span of the payload; the byte fields hold little-endian float32 as in the record:
    xmin.. `objects` values, parts_x and parts_y `objects * parts`, area `objects` or none.
    `visibility` holds `objects * parts` integers or none. width and height are 0 where missing.
    `names` holds what each object is called, or nothing; see `object_names`. `image_id` is the name
    in `image/extra`, or else `image/id`; `number` is `image/id` as an integer, -1 where it is none.
    """

    image_id: bytes
    number: int
    jpeg: protobuf.Span
    width: int
    height: int
    objects: int
    parts: int
    xmin: bytes
    ymin: bytes
    xmax: bytes
    ymax: bytes
    parts_x: bytes
    parts_y: bytes
    visibility: list[int]
    area: bytes
    names: list[bytes]


class Reader:
    """Typed access to the features of one payload; every ValueError names its key."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.spans = protobuf.features(payload)

    def ints(self, key: bytes) -> list[int]:
        """Integers under a key; empty where the key is missing."""
        try:
            return protobuf.ints(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def integer(self, key: bytes) -> int:
        """The first integer under a key, or 0."""
        values = self.ints(key)
        return values[0] if values else 0

    def float_bytes(self, key: bytes) -> bytes:
        """Little-endian float32 under a key, undecoded."""
        try:
            return protobuf.float_bytes(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def floats(self, key: bytes) -> FloatArray:
        """Floats under a key."""
        return np.frombuffer(self.float_bytes(key), "<f4").astype(np.float32)

    def bytes_spans(self, key: bytes) -> list[protobuf.Span]:
        """Spans of the byte strings under a key."""
        try:
            return protobuf.bytes_spans(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def strings(self, key: bytes) -> list[bytes]:
        """Byte strings under a key, or its integers as decimal text: identifiers come as either."""
        try:
            return protobuf.strings(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def string(self, key: bytes) -> bytes:
        """The first of `strings`, or empty bytes."""
        values = self.strings(key)
        return values[0] if values else b""

    @staticmethod
    def _fault(key: bytes, error: ValueError) -> ValueError:
        return ValueError(f"{key.decode(errors='replace')} cannot be read ({error}); {_AGAIN}")


def scan(payload: bytes) -> Layout:
    """Layout of a serialised record, without decoding or copying its image.

    Raises ValueError, of the form "cause; remedy", for a payload that is no Example, lacks its
    image, has annotated objects without boxes or parts, counts that contradict each other, more
    than MAX_OBJECTS objects, or an image of more than MAX_SIDE px a side.
    """
    return layout_of(open_payload(payload))


def open_payload(payload: bytes) -> Reader:
    """Reader of a serialised record. Raises ValueError where it is no Example."""
    try:
        return Reader(payload)
    except ValueError as error:
        raise ValueError(f"not a tf.train.Example ({error}); {_AGAIN}") from None


def layout_of(reader: Reader) -> Layout:
    """`scan` of a payload that has a Reader."""
    jpeg = reader.bytes_spans(b"image/encoded")
    if not jpeg or jpeg[0][0] == jpeg[0][1]:
        raise ValueError(f"image/encoded is missing; {_AGAIN}")
    edges = [reader.float_bytes(b"image/object/bbox/" + edge) for edge in _EDGES]
    parts_x = reader.float_bytes(b"image/object/parts/x")
    parts_y = reader.float_bytes(b"image/object/parts/y")
    visibility = reader.ints(b"image/object/parts/v")
    area = reader.float_bytes(b"image/object/area")

    counts = {key: reader.ints(b"image/object/" + key) for key in (b"bbox/count", b"count")}
    stored = {key.decode(): values[0] for key, values in counts.items() if values}
    if len(set(stored.values())) > 1:
        stated = ", ".join(f"image/object/{key} is {count}" for key, count in stored.items())
        raise CountError(f"{stated}; {_AGAIN}")
    objects = next(iter(stored.values()), len(edges[0]) // 4)
    if objects > MAX_OBJECTS:
        raise CountError(f"{objects} objects, more than {MAX_OBJECTS}; {_AGAIN}")
    if not edges[0] and (objects or parts_x):
        raise ValueError(f"annotated animals but no boxes (image/object/bbox/xmin); {_AGAIN}")
    for name, edge in zip(_EDGES, edges, strict=True):
        if len(edge) != 4 * objects:
            raise CountError(
                f"image/object/bbox/{name.decode()} has {len(edge) // 4} values "
                f"for {objects} objects; {_AGAIN}"
            )
    labels = len(parts_x) // 4
    if objects and (labels == 0 or labels % objects):
        raise CountError(
            f"image/object/parts/x has {labels} values for {objects} objects; {_AGAIN}"
        )
    for key, count in (("y", len(parts_y) // 4), ("v", len(visibility) or labels)):
        if count != labels:
            raise CountError(
                f"image/object/parts/{key} has {count} values where parts/x has {labels}; {_AGAIN}"
            )
    if area and len(area) != 4 * objects:
        raise CountError(
            f"image/object/area has {len(area) // 4} values for {objects} objects; {_AGAIN}"
        )
    width, height = reader.integer(b"image/width"), reader.integer(b"image/height")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise ValueError(f"an image of {width}x{height} px, more than {MAX_SIDE} a side; {_AGAIN}")
    image_id, number, _ = _identity(reader)
    return Layout(
        image_id=image_id,
        number=number,
        jpeg=jpeg[0],
        width=width,
        height=height,
        objects=objects,
        parts=labels // objects if objects else 0,
        xmin=edges[0],
        ymin=edges[1],
        xmax=edges[2],
        ymax=edges[3],
        parts_x=parts_x,
        parts_y=parts_y,
        visibility=visibility,
        area=area,
        names=object_names(reader, objects),
    )


_DIGITS = re.compile(rb"[0-9]{1,18}")
# Longer text in `image/extra` is not ours: a file's name has less.
_LONGEST_NAME = 1 << 14


def _identity(reader: Reader) -> tuple[bytes, int, bool]:
    """What a frame is called, its number (-1 without one), and whether `image/extra` says so."""
    stored = reader.string(b"image/id")
    number = int(stored) if _DIGITS.fullmatch(stored) else -1
    name = _name_in(reader) if number >= 0 else None
    return stored if name is None else name, number, name is not None


def _name_in(reader: Reader) -> bytes | None:
    """The name in `image/extra`, or None where another program wrote that field."""
    try:
        extra = reader.string(b"image/extra")
        if not extra.startswith(b'{"name"') or len(extra) > _LONGEST_NAME:
            return None
        match json.loads(extra):
            case {"name": str(name), **others} if name and not others:
                return name.encode()
    except (ValueError, RecursionError):  # of another type than documented; no JSON; half a pair
        pass
    return None


def object_names(reader: Reader, objects: int) -> list[bytes]:
    """What the objects of a payload are called; empty where a record says nothing.

    The first of these fields with a value for every object: the class of the box as text
    (`bbox/text`), the object's id where it is no number (trackers and annotation tools number
    objects anew in every frame), the class of the box as a number (`bbox/label`).
    """
    for key in (b"bbox/text", b"id", b"bbox/label"):
        try:
            names = reader.strings(b"image/object/" + key)
        except ValueError:  # of another type than documented
            continue
        numbers = key == b"id" and any(name.isdigit() for name in names)
        if len(names) == objects and all(names) and not numbers:
            return names
    return []


def readable(text: bytes) -> str:
    """Text from a record for use in a message: one line of at most 100 printable characters."""
    shown = text[:400].decode(errors="replace")[:100]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def labelled(
    keypoints: FloatArray, visibility: npt.NDArray[np.uint8]
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Set NaN and visibility 0 wherever either of the two marks a part as unlabelled.

    keypoints (..., parts, 2), visibility (..., parts); changed in place and returned.
    """
    missing = ~np.isfinite(keypoints).all(axis=-1) | (visibility == 0)
    keypoints[missing] = np.nan
    visibility[missing] = 0
    return keypoints, visibility


def area_px(area: FloatArray, bbox: FloatArray, image_px: FloatArray) -> FloatArray:
    """Areas in image px², (objects,).

    A value above 1 is in px² already; one up to 1 is a share of the image and multiplied by
    `image_px` (objects,), width * height. Where `area` is missing or not positive, the area of the
    normalised `bbox` (objects, 4) takes its place. No result is in 0..1: read again, it would count
    as a share.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a box in a file may hold any four floats
        box = (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1]) * image_px
        known = np.where(area > 1, area, area * image_px)
        px = np.where(np.isfinite(area) & (area > 0), known, box).astype(np.float32)
    return np.where((px > 0) & (px <= 1), _LEAST_AREA, px)


def visibility_array(values: Sequence[int], count: int) -> npt.NDArray[np.uint8]:
    """Visibility (count,) uint8 in 0..2; every part is visible where a record stores none."""
    if not values:
        return np.full(count, 2, np.uint8)
    if min(values) >= 0 and max(values) <= 2:
        return np.frombuffer(bytearray(values), np.uint8)  # the usual case, and much faster
    return np.clip(np.asarray(values, np.int64), 0, 2).astype(np.uint8)


# Identifiers that are stored as 64-bit integers.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def _floats(*shape: int) -> FloatArray:
    return np.zeros(shape, np.float32)


@dataclass
class Record:
    """A frame and its animals; `objects` is the number of animals, `parts` that of their keypoints.

    bbox: (objects, 4) float32, x1 y1 x2 y2, divided by image width and height.
    keypoints: (objects, parts, 2) float32, x y, divided by width and height; NaN where unlabelled.
    visibility: (objects, parts) uint8; 0 unlabelled, 1 occluded, 2 visible.
    area: (objects,) float32, image px²; NaN where unknown.
    image_id: what the frame is called. number: its number in the data set, which is then stored as
    `image/id`, and `image_id` in `extra`, which must be empty; None stores `image_id` as it is.
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
    number: int | None = None


def decode(payload: bytes, where: str) -> Record:
    """Record of a serialised payload. Raises DataError with a message that begins with `where`."""
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
    _, number, named = _identity(reader)
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
        extra="" if named else text(b"image/extra"),
        class_label=reader.integer(b"image/class/label"),
        class_text=text(b"image/class/text"),
        class_conf=float(confidence[0]) if confidence.size else None,
        number=number if named else None,
    )


def encode(record: Record) -> bytes:
    """Serialise a record as MARS' trainer and this package read it.

    Unlabelled parts become 0, 0 with visibility 0 (MARS cannot read NaN); a missing visibility
    becomes 2 for labelled parts, a missing area that of the box; an area of at most 1 is read as a
    share of the image, as in a file; the number of objects is written under both of its keys.
    Raises ValueError where the arrays' shapes contradict each other, where a numbered frame has an
    `extra` of its own, and where `decode` would refuse the result (except for an empty image).
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

    image_id, extra = _stored_identity(record)

    values: dict[str, protobuf.Value] = {
        "image/id": [image_id.encode()],
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
    if extra:
        values["image/extra"] = [extra.encode()]
    if record.class_conf is not None:
        values["image/class/conf"] = np.array([record.class_conf], np.float32)
    if record.bbox_text:
        values["image/object/bbox/text"] = [text.encode() for text in record.bbox_text]
    if record.bbox_conf is not None:
        values["image/object/bbox/conf"] = record.bbox_conf
    if record.part_score is not None:
        values["image/object/parts/score"] = record.part_score.ravel()
    return protobuf.encode_example(values)


def _stored_identity(record: Record) -> tuple[str, str]:
    """`image/id` and `image/extra`. Raises ValueError where both would need the latter."""
    if record.number is None:
        return record.image_id, record.extra
    if record.extra:
        raise ValueError("extra holds the name of a numbered frame; leave it empty")
    # Six digits at least, as MARS' writer has them.
    name = json.dumps({"name": record.image_id}, ensure_ascii=False) if record.image_id else ""
    return f"{record.number:06d}", name


def _sizes(record: Record) -> tuple[int, int]:
    """Numbers of objects and parts. Raises ValueError where an array has another shape."""
    objects, parts = record.keypoints.shape[:2]
    if objects > MAX_OBJECTS or objects * parts > protobuf.MAX_VALUES or (objects and not parts):
        raise ValueError(
            f"{objects} objects of {parts} parts; at least 1 part, at most {MAX_OBJECTS} objects "
            f"and {protobuf.MAX_VALUES} parts in all"
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
