"""Protocol buffers' wire format, and `tf.train.Example` in it, read and written without TensorFlow.

The messages, in protobuf's notation (source: tensorflow/core/example/{example,feature}.proto)::

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }        one entry: { key = 1; value = 2; }
    Feature  { oneof kind { BytesList = 1; FloatList = 2; Int64List = 3; } }
    *List    { repeated value = 1; }                      floats and ints packed or not

The reader works on spans (start, end) of the serialised bytes and decodes a feature only when its
value is read: an index over many records never copies the images in them. Whatever protobuf allows
is read as protobuf reads it: fields in any order, unknown fields, split messages, a repeated key
(the last one counts), a list after a list of another kind (it replaces it). Anything else raises
ValueError with the byte position. Deliberate differences from protobuf: groups (proto3 has none)
and a map entry with two values are refused, keys need not be UTF-8, values that are not read or
are replaced are not checked, and a record holds at most MAX_FEATURES features, a list MAX_VALUES
values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
SHORT = 35
"""Bits in five bytes of a varint, protobuf's limit for tags and lengths."""


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
    """Fields of the message in [start, end): (number, wire type, start and end of the value)."""
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
    """A number as a varint; a negative number as its 64 bits in two's complement."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """Field `number` that holds a varint."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value)


def delimited(number: int, *parts: bytes) -> bytes:
    """Field `number` that holds the bytes of all parts, concatenated."""
    length = encode_varint(sum(map(len, parts)))
    return b"".join((encode_varint(number << 3 | DELIMITED), length, *parts))


Span = tuple[int, int]
Value = Sequence[bytes] | Sequence[int] | npt.NDArray[np.float32]

MAX_FEATURES = 4096
MAX_VALUES = 1 << 18
_MAX_FLOAT_BYTES, _MAX_INT_BYTES = 4 * MAX_VALUES, 10 * MAX_VALUES

_BYTES, _FLOATS, _INTS = 1, 2, 3
_SINGLE = {_BYTES: DELIMITED, _FLOATS: FIXED32, _INTS: VARINT}
_NAMES = {_BYTES: "bytes", _FLOATS: "floats", _INTS: "integers"}
_LISTS = bytes(kind << 3 | DELIMITED for kind in _NAMES)
_TOO_MANY = f"more than {MAX_FEATURES} features"
_TOO_LONG = f"more than {MAX_VALUES} values"


def features(data: bytes) -> dict[bytes, Span]:
    """Span of each Feature message of a serialised Example, by key. Values are not decoded."""
    spans: dict[bytes, Span] = {}
    for number, wire, start, end in fields(data, 0, len(data)):
        if number == 1 and wire == DELIMITED:
            _read_entries(data, start, end, spans)
            if len(spans) > MAX_FEATURES:
                raise ValueError(_TOO_MANY)
    return spans


def _read_entries(data: bytes, at: int, end: int, spans: dict[bytes, Span]) -> None:
    """Add the map entries of the Features message in [at, end) to `spans`.

    This loop runs for every feature of every record and dominates the time of indexing, so the
    entry that every known writer produces (key, then value, nothing else) is read in place; any
    other entry goes through `fields`.
    """
    for _ in range(MAX_FEATURES):
        if at >= end:
            return
        if data[at] == 0x0A and at + 1 < end:
            length, entry = data[at + 1], at + 2
            if length >= 0x80:
                length, entry = varint(data, at + 1, end, SHORT)
            at = entry + length
            if at > end:
                raise ValueError(f"field at byte {entry} runs past its message")
        else:
            number, wire, entry, at = next(fields(data, at, end))
            if number != 1 or wire != DELIMITED:
                continue
        if at - entry > 4 and data[entry] == 0x0A:
            value = entry + 2 + data[entry + 1]
            if data[entry + 1] < 0x80 and value + 1 < at and data[value] == 0x12:
                size = data[value + 1]
                start = value + 2
                if size >= 0x80:
                    size, start = varint(data, value + 1, at, SHORT)
                if start + size == at:
                    spans[data[entry + 2 : value]] = (start, at)
                    continue
        key, span = b"", None
        for field, wire, start, stop in fields(data, entry, at):
            if wire == DELIMITED and field == 1:
                key = data[start:stop]
            elif wire == DELIMITED and field == 2:
                if span:
                    raise ValueError(f"second value of a feature at byte {start}")
                span = (start, stop)
        spans[key] = span or (at, at)
    if at < end:
        raise ValueError(_TOO_MANY)


