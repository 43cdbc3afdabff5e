"""A film from frame A on: the same numbers, times and pixels as when all of it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from field_pictures import field_pictures
from moving_dots import write_video

from fasthg.inference.video import seeking, video_file
from fasthg.inference.video.seeking import Entry, find_entry, fresh_start
from fasthg.inference.video.video_file import VideoSource

av = pytest.importorskip("av")
COUNT = 48


@dataclass
class Packet:
    """What is looked at of a packet."""

    pts: int | None
    dts: int | None
    is_keyframe: bool = False
    size: int = 9
    is_corrupt: bool = False
    is_discard: bool = False

    def __bytes__(self) -> bytes:
        return b"a picture"


def in_order(*keys: int, count: int = 20) -> list[Packet]:
    return [Packet(10 * n, 10 * n, n in keys) for n in range(count)]


def test_the_last_keyframe_before_it() -> None:
    packets = in_order(0, 6, 12, 18)
    for start, expected in ((5, None), (6, 6), (11, 6), (17, 12), (500, 18)):
        entry = find_entry(packets, start)
        assert entry == (None if expected is None else Entry(expected, 10 * expected))


def test_a_keyframe_that_pictures_are_reordered_across_is_none() -> None:
    packets = in_order(0, 6, 12)
    packets[12].pts, packets[13].pts = 130, 120  # shown before the keyframe, sent after it
    assert find_entry(packets, 15) == Entry(6, 60)
    assert find_entry([*packets, Packet(None, None, size=0)], 15) == Entry(6, 60)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (3, {"pts": None}),
        (3, {"pts": 20}),
        (3, {"dts": 10}),
        (3, {"size": 0}),
        (3, {"is_corrupt": True}),
        (3, {"is_discard": True}),
    ],
)
def test_packets_that_are_no_frame_each_are_not_counted(place: int, change) -> None:
    packets = in_order(0, 6)
    vars(packets[place]).update(change)
    assert find_entry(packets, 8) is None


@pytest.mark.parametrize(
    ("codec", "header", "data", "idr"),
    [
        ("h264", b"\1...\xff", b"\0\0\0\2\x09\x10\0\0\0\3\x65..", True),
        ("h264", b"\1...\xff", b"\0\0\0\2\x06\x10\0\0\0\3\x41..", False),
        ("h264", b"\1...\xfd", b"\0\2\x06\x10\0\3\x65..", True),
        ("h264", b"", b"\0\0\0\1\x67..\0\0\1\x65..", True),
        ("h264", b"", b"\0\0\0\1\x67..\0\0\1\x61..", False),
        ("h264", b"", b"\0\0\0\1\x67..", False),
        ("hevc", b"\1" + bytes(20) + b"\3", b"\0\0\0\4\x26\1..", True),
        ("hevc", b"\1" + bytes(20) + b"\3", b"\0\0\0\4\x2a\1..", False),
        ("mjpeg", b"", b"\xff\xd8", True),
    ],
)
def test_pictures_after_which_nothing_before_is_needed(codec, header, data, idr) -> None:
    fresh = fresh_start(codec, header)
    assert fresh is not None and fresh(data) == idr
    assert fresh_start("vp8", header) is None


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, 6, 8, 3), np.uint8)
    return [np.kron(block, np.ones((8, 8, 1), np.uint8)) for block in blocks]


@pytest.mark.parametrize(
    ("name", "codec", "options", "sought"),
    [
        ("a.mp4", "libx264", {"bf": "3", "g": "12"}, True),
        ("a.mov", "libx264", {"bf": "0", "g": "12"}, True),
        ("a.mkv", "libx264", {"bf": "3", "g": "12"}, True),
        ("a.mkv", "libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}, None),
        ("a.mp4", "mpeg4", {"bf": "2", "g": "12"}, None),
        ("a.avi", "mjpeg", {}, True),
        ("a.avi", "mpeg4", {"g": "12"}, True),
        ("a.avi", "mpeg4", {"g": "12", "bf": "2"}, False),
        ("a.webm", "libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}, None),
        ("a.webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"}, False),
        ("a.ts", "libx264", {"bf": "2", "g": "12"}, False),
        ("a.mpg", "mpeg2video", {"g": "12"}, False),
    ],
)
def test_from_frame_a_on_all_is_the_same(
    tmp_path: Path, monkeypatch, name: str, codec: str, options, sought: bool | None
) -> None:
    """sought: whether decoding begins at a keyframe; None where that is the encoder's choice."""
    monkeypatch.setattr(video_file, "WORTH", 1)
    times = (lambda n: n + n // 7) if name == "a.mkv" else (lambda n: n)
    path = write_video(tmp_path / name, noise(COUNT), codec=codec, options=options, times=times)
    source = VideoSource(path)
    whole = list(source.frames())
    assert len(whole) == COUNT
    if sought is not None:
        assert (source._entry(40) is not None) == sought
    for start in (1, 11, 12, 13, 40, COUNT - 1):
        part = list(source.frames(start))
        assert [frame.number for frame in part] == list(range(start, COUNT))
        assert [frame.time for frame in part] == [frame.time for frame in whole[start:]]
        for frame, expected in zip(part, whole[start:], strict=True):
            np.testing.assert_array_equal(frame.image, expected.image)
        assert source.broken is None and source.reached == COUNT
    assert list(source.frames(COUNT)) == [] and source.reached == COUNT


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mp4"])
def test_packets_of_single_fields_are_no_frames(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(video_file, "WORTH", 1)
    source = VideoSource(field_pictures(tmp_path / name, 40))
    whole = [frame.image for frame in source.frames()]
    for frame in source.frames(33):
        np.testing.assert_array_equal(frame.image, whole[frame.number])


def test_little_is_decoded_before_the_first_frame(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", noise(400), options={"g": "20", "preset": "ultrafast"})
    source, decoded = VideoSource(path), []
    real = VideoSource._decoded

    def counted(self, stream, packets):
        for each in real(self, stream, packets):
            decoded.append(each)
            yield each

    monkeypatch.setattr(VideoSource, "_decoded", counted)
    assert next(iter(source.frames(390))).number == 390
    assert len(decoded) <= 11
    assert seeking.WORTH < 390


def test_a_keyframe_that_cannot_be_decoded_is_no_beginning(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video_file, "WORTH", 1)
    path = write_video(tmp_path / "a.mkv", noise(12), codec="mjpeg")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        bad = [packet for packet in container.demux(container.streams.video[0])][7]
    content[bad.pos + 8 : bad.pos + bad.size] = b"\7" * (bad.size - 8)
    path.write_bytes(content)
    source = VideoSource(path)
    whole = [frame.image is None for frame in source.frames()]
    assert whole[7]
    assert [frame.image is None for frame in source.frames(7)] == whole[7:]


@pytest.mark.slow
def test_a_film_whose_first_packet_names_an_old_encoder(test_data: Path) -> None:
    """Without that name its H.264, 4:4:4 by an x264 of 2015 or before, is decoded to rubbish."""
    source = VideoSource(test_data / "openfield" / "videos" / "m3v1mp4.mp4")
    entry = source._entry(400)
    assert entry is not None and entry.number > 300
    found, whole = source.frames(400), source._read(400, None)
    for _ in range(40):
        frame, expected = next(found), next(whole)
        assert (frame.number, frame.time) == (expected.number, expected.time)
        np.testing.assert_array_equal(frame.image, expected.image)
