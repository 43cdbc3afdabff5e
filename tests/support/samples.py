"""Sound records of every form and small images, and the means to take records apart."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from fasthg.data.records import protobuf
from fasthg.data.records.schema import Record, encode

DELIMITED = 2

WITHOUT_AUGMENTATION = {
    "DO_RANDOM_PADDING": False,
    "DO_RANDOM_BLURRING": False,
    "DO_RANDOM_NOISE": False,
    "DO_RANDOM_ROTATION": False,
    "DO_JPEG_ARTIFACTS": False,
    "DO_RANDOM_FLIP_LEFT_RIGHT": 0.0,
    "DO_COLOR_DISTORTION": 0.0,
    "DO_RANDOM_BBOX_SHIFT": 0.0,
}
"""Configuration keys with every augmentation off; a test turns on what it is about."""


def varint(value: int, padding: int = 0) -> bytes:
    """A varint, longer by `padding` bytes than it need be."""
    out = bytearray()
    while value > 0x7F or padding:
        padding -= value <= 0x7F
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def delimited(tag: bytes | int, *parts: bytes) -> bytes:
    """A field of that tag with its length."""
    tag = tag if isinstance(tag, bytes) else varint(tag << 3 | DELIMITED)
    return b"".join((tag, varint(sum(map(len, parts))), *parts))


def _varint_end(data: bytes, at: int) -> int:
    while at < len(data) and data[at] >= 0x80:
        at += 1
    return at + 1


@functools.lru_cache(1 << 14)
def fields(message: bytes) -> tuple[tuple[bytes, bytes, bytes], ...]:
    """(tag, length, value) of each field as bytes; nothing where it is no whole message.

    Independent of the reader under test, and coarser.
    """
    found, at = [], 0
    while at < len(message):
        start, at = at, _varint_end(message, at)
        tag, length, wire = message[start:at], b"", message[start] & 7
        if wire == DELIMITED:
            start, at = at, _varint_end(message, at)
            length = message[start:at]
            size = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(length))
        elif wire == 0:
            size = _varint_end(message, at) - at
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            return ()
        if at + size > len(message):
            return ()
        found.append((tag, length, message[at : at + size]))
        at += size
    return tuple(found)


def unpacked(payload: bytes) -> bytes:
    """A record in which every list of numbers has one field a value, and each feature two lists."""

    def feature(tag: bytes, body: bytes) -> bytes:
        inner = fields(body)
        if tag == b"\x0a" or len(inner) != 1:
            return delimited(tag, body)
        packed, step = inner[0][2], 4 if tag == b"\x12" else 0
        values, at = [], 0
        while at < len(packed):
            end = at + step if step else _varint_end(packed, at)
            values.append((b"\x0d" if step else b"\x08") + packed[at:end])
            at = end
        half = len(values) // 2
        return delimited(tag, *values[:half]) + delimited(tag, *values[half:])

    entries = []
    for _, _, entry in fields(fields(payload)[0][2]):
        (_, _, key), (_, _, value) = fields(entry)
        changed = b"".join(feature(tag, body) for tag, _, body in fields(value))
        entries.append(delimited(1, delimited(2, changed), delimited(1, key)))
    half = len(entries) // 2
    return delimited(1, *entries[:half]) + delimited(1, *entries[half:])


@functools.cache
def images() -> tuple[bytes, ...]:
    """A baseline and a progressive JPEG and a PNG of one px, and a JPEG of 3x2."""

    def image(width: int, height: int, kind: str, **options: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, kind, **options)
        return file.getvalue()

    return (
        image(1, 1, "JPEG"),
        image(1, 1, "JPEG", progressive=1),
        image(1, 1, "PNG"),
        image(3, 2, "JPEG", quality=20),
    )


@functools.cache
def records() -> tuple[bytes, ...]:
    """Sound serialised records of every form."""
    points = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(2, 3, 2)
    points[1, 2] = np.nan
    two = Record(
        *(images()[0], 640, 480),
        image_id="000007",
        bbox=np.array([[0, 0, 1, 1], [-1.5, -0.25, 2, 1]], np.float32),
        keypoints=points,
        object_id=("black", "white"),
        bbox_text=("mouse", "mäuse"),
        part_score=np.arange(6, dtype=np.float32).reshape(2, 3),
        class_conf=0.5,
        extra="{}",
    )
    values: dict[str, protobuf.Value] = {
        "image/id": [7],
        "image/encoded": [images()[1]],
        "image/object/id": [3],
        "image/object/parts/x": np.array([0.1, 0.2], np.float32),
        "image/object/parts/y": np.array([0.3, np.nan], np.float32),
        "image/object/area": np.array([0.25], np.float32),
    }
    for name, value in (("xmin", 0), ("ymin", 0), ("xmax", 1), ("ymax", 1)):
        values[f"image/object/bbox/{name}"] = np.array([value], np.float32)
    size: dict[str, protobuf.Value] = {"image/width": [1], "image/height": [1]}
    whole = encode(two)
    return (
        whole,
        unpacked(whole),
        encode(Record(images()[0], 1, 1)),
        protobuf.encode_example(values),
        protobuf.encode_example({**values, **size, "image/object/count": [1]}),
        protobuf.encode_example(
            {**values, **size, "image/object/bbox/count": [1], "image/id": [b"x"]}
        ),
        unpacked(protobuf.encode_example({**values, **size, "image/object/parts/v": [2, 0]})),
    )
