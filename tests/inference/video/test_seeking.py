"""A film from frame A on: the same numbers, times and pixels as when all of it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from field_pictures import field_pictures
from moving_dots import write_video

from fasthg.inference.video import seeking, video_file
from fasthg.inference.video.seeking import Entry, find_entry
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
