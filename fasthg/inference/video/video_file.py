"""Videos by PyAV: a row for every frame that the file holds, whether it can be decoded or not.

A decoder leaves out what it cannot decode, so counting what it gives would shift all later rows.
Instead every packet announces a frame. Packets whose frame has not appeared when a later one does
are lost, where the decoder met damage; they come as frames without image. See `frame_times`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.data.opencv_loader import Image
from fasthg.errors import DataError, missing_package
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.frame_times import FrameTimes
from fasthg.inference.video.seeking import (
    FORMATS,
    WORTH,
    Entry,
    find_entry,
    frame_a_packet,
    fresh_start,
)

# Their packets may hold frames that are never shown.
_HIDES_FRAMES = ("vp8",)
_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d*)?)")
# Mark of a packet whose frame is not given.
_LEAD = "lead"
# AV_DISPOSITION_ATTACHED_PIC
_COVER = 0x400


def import_av(path: Path) -> Any:
    """The module `av`. Raises EnvironmentFault where it is missing."""
    try:
        import av
    except ImportError:
        raise missing_package(f"{path}: a video", "PyAV", "predict") from None
    # PyAV's default, no remarks of the decoder, is kept: at any level it takes Python's lock for
    # one, and a thread of the decoder that makes one while a film is closed early waits for ever.
    return av


@dataclass(frozen=True)
class _Axes:
    """How stored pictures are to be shown."""

    swapped: bool = False
    """Whether x and y are exchanged, before the flips."""
    left_right: bool = False
    upside_down: bool = False

    def shown(self, image: Image) -> Image:
        """image: BGR uint8 (height, width, 3) as stored."""
        if self.swapped:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if self.upside_down else 1, :: -1 if self.left_right else 1]
        return np.ascontiguousarray(image)


_UPRIGHT = _Axes()


def _axes(matrix: bytes) -> _Axes:
    """Of a display matrix, int32 (3, 3): stored (x, y, 1) times it is the place where shown. What
    is no multiple of a quarter turn is not followed, as by most players."""
    (a, b), (c, d) = np.frombuffer(matrix, "=i4").reshape(3, 3)[:2, :2].tolist()
    if a and d and not (b or c):
        return _Axes(False, a < 0, d < 0)
    if b and c and not (a or d):
        return _Axes(True, c < 0, b < 0)
    return _UPRIGHT


class VideoSource:
    """The frames of a video's first stream of pictures, turned as players turn them: phones store
    upright films lying, with a tag."""

    names: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            DataError: the file is no video, holds sound alone, or is cut off before its index.
            EnvironmentFault: PyAV is missing.
        """
        self.path = path
        self.stem = Path(os.path.abspath(path)).with_suffix("")
        self.av = import_av(path)
        with self._open() as container:
            stream = _pictures(container, path)
            self._axes = self._orientation(container, stream)
            size = (stream.codec_context.width, stream.codec_context.height)
            self.turned = self._axes != _UPRIGHT
            """Whether a tag of the file turns or mirrors the stored pictures."""
            self._size = size[::-1] if self._axes.swapped else size
            self.rate = stream.average_rate or stream.guessed_rate
            """Frames a second, a Fraction; None where the file does not say."""
            self.declared: int | None = stream.frames or None
            """Frames by the header."""
            self._length = _length(container, stream)
            self.broken: str | None = None
            """Why the file ended before its end, where the last reading met that."""
            self.reached = 0
            """Frames from the beginning up to the last one that was read."""
            self._count = self.declared
            length = container.duration / self.av.time_base if container.duration else None
            if self._count is None and length and self.rate:
                self._count = round(length * self.rate)

    def _open(self) -> Any:
        try:
            # Titles and the like may be in any encoding.
            return self.av.open(str(self.path), metadata_errors="replace")
        except (self.av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be read as a video ({error.strerror}); "
                "it may be cut off: copy or record it again"
            ) from None

    def _orientation(self, container: Any, stream: Any) -> _Axes:
        """How the first picture that can be decoded is to be shown; upright where none can."""
        for packet in self._packets(container, stream):
            try:
                frames = stream.decode(packet)
            except self.av.error.FFmpegError:
                continue
            for frame in frames:
                found = frame.side_data.get(self.av.sidedata.sidedata.Type.DISPLAYMATRIX)
                return _UPRIGHT if found is None else _axes(bytes(found))
        return _UPRIGHT

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown, px."""
        return self._size

    @property
    def count(self) -> int | None:
        """Frames by the header, or by length and rate."""
        return self._count

    def identity(self) -> str:
        """Size and time of change of the file."""
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """Frames from `start` on, with the numbers, times and pixels that they have when all are
        read. Decoding begins at a keyframe shortly before, where its number is certain, else at
        the beginning: see `seeking`."""
        yield from self._read(start, self._entry(start) if start >= WORTH else None)

    def _read(self, start: int, entry: Entry | None) -> Iterator[Frame]:
        """As `frames`, decoding from `entry`, else from the beginning."""
        self.broken, self.reached = None, 0
        first = 0 if entry is None else entry.number
        with self._open() as container:
            stream = _pictures(container, self.path)
            stream.thread_type = "AUTO"
            base = float(stream.time_base or 0)
            if entry is None:
                packets = self._packets(container, stream)
            else:
                packets = self._packets_from(entry, container, stream)
            try:
                for number, (stamp, frame) in enumerate(self._decoded(stream, packets), first):
                    if entry is not None and number == first and frame is None:
                        break  # no place to begin at
                    self.reached = number + 1
                    if number < start:
                        continue
                    image = None
                    if frame is not None:
                        image = self._axes.shown(frame.to_ndarray(format="bgr24"))
                    if stamp is not None:
                        time = stamp * base
                    else:
                        time = number / float(self.rate) if self.rate else float("nan")
                    yield Frame(number, time, image, "")
                else:
                    return
            finally:
                # Who leaves early leaves packets in the decoder's threads. These need Python's lock
                # to free them, which PyAV holds while it closes a codec, but not while it flushes.
                stream.codec_context.flush_buffers()
        yield from self._read(start, None)

    def _entry(self, start: int) -> Entry | None:
        """A keyframe at or before frame `start` whose number is certain."""
        with self._open() as container:
            stream = _pictures(container, self.path)
            known = any(name in container.format.name for name in FORMATS)
            codec = stream.codec_context
            fresh = fresh_start(codec.name, bytes(codec.extradata or b""))
            if not known or fresh is None:
                return None
            packets = self._packets(container, stream)
            if not frame_a_packet(stream, packets, self.av.error.FFmpegError):
                return None
        with self._open() as container:
            stream = _pictures(container, self.path)
            return find_entry(self._packets(container, stream), start, fresh)

    def _packets_from(self, entry: Entry, container: Any, stream: Any) -> Iterator[Any]:
        """The first packet, marked as LEAD, and those from an entry on. The container's index leads
        near it, where it has one."""
        lead = next(self._packets(container, stream))
        lead.opaque = _LEAD
        try:
            container.seek(entry.stamp, stream=stream)
        except self.av.error.FFmpegError:
            container.seek(0)
        packets = self._packets(container, stream)
        first = next(packets)
        if first.pts is None or first.pts > entry.stamp:
            container.seek(0)
            packets = self._packets(container, stream)
            first = next(packets)
        while first.pts != entry.stamp:
            first = next(packets, None)
            if first is None:
                return
        yield lead
        yield first
        yield from packets

    def _decoded(self, stream: Any, packets: Iterable[Any]) -> Iterator[tuple[int | None, Any]]:
        """(time or None, picture or None) in the order of presentation; times in units of the
        stream, which never go back."""
        codec = stream.codec_context
        codec.copy_opaque = True
        step = round(1 / (self.rate * stream.time_base)) if self.rate and stream.time_base else 1
        times = FrameTimes(step, codec.name in _HIDES_FRAMES)
        end = 0
        for packet in packets:
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or step))
            lead = packet.opaque is _LEAD
            if packet.size and not packet.is_discard and not lead:
                packet.opaque = times.sent(packet)
            try:
                frames = stream.decode(packet)
            except self.av.error.FFmpegError:
                if lead:
                    continue
                for stamp in times.failed(codec.has_b_frames):
                    yield stamp, None
                continue
            for frame in frames:
                if frame.opaque is _LEAD:
                    continue
                for stamp, lost in times.appeared(frame.opaque, frame.pts, codec.has_b_frames):
                    yield stamp, None if lost or frame.is_corrupt else frame
        for stamp in times.left():
            yield stamp, None
        # FFmpeg takes damage for the end where it finds no later place to read on.
        base = float(stream.time_base or 0)
        if self._length and not self.broken and self._length > (end + 1.5 * step) * base:
            self.broken = f"at {end * base:.1f} s of {self._length:.1f} s"

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """The packets, then the empty one that drains the decoder, where reading fails as well."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self.av.error.FFmpegError as error:
                self.broken = error.strerror
                yield self.av.Packet()
                return
            yield packet


def _length(container: Any, stream: Any) -> float | None:
    """End of the stream by a Matroska file's header, s. None where it does not say, and for other
    formats, whose headers count frames or whose lengths are estimates."""
    if "matroska" not in container.format.name:
        return None
    tag = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    # Sound may last longer than the pictures.
    alone = container.duration and len(container.streams) == 1
    return container.duration / 1e6 if alone else None


def _pictures(container: Any, path: Path) -> Any:
    """The first stream that is more than a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition.value & _COVER:
            if stream.codec_context is None:
                raise DataError(
                    f"{path}: its pictures are of a kind that FFmpeg does not know; "
                    "it may be damaged: copy or record it again"
                )
            return stream
    raise DataError(f"{path}: holds no pictures, only sound or text; give a video")
