"""The wire format of `tf.train.Example`, read and written without TensorFlow.

The messages, in protobuf's notation (source: tensorflow/core/example/{example,feature}.proto)::

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }        one entry: { key = 1; value = 2; }
    Feature  { oneof kind { BytesList = 1; FloatList = 2; Int64List = 3; } }
    *List    { repeated value = 1; }                      floats and ints packed or not

The reader works on spans (start, end) of the serialised bytes and decodes only what it is asked
for: an index over many records never copies the images in them. Whatever protobuf allows is read
as protobuf reads it: fields in any order, unknown fields, split messages, a key given twice (the
last one counts), a list given after one of another kind (it replaces it). Anything else raises
ValueError with the byte position. Deliberately other than protobuf: groups (proto3 has none) and a
map entry with two values are refused, keys need not be UTF-8, what is not asked for or replaced is
not looked at, and a record holds at most MAX_FEATURES features, a list MAX_VALUES values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fasthg.data.records.wire import (
    DELIMITED,
    FIXED32,
    SHORT,
    VARINT,
    delimited,
    encode_varint,
    fields,
    varint,
)

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
    found: dict[bytes, Span] = {}
    for number, wire, start, end in fields(data, 0, len(data)):
        if number == 1 and wire == DELIMITED:
            _entries(data, start, end, found)
            if len(found) > MAX_FEATURES:
                raise ValueError(_TOO_MANY)
    return found


def _entries(data: bytes, at: int, end: int, found: dict[bytes, Span]) -> None:
    """Add the map entries of the Features message in [at, end) to `found`.

    This loop runs for every feature of every record and is what indexing a large set costs, so the
    layout that every known writer produces (key, then value, nothing else) is read in place; any
    other entry goes through `_fields`.
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
                    found[data[entry + 2 : value]] = (start, at)
                    continue
        key, span = b"", None
        for field, wire, start, stop in fields(data, entry, at):
            if wire == DELIMITED and field == 1:
                key = data[start:stop]
            elif wire == DELIMITED and field == 2:
                if span:
                    raise ValueError(f"second value of a feature at byte {start}")
                span = (start, stop)
        found[key] = span or (at, at)
    if at < end:
        raise ValueError(_TOO_MANY)


def _values(data: bytes, span: Span, kind: int) -> list[Span]:
    """Span of each `value` field of the list of `kind` in a Feature message.

    Raises ValueError where it holds another kind, or more pieces than a list may have values.
    """
    start, end = span
    # One packed list and nothing else, in less than 128 bytes: nearly every feature there is.
    if (
        6 <= end - start < 130
        and data[start] == kind << 3 | DELIMITED
        and data[start + 2] == 0x0A
        and data[start + 1] == end - start - 2 < 0x80
        and data[start + 3] == end - start - 4
    ):
        return [(start + 4, end)]
    found: list[Span] = []
    held = kind
    for number, wire, inner, inner_end in fields(data, start, end):
        if wire != DELIMITED or number not in _NAMES:
            continue
        if number != held:
            found.clear()
            held = number
        if number == kind:
            for field, field_wire, at, stop in fields(data, inner, inner_end):
                if field == 1 and field_wire in (DELIMITED, _SINGLE[kind]):
                    if kind == _FLOATS and (stop - at) % 4:
                        raise ValueError(f"floats of {stop - at} bytes at byte {at}")
                    found.append((at, stop))
                    if len(found) > MAX_VALUES:
                        raise ValueError(_TOO_LONG)
    if held != kind:
        raise ValueError(f"holds {_NAMES[held]} where {_NAMES[kind]} belong")
    return found


def strings(data: bytes, span: Span) -> list[bytes]:
    """The byte strings of a Feature, or its integers as decimal text. ValueError on floats."""
    start, end = span
    # One list in less than 128 bytes and nothing else says at once what it holds.
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
    """The values of a Feature as consecutive little-endian float32. ValueError on another kind."""
    found = b"".join([data[start:end] for start, end in _values(data, span, _FLOATS)])
    if len(found) % 4 or len(found) > _MAX_FLOAT_BYTES:
        raise ValueError(f"floats of {len(found)} bytes" if len(found) % 4 else _TOO_LONG)
    return found


def ints(data: bytes, span: Span) -> list[int]:
    """The values of a Feature as signed 64-bit integers. ValueError where it holds another kind."""
    found: list[int] = []
    for at, end in _values(data, span, _INTS):
        packed = data[at:end]
        if packed.isascii():
            # Every byte is below 128 and thus an integer of its own.
            found.extend(packed)
        elif end - at > _MAX_INT_BYTES:
            raise ValueError(_TOO_LONG)
        else:
            while at < end:
                value, at = varint(data, at, end)
                value &= 0xFFFFFFFFFFFFFFFF
                found.append(value - (1 << 64) if value >> 63 else value)
        if len(found) > MAX_VALUES:
            raise ValueError(_TOO_LONG)
    return found


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


def encode(values: Mapping[str, Value]) -> bytes:
    """Serialise an Example: byte strings, integers or a float32 array for each key, sorted by key.

    An empty list has no type of its own and is written as a Feature of no kind, which TensorFlow
    takes for a missing value. Raises ValueError for an integer of more than 64 bits.
    """
    entries: Iterable[bytes] = (
        delimited(1, delimited(1, key.encode()), delimited(2, _encode_feature(values[key])))
        for key in sorted(values)
    )
    return delimited(1, *entries)
