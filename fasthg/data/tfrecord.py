"""TFRecord framing: what lies around each serialised record in a file.

A file is a sequence of frames, without header or index::

    uint64 length | uint32 masked CRC32C of the length bytes | data | uint32 masked CRC32C of data

all little-endian; ``masked = rotate_right(crc, 15) + 0xa282ead8 (mod 2**32)``. Source: the TFRecord
section of TensorFlow's guide (tensorflow.org/tutorials/load_data/tfrecord).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from fasthg.errors import DataError

HEADER_BYTES = 12
FOOTER_BYTES = 4

_LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_REMEDY = "write or copy the file again"


class Frame(NamedTuple):
    """One record; `offset` is the byte position of `payload` (not of its frame) in the file."""

    offset: int
    payload: bytes


def masked_crc(data: bytes) -> int:
    """CRC32C of `data` as TFRecord stores it: rotated and offset, an unsigned 32-bit integer."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The bytes of one frame around `payload`."""
    length = _LENGTH.pack(len(payload))
    return b"".join(
        (length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload)))
    )


def read_frames(path: str | os.PathLike[str], *, verify_crc: bool = True) -> Iterator[Frame]:
    """Yield the frames of a file in order, one in memory at a time.

    Raises DataError, which names the file, the record number (from 0) and its byte offset, when the
    file cannot be opened, is no TFRecord file, is cut short or fails a CRC. Without `verify_crc`
    only lengths are checked.
    """
    path = os.fspath(path)
    try:
        stream = open(path, "rb")  # noqa: SIM115  only the opening is to be caught here
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: {reason}; check the path and its rights") from None
    with stream:
        yield from _frames(path, stream, verify_crc)


def _frames(path: str, stream: BinaryIO, verify_crc: bool) -> Iterator[Frame]:
    size = os.fstat(stream.fileno()).st_size
    start, number = 0, 0
    while start < size:
        header = stream.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise _damaged(path, number, start, "the file ends inside the record's header")
        length, length_crc = _HEADER.unpack(header)
        room = size - start - HEADER_BYTES - FOOTER_BYTES
        # Without a CRC to trust, a first length beyond the end is the sign of a foreign file.
        plausible = number > 0 or length <= room
        sound = length_crc == masked_crc(header[:8]) if verify_crc else plausible
        if not sound and number == 0:
            raise DataError(f"{path}: not a TFRecord file; check the path or the glob")
        if not sound:
            raise _damaged(path, number, start, "the CRC of the record's length is wrong")
        if length > room:
            raise _damaged(path, number, start, "the file ends inside the record")
        payload = stream.read(length)
        footer = stream.read(FOOTER_BYTES)
        if len(payload) != length or len(footer) != FOOTER_BYTES:
            raise _damaged(path, number, start, "the file ends inside the record")
        if verify_crc and _CRC.unpack(footer)[0] != masked_crc(payload):
            raise _damaged(path, number, start, "the CRC of the record's data is wrong")
        yield Frame(start + HEADER_BYTES, payload)
        start += HEADER_BYTES + length + FOOTER_BYTES
        number += 1


def _damaged(path: str, number: int, start: int, what: str) -> DataError:
    return DataError(f"{path}: record {number} at byte {start}: {what}; {_REMEDY}")


def write_frames(path: str | os.PathLike[str], payloads: Iterable[bytes]) -> int:
    """Write `payloads` to `path` and return their number.

    The file appears only when it is complete: it is written beside its place and then renamed, so
    an exception (also one raised by `payloads`) leaves neither a half file nor a damaged old one.
    Missing folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    count = 0
    try:
        with open(partial, "wb") as stream:
            for payload in payloads:
                stream.write(frame(payload))
                count += 1
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return count
