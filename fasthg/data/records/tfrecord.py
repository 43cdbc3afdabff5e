"""TFRecord framing: length and checksums around each serialised record of a file.

A file is a sequence of frames, without header or index::

    uint64 length | uint32 masked CRC32C of the length bytes | data | uint32 masked CRC32C of data

all little-endian; ``masked = rotate_right(crc, 15) + 0xa282ead8 (mod 2**32)``. Source: the TFRecord
section of TensorFlow's guide (tensorflow.org/tutorials/load_data/tfrecord).
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fasthg.data.records.foreign import FIRST_BYTES, foreign_kind
from fasthg.errors import DataError, missing_package
from fasthg.files import write_chunks

HEADER_BYTES = 12
FOOTER_BYTES = 4
# Limit of protobuf for one message.
MAX_BYTES = (1 << 31) - 1
_LARGEST_PIECE = 1 << 20
_MASK = 0xA282EAD8

_LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_CHECK = "check the path or the glob"
_REMEDY = "write or copy the file again"
_TOO_LARGE = "the record is larger than the 2 GiB that protobuf allows"


class Frame(NamedTuple):
    """One record; `offset` is the byte position of `payload` (not of its frame) in the file."""

    offset: int
    payload: bytes


class Damage(NamedTuple):
    """A stretch of a file without a readable record: its byte position, and why."""

    offset: int
    what: str


@functools.cache
def _crc32c() -> Callable[[bytes], int]:
    """The checksum; loaded when records are met, which predictions on films never do."""
    try:
        import google_crc32c
    except ModuleNotFoundError:
        raise missing_package("TFRecords", "google-crc32c", "train") from None
    value: Callable[[bytes], int] = google_crc32c.value
    return value


def masked_crc(data: bytes) -> int:
    """CRC32C of `data` as TFRecord stores it: rotated and offset, an unsigned 32-bit integer."""
    crc: int = _crc32c()(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The bytes of one frame around `payload`."""
    length = _LENGTH.pack(len(payload))
    return b"".join(
        (length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload)))
    )


def read_frames(path: str | os.PathLike[str], *, verify_crc: bool = True) -> Iterator[Frame]:
    """Frames of a file in order, one in memory at a time.

    Raises DataError, which names the file, the record number (from 0) and its byte offset, when the
    file cannot be opened, is no TFRecord file, is cut short, fails a CRC or has a record of more
    than MAX_BYTES. Without `verify_crc` only lengths are checked.
    """
    path = os.fspath(path)
    with _opened(path) as stream:
        yield from _frames(path, stream, verify_crc)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: {reason}; check the path and its rights") from None


def _frames(path: str, stream: BinaryIO, verify_crc: bool) -> Iterator[Frame]:
    size = os.fstat(stream.fileno()).st_size
    start, number = 0, 0
    while start < size:
        header = stream.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise _damaged(path, number, start, "the file ends inside the record's header")
        length, length_crc = _HEADER.unpack(header)
        available = size - start - HEADER_BYTES - FOOTER_BYTES
        # Without a CRC check, a first length beyond the end of the file marks a foreign file.
        plausible = number > 0 or length <= available
        sound = length_crc == masked_crc(header[:8]) if verify_crc else plausible
        if not sound and number == 0:
            raise DataError(f"{path}: {_foreign(stream) or 'not a TFRecord file; ' + _CHECK}")
        if not sound:
            raise _damaged(path, number, start, "the CRC of the record's length is wrong")
        if length > available:
            raise _damaged(path, number, start, "the file ends inside the record")
        if length > MAX_BYTES:
            raise _damaged(path, number, start, _TOO_LARGE)
        payload = stream.read(length)
        footer = stream.read(FOOTER_BYTES)
        if len(payload) != length or len(footer) != FOOTER_BYTES:
            raise _damaged(path, number, start, "the file ends inside the record")
        if verify_crc and _CRC.unpack(footer)[0] != masked_crc(payload):
            raise _damaged(path, number, start, "the CRC of the record's data is wrong")
        yield Frame(start + HEADER_BYTES, payload)
        start += HEADER_BYTES + length + FOOTER_BYTES
        number += 1


def _foreign(stream: BinaryIO) -> str | None:
    """What a file is that does not begin with a record, and the remedy; None if unknown."""
    stream.seek(0)
    kind = foreign_kind(stream.read(FIRST_BYTES))
    return f"no TFRecord file, it {kind}" if kind else None


