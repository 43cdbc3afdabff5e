"""EXIF orientation of encoded images: read, and taken out without touching a pixel.

A camera may store an image as its sensor reads it and say in a tag how a viewer turns it. Viewers,
browsers and most labelling tools obey; decoders of training programs do not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_ORIENTATION = 0x0112
_JPEG, _PNG, _TIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*")
_EXIF = b"Exif\0\0"


def orientation(data: bytes) -> int:
    """1 for an image that is shown as it is stored, else 2 to 8 (EXIF 2.3, tag 0x0112).

    Of a JPEG, PNG, WebP or TIFF; 1 for anything else, and for a damaged tag.
    """
    return _find(data)[0]


def upright(data: bytes) -> bytes:
    """The image with the orientation 1, its pixels as they are stored."""
    value, at, order = _find(data)
    if value == 1:
        return data
    data = data[:at] + struct.pack(order + "H", 1) + data[at + 2 :]
    for start, end in png_chunks(data):
        if start <= at < end:
            # The CRC of a chunk covers its name and its content.
            data = (
                data[:end] + struct.pack(">I", zlib.crc32(data[start - 4 : end])) + data[end + 4 :]
            )
    return data


def turned(image: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
    """Stored pixels, (height, width, channels), as a viewer shows them for an orientation."""
    if value >= 5:
        image = image.swapaxes(0, 1)
    if value in (3, 4, 7, 8):
        image = image[::-1]
    if value in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _find(data: bytes) -> tuple[int, int, str]:
    """Orientation, the byte position of its value and the byte order; 1, 0, "" for none."""
    for start, end in _blocks(data):
        if data.startswith(_EXIF, start):
            start += len(_EXIF)
        order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
        if order is None:
            continue
        try:
            (first,) = struct.unpack_from(order + "I", data, start + 4)
            (count,) = struct.unpack_from(order + "H", data, start + first)
            for at in range(start + first + 2, min(start + first + 2 + 12 * count, end - 9), 12):
                tag, _, _, value = struct.unpack_from(order + "HHIH", data, at)
                if tag == _ORIENTATION:
                    return (value, at + 8, order) if 2 <= value <= 8 else (1, 0, "")
        except struct.error:
            continue
    return 1, 0, ""


def _blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """Byte ranges that hold EXIF's TIFF structure."""
    if data.startswith(_TIFF):
        yield 0, len(data)
    elif data.startswith(_JPEG):
        at = 2
        while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and data[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] == 0xE1 and data.startswith(_EXIF, at + 4):
                yield at + 4, end
            at = end
    elif data.startswith(_PNG):
        for start, end in png_chunks(data):
            if data[start - 4 : start] == b"eXIf":
                yield start, end
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            if data[at : at + 4] == b"EXIF":
                yield at + 8, at + 8 + size
            at += 8 + size + size % 2


def png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """The byte range of the content of each chunk that is there in full; its name is before it."""
    at = len(_PNG) if data.startswith(_PNG) else len(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        yield at + 8, end
        at = end + 4
