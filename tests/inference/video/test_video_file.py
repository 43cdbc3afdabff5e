"""One row a frame, in order and on time, whatever the file is like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from field_pictures import field_pictures
from moving_dots import write_video

from fasthg.errors import DataError, EnvironmentFault
from fasthg.inference.video import video_file
from fasthg.inference.video.sources import find_sources
from fasthg.inference.video.video_file import VideoSource

av = pytest.importorskip("av")


def grey(count: int) -> list[np.ndarray]:
    """Frames that tell their number by their brightness."""
    return [np.full((64, 96, 3), 12 + 9 * number, np.uint8) for number in range(count)]


def numbers(source: VideoSource, start: int = 0) -> list[float | None]:
    return [
        None if frame.image is None else (frame.image.mean() - 12) / 9
        for frame in source.frames(start)
    ]


def damaged(path: Path, target: Path, bad: set[int]) -> Path:
    """The same packets, some of them filled with rubbish."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in source.demux(stream) if p.size):
            if number in bad:
                rubbish = av.Packet(b"\x07" * packet.size)
                rubbish.pts, rubbish.dts = packet.pts, packet.dts
                rubbish.time_base, rubbish.is_keyframe = packet.time_base, packet.is_keyframe
                packet = rubbish
            packet.stream = copy
            out.mux(packet)
    return target


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "8", "bf": "3", "g": "12"}),
        ("a.mkv", "libx264", {"crf": "8", "bf": "3"}),
        ("a.avi", "mjpeg", {"qscale": "2"}),
        ("a.avi", "mpeg4", {"b": "8M", "qmin": "1"}),
        ("a.webm", "libvpx", {"b": "2M", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    ],
)
def test_every_frame_in_order_at_its_time(tmp_path: Path, name: str, codec: str, options) -> None:
    path = write_video(tmp_path / name, grey(26), codec=codec, options=options)
    source = VideoSource(path)
    assert source.size == (96, 64)
    np.testing.assert_allclose(numbers(source), np.arange(26), atol=0.45)
    times = [frame.time for frame in source.frames()]
    np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1.1e-3)
    assert [frame.number for frame in source.frames(20)] == list(range(20, 26))
    np.testing.assert_allclose(numbers(source, 20), np.arange(20, 26), atol=0.45)


@pytest.mark.parametrize(("codec", "frames"), [("libx264", "3"), ("mpeg4", "2")])
def test_reordered_frames_in_avi_which_has_no_times_of_presentation(
    tmp_path: Path, codec: str, frames: str
) -> None:
    options = {"bf": frames, "g": "12", **({"crf": "8"} if codec == "libx264" else {"b": "8M"})}
    source = VideoSource(write_video(tmp_path / "a.avi", grey(26), codec=codec, options=options))
    np.testing.assert_allclose(numbers(source), np.arange(26), atol=0.45)
    np.testing.assert_allclose(np.diff([f.time for f in source.frames()]), 1 / 25, atol=1e-6)
    source = VideoSource(damaged(source.path, tmp_path / "b.avi", {8, 15}))
    found = numbers(source)
    assert abs(len(found) - 26) <= 1
    assert found.count(None) >= 2
    assert (np.diff([frame.time for frame in source.frames()]) >= 0).all()


@pytest.mark.parametrize("name", ["a.ts", "a.mpg"])
def test_joined_recordings_whose_times_begin_again(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name == "a.ts" else "mpeg2video"
    options = {"bf": "2", "g": "12", "crf": "8"} if name == "a.ts" else {"bf": "2", "b": "8M"}
    part = write_video(tmp_path / name, grey(14), codec=codec, options=options).read_bytes()
    (tmp_path / f"joined-{name}").write_bytes(part * 3)
    source = VideoSource(tmp_path / f"joined-{name}")
    np.testing.assert_allclose(numbers(source), [*range(14)] * 3, atol=0.45)
    steps = np.diff([frame.time for frame in source.frames()])
    assert (steps > 0).all()
    assert np.median(steps) == pytest.approx(1 / 25)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mp4"])
def test_two_fields_in_packets_of_their_own_are_one_frame(tmp_path: Path, name: str) -> None:
    source = VideoSource(field_pictures(tmp_path / name, 12))
    found = [frame.image for frame in source.frames()]
    assert len(found) == 12
    greys = [image.mean() for image in found if image is not None]
    assert len(greys) == 12
    assert (np.diff(greys) > 2).all()
    np.testing.assert_allclose(np.diff([f.time for f in source.frames()]), 1 / 25, atol=1e-6)


def test_times_of_a_variable_rate_are_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", grey(6), times=lambda n: n * n)
    times = [frame.time for frame in VideoSource(path).frames()]
    np.testing.assert_allclose(times, np.arange(6) ** 2 / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "options"), [("mjpeg", {"qscale": "2"}), ("libx264", {"g": "1", "crf": "8"})]
)
def test_a_frame_that_cannot_be_decoded_keeps_its_row(tmp_path: Path, codec: str, options) -> None:
    path = write_video(tmp_path / "a.mkv", grey(12), codec=codec, options=options)
    bad = {3, 4, 11}
    source = VideoSource(damaged(path, tmp_path / "b.mkv", bad))
    found = numbers(source)
    assert {number for number, value in enumerate(found) if value is None} == bad
    good = [value for value in found if value is not None]
    np.testing.assert_allclose(good, sorted(set(range(12)) - bad), atol=0.45)
    np.testing.assert_allclose(
        [frame.time for frame in source.frames()], np.arange(12) / 25, atol=1.1e-3
    )