def _values(data: bytes, span: Span, kind: int) -> list[Span]:
    """Span of each `value` field of the list of `kind` in a Feature message.

    Raises ValueError where it holds another kind, or more pieces than a list may have values.
    """
    start, end = span
    # Fast path of nearly every feature: one packed list of less than 128 bytes, nothing else.
    if (
        6 <= end - start < 130
        and data[start] == kind << 3 | DELIMITED
        and data[start + 2] == 0x0A
        and data[start + 1] == end - start - 2 < 0x80
        and data[start + 3] == end - start - 4
    ):
        return [(start + 4, end)]
    spans: list[Span] = []
    held = kind
    for number, wire, inner, inner_end in fields(data, start, end):
        if wire != DELIMITED or number not in _NAMES:
            continue
        if number != held:
            spans.clear()
            held = number
        if number == kind:
            for field, field_wire, at, stop in fields(data, inner, inner_end):
                if field == 1 and field_wire in (DELIMITED, _SINGLE[kind]):
                    if kind == _FLOATS and (stop - at) % 4:
                        raise ValueError(f"floats of {stop - at} bytes at byte {at}")
                    spans.append((at, stop))
                    if len(spans) > MAX_VALUES:
                        raise ValueError(_TOO_LONG)
    if held != kind:
        raise ValueError(f"holds {_NAMES[held]} where {_NAMES[kind]} belong")
    return spans


def strings(data: bytes, span: Span) -> list[bytes]:
    """Byte strings of a Feature, or its integers as decimal text. ValueError on floats."""
    start, end = span
    # Fast path: one list of less than 128 bytes and nothing else; its tag gives the kind.
    if 2 <= end - start < 130 and data[start + 1] == end - start - 2 and data[start] in _LISTS:
        kind = data[start] >> 3
    else:
        kind = _BYTES
        for number, wire, _, _ in fields(data, start, end):
            if wire == DELIMITED and number in _NAMES:
                kind = number
    if kind == _INTS:
        return [b"%d" % value for value in ints(data, span)]
    return [data[start:end] for start, end in bytes_spans(data, span)]


def bytes_spans(data: bytes, span: Span) -> list[Span]:
    """Span of each byte string in a Feature. ValueError where it holds numbers."""
    return _values(data, span, _BYTES)


def float_bytes(data: bytes, span: Span) -> bytes:
    """Values of a Feature as consecutive little-endian float32. ValueError on another kind."""
    values = b"".join([data[start:end] for start, end in _values(data, span, _FLOATS)])
    if len(values) % 4 or len(values) > _MAX_FLOAT_BYTES:
        raise ValueError(f"floats of {len(values)} bytes" if len(values) % 4 else _TOO_LONG)
    return values


def ints(data: bytes, span: Span) -> list[int]:
    """Values of a Feature as signed 64-bit integers. ValueError where it holds another kind."""
    values: list[int] = []
    for at, end in _values(data, span, _INTS):
        packed = data[at:end]
        if packed.isascii():
            # Every byte is below 128, hence an integer of its own.
            values.extend(packed)
        elif end - at > _MAX_INT_BYTES:
            raise ValueError(_TOO_LONG)
        else:
            while at < end:
                value, at = varint(data, at, end)
                value &= 0xFFFFFFFFFFFFFFFF
                values.append(value - (1 << 64) if value >> 63 else value)
        if len(values) > MAX_VALUES:
            raise ValueError(_TOO_LONG)
    return values


def _encode_feature(value: Value) -> bytes:
    if isinstance(value, np.ndarray):
        return delimited(_FLOATS, delimited(1, value.astype("<f4").tobytes()))
    if not value:
        return b""
    texts = [item for item in value if isinstance(item, bytes)]
    if texts:
        return delimited(_BYTES, *(delimited(1, item) for item in texts))
    numbers = [int(item) for item in value]
    if min(numbers) < -(1 << 63) or max(numbers) >= 1 << 63:
        raise ValueError("an integer does not fit 64 bits")
    return delimited(_INTS, delimited(1, *map(encode_varint, numbers)))


def encode_example(values: Mapping[str, Value]) -> bytes:
    """Serialise an Example: byte strings, integers or a float32 array for each key, sorted by key.

    An empty Python list has no type and is written as a Feature of no kind, which TensorFlow reads
    as a missing value. Raises ValueError for an integer of more than 64 bits.
    """
    entries: Iterable[bytes] = (
        delimited(1, delimited(1, key.encode()), delimited(2, _encode_feature(values[key])))
        for key in sorted(values)
    )
    return delimited(1, *entries)