def salvage_frames(path: str | os.PathLike[str]) -> Iterator[Frame | Damage]:
    """Sound frames of a file that may be damaged, and each damaged stretch between them.

    After a broken header, and after a broken record that is not followed by a header, the reader
    searches for the next sound header, so that lost or inserted bytes cost no other record.
    Raises DataError where the file cannot be opened.
    """
    with _opened(os.fspath(path)) as stream:
        size = os.fstat(stream.fileno()).st_size
        at, in_vain = 0, 0
        while at < size:
            result, end = _record_at(stream, at, size)
            if isinstance(result, bytes):
                yield Frame(at + HEADER_BYTES, result)
            else:
                in_vain += end - at
                # Nested broken records would be read again and again: `in_vain` bounds the bytes
                # that are read in all.
                if end == at or not (in_vain > 4 * size or _is_header(stream, end, size)):
                    end = _next_header(stream, at + 1, size)
                foreign = _foreign(stream) if (at, end) == (0, size) else None
                yield Damage(at, foreign or f"{result}, {end - at} bytes are lost")
            at = end


def _record_at(stream: BinaryIO, start: int, size: int) -> tuple[bytes | str, int]:
    """Payload of the record at a byte position, or why it is unreadable, and its end.

    The end is `start` where the header gives none within the file.
    """
    stream.seek(start)
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return "the file ends inside the record's header", start
    length, length_crc = _HEADER.unpack(header)
    end = start + HEADER_BYTES + length + FOOTER_BYTES
    if length_crc != masked_crc(header[:8]):
        return "the CRC of the record's length is wrong", start
    if end > size:
        return "the file ends inside the record", start
    if length > MAX_BYTES:
        return _TOO_LARGE, end
    payload, footer = stream.read(length), stream.read(FOOTER_BYTES)
    if len(footer) < FOOTER_BYTES:
        return "the file ends inside the record", start
    if _CRC.unpack(footer)[0] != masked_crc(payload):
        return "the CRC of the record's data is wrong", end
    return payload, end


def _is_header(stream: BinaryIO, at: int, size: int) -> bool:
    """Whether a sound header or the end of the file is at a byte position."""
    stream.seek(at)
    header = stream.read(HEADER_BYTES)
    return at == size or (
        len(header) == HEADER_BYTES and _HEADER.unpack(header)[1] == masked_crc(header[:8])
    )


def _next_header(stream: BinaryIO, start: int, size: int) -> int:
    """Position, from `start` on, of the first sound header of a record that fits; else `size`.

    Tests all positions of a piece of the file at once with NumPy. A CRC is linear over GF(2), so
    the CRC of a length is the XOR of the contributions of its bytes; the upper four bytes of any
    possible length are zero.
    """
    zeros_crc, contributions = _length_crcs()
    piece = 1 << 12
    while start + HEADER_BYTES + FOOTER_BYTES <= size:
        stream.seek(start)
        data = np.frombuffer(stream.read(piece + HEADER_BYTES - 1), np.uint8)
        count = len(data) - HEADER_BYTES + 1
        if count < 1:
            break
        if data.any():
            byte = [data[i : i + count] for i in range(HEADER_BYTES)]
            places = np.flatnonzero((byte[4] | byte[5] | byte[6] | byte[7]) == 0)
            crc = np.full(len(places), zeros_crc, np.uint32)
            stored = np.zeros(len(places), np.uint32)
            for i in range(4):
                crc ^= contributions[i][byte[i][places]]
                stored |= byte[8 + i][places].astype(np.uint32) << np.uint32(8 * i)
            masked = (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(_MASK)
            for place in places[masked == stored].tolist():
                (length,) = _LENGTH.unpack(data[place : place + 8].tobytes())
                if start + place + HEADER_BYTES + length + FOOTER_BYTES <= size:
                    return start + place
        start += count
        piece = min(4 * piece, _LARGEST_PIECE)  # the next record is usually near
    return size


@functools.cache
def _length_crcs() -> tuple[int, npt.NDArray[np.uint32]]:
    """CRC32C of eight zeros, and the contribution (4, 256) of each value of the first 4 bytes."""
    crc32c = _crc32c()
    zeros_crc = crc32c(bytes(8))
    lengths = ((_LENGTH.pack(byte << 8 * i) for byte in range(256)) for i in range(4))
    crcs = [[crc32c(length) ^ zeros_crc for length in row] for row in lengths]
    return zeros_crc, np.array(crcs, np.uint32)


def _damaged(path: str, number: int, start: int, what: str) -> DataError:
    return DataError(f"{path}: record {number} at byte {start}: {what}; {_REMEDY}")


def write_frames(path: str | os.PathLike[str], payloads: Iterable[bytes]) -> int:
    """Write `payloads` to `path` atomically and return their number.

    An exception (also one raised by `payloads`) leaves neither a partial file nor a damaged old
    one. Missing folders are created.

    Raises:
        FasthgError: the file cannot be written.
    """
    return write_chunks(Path(path), (frame(payload) for payload in payloads))
