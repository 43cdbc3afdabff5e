"""Where to begin decoding, so that frame number A is reached soon and has its number for certain.

Positions in a video are times, and no container counts frames, so the number of a frame is known
only from the packets before it. Reading packets is a thousand times as fast as decoding them: they
are read up to frame A, and the last keyframe is taken that no picture is reordered across. The
number of packets before it is the number of its frame. What comes after it must need nothing from
before: in H.264 and HEVC an IDR picture says so, and some films mark others as keyframes. The very
first packet is decoded too, because what it says of its encoder changes how all others are decoded.

Where a packet is not a frame, this is wrong, so it is tried only where packets are of known times,
each of its own, rising and whole, and where the first ones give a frame each. Otherwise decoding
begins at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fasthg.inference.video.frame_times import REORDER

FORMATS = ("mp4", "matroska", "avi")
"""Parts of FFmpeg's names of formats whose packets have times and keyframes that can be trusted."""
WORTH = 60
"""Frames before the first one that is wanted, from which it is worth to look."""
PROBED = 32
"""Packets from the beginning that must give a frame each."""


_KEYS_SUFFICE = frozenset(
    {"av1", "dnxhd", "ffv1", "huffyuv", "mjpeg", "mpeg4", "png", "prores", "rawvideo", "vp9"}
)
# Codec -> types of units that are slices of pictures; those of IDR ones; how to read the type from
# a unit's first byte; the byte of the container's header that holds the size of lengths.
_UNITS = {
    "h264": (frozenset(range(1, 6)), frozenset({5}), lambda byte: byte & 31, 4),
    "hevc": (frozenset(range(32)), frozenset({19, 20}), lambda byte: byte >> 1 & 63, 21),
}


@dataclass(frozen=True)
class Entry:
    """A keyframe at which decoding can begin."""

    number: int
    """Of its frame, from 0 in the order of presentation."""
    stamp: int
    """Its time of presentation, in units of the stream."""


def find_entry(
    packets: Iterable[Any], start: int, fresh: Callable[[bytes], bool] = lambda data: True
) -> Entry | None:
    """The last entry at or before frame `start`; None where there is none that is certain.

    Args:
        packets: of one stream, as demuxed from its beginning; read no further than needed.
        start: number of a frame, from 0.
        fresh: whether what follows a keyframe of these bytes needs nothing from before.
    """
    found: list[int] = []
    keys: list[int] = []
    last = None
    for packet in packets:
        if not packet.size and packet.dts is None:
            break  # the end
        sound = packet.size and packet.pts is not None
        if not sound or packet.is_corrupt or packet.is_discard:
            return None
        if packet.dts is not None:
            if last is not None and packet.dts < last:
                return None  # a joined recording begins
            last = packet.dts
        if packet.is_keyframe and len(found) <= start and fresh(bytes(packet)):
            keys.append(len(found))
        found.append(packet.pts)
        if len(found) > start + REORDER:
            break
    stamps = np.array(found, np.int64)
    if len(np.unique(stamps)) != len(stamps):
        return None
    before = np.maximum.accumulate(stamps)
    after = np.minimum.accumulate(stamps[::-1])[::-1]
    for key in reversed(keys):
        if key and before[key - 1] < stamps[key] == after[key]:
            return Entry(key, int(stamps[key]))
    return None


def fresh_start(codec: str, header: bytes) -> Callable[[bytes], bool] | None:
    """For a codec by FFmpeg's name, whether the bytes of a keyframe's packet let decoding begin
    there; None where that is not known. header: the codec's, from the container."""
    if codec in _KEYS_SUFFICE:
        return lambda data: True
    if codec not in _UNITS:
        return None
    slices, begins, kind, place = _UNITS[codec]
    size = 0  # units follow codes
    if header[:1] == b"\1" and len(header) > place:
        size = (header[place] & 3) + 1  # units follow their lengths

    def is_idr(data: bytes) -> bool:
        kinds = {kind(unit) for unit in _first_bytes(data, size)} & slices
        return bool(kinds) and kinds <= begins

    return is_idr


def _first_bytes(data: bytes, size: int) -> Iterator[int]:
    """The first byte of each unit of a packet, whose lengths have `size` bytes; 0: codes."""
    at = 0
    while size and at + size < len(data):
        yield data[at + size]
        at += size + int.from_bytes(data[at : at + size], "big")
    while not size and (at := data.find(b"\0\0\1", at)) >= 0 and at + 3 < len(data):
        yield data[at + 3]
        at += 3


def frame_a_packet(stream: Any, packets: Iterable[Any], errors: type[Exception]) -> bool:
    """Whether each of the first packets gives a frame. errors: what decoding raises."""
    sent = given = 0
    try:
        for packet in packets:
            if sent == PROBED or not packet.size:
                break
            sent += 1
            given += len(stream.decode(packet))
        given += len(stream.decode(None))
    except errors:
        return False
    return sent == given