def test_a_damaged_frame_among_reordered_ones_keeps_the_count(tmp_path: Path) -> None:
    options = {"crf": "8", "bf": "3", "g": "12"}
    path = write_video(tmp_path / "a.mkv", grey(24), options=options)
    for bad in ({5}, {22, 23}):
        source = VideoSource(damaged(path, tmp_path / "b.mkv", bad))
        found = numbers(source)
        assert len(found) == 24
        lost = [number for number, value in enumerate(found) if value is None]
        assert 1 <= len(lost) <= 12
        np.testing.assert_allclose(found[0], 0, atol=0.45)


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same film with a display matrix."""
    (a, b, c, d), content = matrix, bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    tag = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4")
    content[place : place + 36] = tag.tobytes()
    target = path.with_stem("turned")
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_a_rotation_tag_turns_the_pictures(tmp_path: Path, matrix, expected) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:], image[32:, :48] = 200, 130, 60
    a, b, c, d = matrix
    path = turned(write_video(tmp_path / "a.mp4", [image] * 2), matrix)
    source = VideoSource(path)
    shown = expected(image)
    assert source.size == shown.shape[1::-1]
    assert source.turned == (matrix != (1, 0, 0, 1))
    for frame in source.frames():
        assert frame.image is not None
        np.testing.assert_allclose(frame.image.astype(int), shown, atol=40)
    if a * d - b * c == 1:  # OpenCV turns, but does not mirror
        np.testing.assert_allclose(cv2.VideoCapture(str(path)).read()[1], shown, atol=40)


def test_a_film_whose_first_frame_is_damaged_is_turned(tmp_path: Path) -> None:
    path = turned(write_video(tmp_path / "a.mp4", grey(8), options={"g": "4"}), (0, 1, -1, 0))
    with av.open(str(path)) as container:
        first = next(container.demux(container.streams.video[0]))
    content = bytearray(path.read_bytes())
    content[first.pos : first.pos + first.size] = bytes(first.size)
    path.write_bytes(content)
    source = VideoSource(path)
    images = [frame.image for frame in source.frames()]
    assert images[0] is None
    assert source.turned
    assert {image.shape for image in images if image is not None} == {(96, 64, 3)}


def test_a_cut_off_file(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", grey(20)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4: cannot be read as a video"):
        VideoSource(tmp_path / "cut.mp4")
    rng = np.random.default_rng(0)
    noisy = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)]
    path = write_video(tmp_path / "b.mkv", noisy, options={"g": "1", "crf": "20"})
    content = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    count = len(list(VideoSource(tmp_path / "cut.mkv").frames()))
    assert 5 <= count <= 15


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"sound\.mp4: holds no pictures"):
        VideoSource(path)


def test_without_pyav_there_is_a_remedy(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", grey(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'fasthg\[predict\]'"):
        find_sources([path])


@pytest.mark.slow
def test_images_need_no_pyav() -> None:
    code = "import sys; sys.modules['av'] = None; import fasthg.inference.video.predict"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert video_file.VideoSource.names == ()


def test_the_decoder_says_nothing_through_python() -> None:
    video_file.import_av(Path("film.mp4"))
    assert av.logging.get_level() is None


@pytest.mark.slow
def test_films_left_early_do_not_block(tmp_path: Path) -> None:
    """Closing a decoder that still held packets waited for ever, in one of some twenty films."""
    path = write_video(tmp_path / "film.mp4", grey(25))
    code = (
        "import sys; from pathlib import Path\n"
        "from fasthg.inference.video.video_file import VideoSource\n"
        "for _ in range(60): next(VideoSource(Path(sys.argv[1])).frames(8))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=120, check=False)
    assert done.returncode == 0
