"""Protobuf's wire format without schemas: the fields of a message as spans, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
SHORT = 35
"""Bits of a varint of five bytes, protobuf's most for tags and lengths."""


def varint(data: bytes, at: int, end: int, bits: int = 70) -> tuple[int, int]:
    """The unsigned varint at `at`, of at most `bits` / 7 bytes, and the position after it."""
    value = shift = 0
    while at < end and shift < bits:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"broken integer at byte {at}")


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in [start, end): (number, wire type, start, end of the value)."""
    at = start
    while at < end:
        tag, at = varint(data, at, end, SHORT)
        wire = tag & 7
        if not 8 <= tag < 1 << 32:
            raise ValueError(f"impossible field number {tag >> 3} at byte {at}")
        if wire == DELIMITED:
            length, at = varint(data, at, end, SHORT)
            stop = at + length
        elif wire == VARINT:
            stop = varint(data, at, end)[1]
        elif wire == FIXED32:
            stop = at + 4
        elif wire == FIXED64:
            stop = at + 8
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if stop > end:
            raise ValueError(f"field at byte {at} runs past its message")
        yield tag >> 3, wire, at, stop
        at = stop


def encode_varint(value: int) -> bytes:
    """A number as a varint; a negative one as its 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """Field `number` with a varint."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value)


def delimited(number: int, *parts: bytes) -> bytes:
    """Field `number` with the bytes of all parts, one behind the other."""
    length = encode_varint(sum(map(len, parts)))
    return b"".join((encode_varint(number << 3 | DELIMITED), length, *parts))
