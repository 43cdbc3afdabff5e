"""H.264 of field pictures, written bit by bit: no encoder at hand makes them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

_COLUMNS, _ROWS = 2, 2  # macroblocks of a field
_PERIOD = 16  # frames between two IDR pictures


class _Bits:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, size: int, *values: int) -> None:
        for value in values:
            self.bits += [(value >> place) & 1 for place in reversed(range(size))]

    def golomb(self, *values: int) -> None:
        for value in values:
            size = (value + 1).bit_length()
            self.put(size - 1, 0)
            self.put(size, value + 1)

    def align(self) -> None:
        self.bits += [0] * (-len(self.bits) % 8)

    def unit(self, header: int) -> bytes:
        """The NAL unit, with the bytes that keep start codes unique."""
        self.put(1, 1)
        self.align()
        content, zeros = bytearray(), 0
        for byte in np.packbits(np.array(self.bits, np.uint8)).tobytes():
            if zeros >= 2 and byte <= 3:
                content.append(3)
                zeros = 0
            content.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([header]) + bytes(content)


def _parameters() -> bytes:
    sequence = _Bits()
    sequence.put(8, 77, 0, 30)  # Main, level 3
    sequence.golomb(0, 0, 0, 4, 1)  # frame_num of 4 bits, picture order count of 8, 1 reference
    sequence.put(1, 0)
    sequence.golomb(_COLUMNS - 1, _ROWS - 1)
    sequence.put(1, 0, 0, 1, 0, 0)  # frame_mbs_only_flag 0
    picture = _Bits()
    picture.golomb(0, 0)
    picture.put(1, 0, 0)  # CAVLC
    picture.golomb(0, 0, 0)
    picture.put(3, 0)
    picture.golomb(0, 0, 0)
    picture.put(3, 0)
    return sequence.unit(0x67) + picture.unit(0x68)


def _field(frame: int, bottom: int, grey: int) -> bytes:
    number = frame % _PERIOD
    first = number == 0 and not bottom
    field = _Bits()
    field.golomb(0, 7, 0)  # an I slice
    field.put(4, number)
    field.put(1, 1, bottom)
    if first:
        field.golomb(0)
    field.put(8, 2 * number + bottom)
    field.put(1, *([0, 0] if first else [0]))
    field.golomb(0)
    for _ in range(_COLUMNS * _ROWS):
        field.golomb(25)  # I_PCM
        field.align()
        field.put(8, *([grey] * 256), *([128] * 128))
    return field.unit(0x65 if first else 0x41)


def field_pictures(path: Path, frames: int) -> Path:
    """A film of 32x64 px, 25 frames a second, each brighter; a packet holds one field."""
    av = pytest.importorskip("av")

    def packets(stream: object) -> Iterable[object]:
        for frame in range(frames):
            for bottom in (0, 1):
                start = _parameters() if frame % _PERIOD == 0 and not bottom else b""
                packet = av.Packet(start + _field(frame, bottom, 16 + 5 * frame))
                packet.pts = packet.dts = 40 * frame + 20 * bottom
                packet.time_base, packet.stream = Fraction(1, 1000), stream
                packet.is_keyframe = bool(start)
                yield packet

    raw = path.with_suffix(".h264")
    raw.write_bytes(_parameters() + _field(0, 0, 16) + _field(0, 1, 16))
    with av.open(str(raw), format="h264") as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 1000)
        for packet in packets(stream):
            out.mux(packet)
    return path
