"""What the bytes of an encoded image say of themselves, without decoding it."""

from __future__ import annotations

import struct

_LARGEST = 1 << 30  # px, of OpenCV


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in px from a JPEG's frame header, or None where there is none to read.

    Walks the marker segments to the first SOFn (ITU-T T.81, B.1.1.3 and B.2.2).
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            return (width, height) if width and height else None
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def image_fault(data: bytes, width: int, height: int) -> str | None:
    """Why an encoded image cannot be trusted, or None; reads only its markers, a few microseconds.

    Both loaders ask this first, because decoders differ in what damage they let pass: a truncated
    JPEG decodes where only its upper part is wanted. Damage inside the entropy-coded data is not
    seen here. width, height: px, as the record says.
    """
    if not data:
        return "is empty"
    if data.startswith(b"\x89PNG"):
        size = struct.unpack(">II", data[16:24]) if len(data) >= 24 else None
        if b"IEND" not in data[-16:]:
            return "is a truncated PNG"
    elif data.startswith(b"\xff\xd8"):
        # A thumbnail in the header has an end marker too, hence only the tail is searched; some
        # cameras append a little after the end.
        if data.rfind(b"\xff\xd9", max(2, len(data) - 1024)) < 0:
            return "is a truncated JPEG (no end marker)"
        size = jpeg_size(data)
    else:
        return "is neither JPEG nor PNG"
    if size is None:
        return "has no readable header"
    if size[0] * size[1] > _LARGEST:
        return "is larger than 2^30 px"
    if size != (width, height):
        return f"is {size[0]}x{size[1]} px but its record says {width}x{height}"
    return None
