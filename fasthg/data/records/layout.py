"""What lies where in a serialised record, and the rules that turn its numbers into annotations.

Shared by `records` (one frame, everything) and `index` (every frame, no image is copied).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fasthg.data.records import example

FloatArray = npt.NDArray[np.float32]

# Animals are numbered in 16 bits (`RecordIndex.object_number`), and a JPEG's header gives its sides
# in 16 bits, too.
MAX_OBJECTS = (1 << 15) - 1
MAX_SIDE = (1 << 16) - 1

_AGAIN = "convert the annotations again"
_NOTHING = (0, 0)
_LEAST_AREA = np.nextafter(np.float32(1), np.float32(2))
_EDGES = (b"xmin", b"ymin", b"xmax", b"ymax")


class CountError(ValueError):
    """Numbers of animals, parts or values in a record contradict each other."""


class Layout(NamedTuple):
    """What an index needs of one serialised record, undecoded where its bytes can be copied.

    `jpeg` is a span of the payload; the byte fields hold little-endian float32 as in the record:
    xmin.. `objects` values, parts_x and parts_y `objects * parts`, area `objects` or none.
    `visibility` holds `objects * parts` integers or none. Sizes are 0 where the record gives none.
    """

    image_id: bytes
    jpeg: example.Span
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


class Reader:
    """Typed access to the features of one payload; every fault names its key."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.spans = example.features(payload)

    def ints(self, key: bytes) -> list[int]:
        """Integers under a key; none where it is missing."""
        try:
            return example.ints(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def integer(self, key: bytes) -> int:
        """The first integer under a key, or 0."""
        found = self.ints(key)
        return found[0] if found else 0

    def float_bytes(self, key: bytes) -> bytes:
        """Little-endian float32 under a key, undecoded."""
        try:
            return example.float_bytes(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def floats(self, key: bytes) -> FloatArray:
        """Floats under a key."""
        return np.frombuffer(self.float_bytes(key), "<f4").astype(np.float32)

    def bytes_spans(self, key: bytes) -> list[example.Span]:
        """Spans of the byte strings under a key."""
        try:
            return example.bytes_spans(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def strings(self, key: bytes) -> list[bytes]:
        """Byte strings, or integers as decimal text: identifiers come as either."""
        try:
            return example.strings(self.payload, self.spans.get(key, _NOTHING))
        except ValueError as error:
            raise self._fault(key, error) from None

    def string(self, key: bytes) -> bytes:
        """The first of `strings`, or nothing."""
        found = self.strings(key)
        return found[0] if found else b""

    @staticmethod
    def _fault(key: bytes, error: ValueError) -> ValueError:
        return ValueError(f"{key.decode(errors='replace')} cannot be read ({error}); {_AGAIN}")


def scan(payload: bytes) -> Layout:
    """Lay open a serialised record without decoding or copying its image.

    Raises ValueError, of the form "cause; remedy", for a payload that is no Example, lacks its
    image, has annotated objects without boxes or parts, counts that contradict each other, more
    than MAX_OBJECTS objects, or an image of more than MAX_SIDE px a side.
    """
    return layout_of(open_payload(payload))


def open_payload(payload: bytes) -> Reader:
    """A reader of a serialised record; ValueError where it is no Example."""
    try:
        return Reader(payload)
    except ValueError as error:
        raise ValueError(f"not a tf.train.Example ({error}); {_AGAIN}") from None


def layout_of(reader: Reader) -> Layout:
    """`scan` of a payload that is open already."""
    jpeg = reader.bytes_spans(b"image/encoded")
    if not jpeg or jpeg[0][0] == jpeg[0][1]:
        raise ValueError(f"image/encoded is missing; {_AGAIN}")
    edges = [reader.float_bytes(b"image/object/bbox/" + edge) for edge in _EDGES]
    parts_x = reader.float_bytes(b"image/object/parts/x")
    parts_y = reader.float_bytes(b"image/object/parts/y")
    visibility = reader.ints(b"image/object/parts/v")
    area = reader.float_bytes(b"image/object/area")

    counts = {key: reader.ints(b"image/object/" + key) for key in (b"bbox/count", b"count")}
    given = {key.decode(): values[0] for key, values in counts.items() if values}
    if len(set(given.values())) > 1:
        stated = ", ".join(f"image/object/{key} is {count}" for key, count in given.items())
        raise CountError(f"{stated}; {_AGAIN}")
    objects = next(iter(given.values()), len(edges[0]) // 4)
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
    for key, found in (("y", len(parts_y) // 4), ("v", len(visibility) or labels)):
        if found != labels:
            raise CountError(
                f"image/object/parts/{key} has {found} values where parts/x has {labels}; {_AGAIN}"
            )
    if area and len(area) != 4 * objects:
        raise CountError(
            f"image/object/area has {len(area) // 4} values for {objects} objects; {_AGAIN}"
        )
    width, height = reader.integer(b"image/width"), reader.integer(b"image/height")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise ValueError(f"an image of {width}x{height} px, more than {MAX_SIDE} a side; {_AGAIN}")
    return Layout(
        image_id=reader.string(b"image/id"),
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
    )


def readable(text: bytes) -> str:
    """A name from a record as it can stand in a message: one line of at most 100 characters."""
    shown = text[:400].decode(errors="replace")[:100]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def labelled(
    keypoints: FloatArray, visibility: npt.NDArray[np.uint8]
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Make the two agree: NaN and visibility 0 wherever either says that a part is unlabelled.

    keypoints (..., parts, 2), visibility (..., parts); changed in place and returned.
    """
    missing = ~np.isfinite(keypoints).all(axis=-1) | (visibility == 0)
    keypoints[missing] = np.nan
    visibility[missing] = 0
    return keypoints, visibility


def area_px(area: FloatArray, bbox: FloatArray, image_px: FloatArray) -> FloatArray:
    """Areas in image px², (objects,): as given above 1, times the image's area below (normalised).

    bbox (objects, 4) normalised, whose area stands in where `area` is missing or not positive;
    image_px (objects,) width * height. No area is in 0..1: read again, it would be a share.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # any four floats may come as a box
        box = (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1]) * image_px
        known = np.where(area > 1, area, area * image_px)
        px = np.where(np.isfinite(area) & (area > 0), known, box).astype(np.float32)
    return np.where((px > 0) & (px <= 1), _LEAST_AREA, px)


def visibility_array(values: Sequence[int], count: int) -> npt.NDArray[np.uint8]:
    """(count,) uint8 in 0..2; where a record has none, every part counts as visible."""
    if not values:
        return np.full(count, 2, np.uint8)
    if min(values) >= 0 and max(values) <= 2:
        return np.frombuffer(bytearray(values), np.uint8)  # nearly always, and much quicker
    return np.clip(np.asarray(values, np.int64), 0, 2).astype(np.uint8)
