"""Checks of an encoded image by its markers alone, without decoding it."""

from __future__ import annotations

import re
import struct

from fasthg.data.records.exif import png_chunks

_LARGEST = 1 << 30  # px, of OpenCV
_END = b"\xff\xd9"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # its last chunk
# A marker other than restart markers, which belong to entropy-coded data as stuffed zeros do.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_TEM, _SOI, _EOI, _SOS = 0x01, 0xD8, 0xD9, 0xDA
# Frame headers that libjpeg decodes: Huffman or arithmetic, sequential or progressive.
_DECODED = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_SEQUENTIAL = (0xC0, 0xC1)  # frame headers of baseline and extended Huffman coding


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in px from a JPEG's frame header; None where it cannot be read."""
    at = _frame_header(data)
    if at is None:
        return None
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    return (width, height) if width and height else None


def _frame_header(data: bytes) -> int | None:
    """Byte position of a JPEG's first frame header, SOFn, with its 9 bytes; None without one.

    Walks the marker segments (ITU-T T.81, B.1.1.3 and B.2.2).
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return at
        elif marker in (_EOI, _SOS):
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _coding_fault(data: bytes) -> str | None:
    """Why the decoders of training lack the coding of a JPEG, or None."""
    at = _frame_header(data)
    if at is None:
        return "has no readable header"
    if data[at + 1] in _LOSSLESS:
        return "is a lossless JPEG"
    if data[at + 1] not in _DECODED:
        return "is a hierarchical JPEG"
    return None if data[at + 4] == 8 else f"is a JPEG of {data[at + 4]} bits"


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in px from the header of a JPEG or PNG; None where it cannot be read."""
    if data.startswith(b"\x89PNG"):
        return struct.unpack(">II", data[16:24]) if len(data) >= 24 else None
    return jpeg_size(data)


def _reaches_end(data: bytes) -> bool:
    """Whether the first image of a JPEG stream reaches its end marker, whatever follows it.

    Walks segments and entropy-coded data from the start (ITU-T T.81, B.1.1): thumbnails in the
    header and images appended by a camera have end markers of their own. Entropy-coded data
    contains none, so a sequential image in one scan is accepted where that scan begins if the
    stream ends with the marker, as nearly all do: searching a scan takes 1.6 us per kB.
    """
    at, components = 2, b"none"
    while match := _MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == _EOI:
            return True
        if marker == _SOI or at + 2 > len(data):
            return False
        if marker in _SEQUENTIAL:
            components = data[at + 7 : at + 8]
        elif marker == _SOS and data[at + 2 : at + 3] == components and data.endswith(_END):
            return True
        if marker != _TEM:  # the only other marker without a length
            at += data[at] << 8 | data[at + 1]
    return False


def _has_png_end(data: bytes) -> bool:
    """Whether the chunks of a PNG reach its last one, whatever follows it."""
    return any(data[start - 4 : start] == b"IEND" for start, _ in png_chunks(data))


def image_fault(data: bytes, width: int, height: int) -> str | None:
    """Why an encoded image cannot be used, or None; reads only its markers.

    Both loaders ask this first, because decoders differ in the damage they tolerate: a truncated
    JPEG decodes where only its upper part is needed. Bytes after the end of an image, as phones and
    cameras write them, are no fault. Damage inside the entropy-coded data is not detected.
    width, height: px, from the record.
    """
    if not data:
        return "is empty"
    if data.startswith(b"\x89PNG"):
        if not (data.endswith(_PNG_END) or _has_png_end(data)):
            return "is a truncated PNG"
    elif data.startswith(b"\xff\xd8"):
        if not _reaches_end(data):
            return "is a truncated JPEG (no end marker)"
        if fault := _coding_fault(data):
            return fault
    else:
        return "is neither JPEG nor PNG"
    size = image_size(data)
    if size is None:
        return "has no readable header"
    if size[0] * size[1] > _LARGEST:
        return "is larger than 2^30 px"
    if size != (width, height):
        return f"is {size[0]}x{size[1]} px but its record says {width}x{height}"
    return None
