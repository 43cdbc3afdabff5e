"""Where to begin decoding, so that frame number A is reached soon and has its number for certain.

Positions in a video are times, and no container counts frames, so the number of a frame is known
only from the packets before it. Reading packets is a thousand times as fast as decoding them: they
are read up to frame A, and the last keyframe is taken that no picture is reordered across. The
number of packets before it is the number of its frame, and what comes after it needs nothing from
before.

Where a packet is not a frame, this is wrong, so it is tried only where packets are of known times,
each of its own, rising and whole, and where the first ones give a frame each. Otherwise decoding
begins at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True)
class Entry:
    """A keyframe at which decoding can begin."""

    number: int
    """Of its frame, from 0 in the order of presentation."""
    stamp: int
    """Its time of presentation, in units of the stream."""


def find_entry(packets: Iterable[Any], start: int) -> Entry | None:
    """The last entry at or before frame `start`; None where there is none that is certain.

    Args:
        packets: of one stream, as demuxed from its beginning; read no further than needed.
        start: number of a frame, from 0.
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
        if packet.is_keyframe:
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
        if 0 < key <= start and before[key - 1] < stamps[key] == after[key]:
            return Entry(key, int(stamps[key]))
    return None


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
