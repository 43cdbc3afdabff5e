"""Which packets of a film gave no frame, and a time for every frame that never goes back.

Times in files are not always those of presentation. AVI has none: what the demuxer makes up follows
the order of packets, which is not that of B-frames. Recordings that were joined begin again at
their first time. Some packets hold no frame of their own: hidden frames of VP8, the second of two
fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

REORDER = 64
"""Packets by which a frame can come late: 16 of H.264's buffer, and one a thread."""


@dataclass
class _Packet:
    part: int
    """Of joined recordings, from 0."""
    stamp: int | None
    """Time in units of the stream; None where the file does not say."""


class FrameTimes:
    """Packets in, frames out; both in the decoder's order.

    Args:
        step: usual time between frames, units of the stream.
        hides: whether packets without a frame are ordinary.
    """

    def __init__(self, step: int, hides: bool) -> None:
        self._step = step
        self._hides = hides
        self._damaged = False
        self._waiting: dict[int, _Packet] = {}
        self._taken: set[int] = set()
        """Packets whose time went to another frame: which packet an error is of is not known."""
        self._sent = 0
        self._part = 0
        self._last_dts: int | None = None
        self._highest: int | None = None
        self._in_order = True
        """Whether the stamps of this part rise from packet to packet."""
        self._offsets = {0: 0}
        self._last: int | None = None

    def sent(self, packet: Any) -> int:
        """Note a packet of the stream that goes to the decoder; its number."""
        if packet.dts is not None:
            # Demuxers guess missing times of decoding, and guess wrong around damage: a part begins
            # with a keyframe, or far back.
            back = 0 if self._last_dts is None else self._last_dts - packet.dts
            if back > (0 if packet.is_keyframe else REORDER * self._step):
                self._part += 1
                self._highest, self._in_order = None, True
            self._last_dts = packet.dts
        if packet.pts is not None:
            if self._highest is not None and packet.pts < self._highest:
                self._in_order = False
            self._highest = max(packet.pts, self._highest or packet.pts)
        self._damaged = self._damaged or packet.is_corrupt
        self._waiting[self._sent] = _Packet(self._part, packet.pts)
        self._sent += 1
        return self._sent - 1

    def failed(self, reorders: bool) -> Iterator[int | None]:
        """Times of frames that an error of the decoder loses for certain."""
        self._damaged = True
        if not self._waiting:
            return
        if self._hides or all(packet.stamp is None for packet in self._waiting.values()):
            yield self._at(None, self._part)
        elif reorders and self._in_order:
            packet = self._next()
            yield self._at(packet.stamp, packet.part)

    def appeared(
        self, number: int | None, stamp: int | None, reorders: bool
    ) -> Iterator[tuple[int | None, bool]]:
        """(time, whether it is lost) of the frames up to one that the decoder gives, the last one.

        number: of its packet; None where the decoder does not say. stamp: what it gives as the
        frame's time. reorders: whether the stream has B-frames.
        """
        packet = self._waiting.pop(number, None) if number is not None else None
        if packet is None and number in self._taken and self._waiting:
            packet = self._next()
        if packet is None:
            yield self._at(stamp, self._part), False
            return
        assert number is not None
        if not self._in_order or packet.part != self._part:
            if packet.stamp is not None:
                at = packet.part, packet.stamp
                for lost in self._before(lambda each: self._order(each) < at):
                    yield self._at(lost.stamp, lost.part), True
        elif reorders:
            # Stamps in the order of packets, frames in another: each takes the next stamp.
            self._before(lambda each: each < number - REORDER)
            first = min(self._waiting, key=self._order, default=None)
            if first is not None and packet.stamp is not None:
                other = self._waiting[first]
                if other.part == packet.part and other.stamp is not None:
                    packet.stamp, other.stamp = sorted((packet.stamp, other.stamp))
        else:
            for lost in self._before(lambda each: each < number):
                yield self._at(lost.stamp, lost.part), True
        yield self._at(packet.stamp, packet.part), False

    def left(self) -> Iterator[int | None]:
        """Times of the frames that are lost at the end."""
        if not self._hides:
            for number in sorted(self._waiting, key=self._order):
                packet = self._waiting[number]
                if packet.stamp is not None:
                    yield self._at(packet.stamp, packet.part)
        self._waiting.clear()

    def _next(self) -> _Packet:
        """The waiting packet of the least time, which is no longer waiting."""
        number = min(self._waiting, key=self._order)
        self._taken.add(number)
        return self._waiting.pop(number)

    def _order(self, number: int) -> tuple[int, float]:
        packet = self._waiting[number]
        return packet.part, float("inf") if packet.stamp is None else packet.stamp

    def _before(self, passed: Callable[[int], bool]) -> list[_Packet]:
        """Packets that were passed over, in the order of their times: lost where there is damage,
        else such as hold no frame."""
        numbers = sorted((each for each in self._waiting if passed(each)), key=self._order)
        packets = [self._waiting.pop(number) for number in numbers]
        packets = [packet for packet in packets if packet.stamp is not None]
        if packets and not self._damaged:
            self._hides = True
        return [] if self._hides else packets

    def _at(self, stamp: int | None, part: int) -> int | None:
        """The stamp in time of the whole film: never before the last one."""
        if stamp is None:
            if self._last is not None:
                self._last += self._step
            return self._last
        if part not in self._offsets:
            begin = stamp if self._last is None else self._last + self._step
            self._offsets[part] = begin - stamp
        time = stamp + self._offsets[part]
        self._last = time if self._last is None else max(time, self._last)
        return self._last
