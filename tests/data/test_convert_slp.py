"""SLEAP labels made with sleap-io: videos, image files and packages, there, moved and broken."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fasthg.data.convert import slp
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import DataError, EnvironmentFault

GOLDEN = Path(__file__).resolve().parent / "golden" / "sleap"
ALL_TRAIN = (1.0, 0.0, 0.0)
POINTS = np.array([[10, 20], [15, 22], [30, 35]], float)
RIGHT = np.array([1, 0])


@pytest.fixture(scope="module")
def sio() -> Any:
    return pytest.importorskip("sleap_io")


def images(folder: Path, count: int = 3, mode: int = cv2.IMREAD_COLOR) -> list[str]:
    folder.mkdir(parents=True)
    paths = [folder / f"img{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        shape = (48, 64, 3) if mode == cv2.IMREAD_COLOR else (48, 64)
        cv2.imwrite(str(path), np.full(shape, 40 * number + 20, np.uint8))
    return [str(path) for path in paths]


def labels(sio: Any, videos: list[Any], frames: int = 3, nodes: str = "abc") -> Any:
    """Every frame of every video with one animal that moves to the right."""
    skeleton = sio.Skeleton(nodes=list(nodes))
    return sio.Labels(
        [
            sio.LabeledFrame(
                video=video,
                frame_idx=number,
                instances=[sio.Instance.from_numpy(POINTS + number * RIGHT, skeleton=skeleton)],
            )
            for video in videos
            for number in range(frames)
        ]
    )


def index_of(report: slp.Report) -> RecordIndex:
    return RecordIndex.build([str(path) for path in report.files], len(report.parts))


def by_id(report: slp.Report) -> dict[str, np.ndarray]:
    index = index_of(report)
    return {index.image_id(int(r)): index.keypoints[i] for i, r in enumerate(index.record)}


def test_image_files(sio: Any, tmp_path: Path) -> None:
    video = sio.Video.from_filename(images(tmp_path / "day1"))
    labels(sio, [video]).save(str(tmp_path / "a.slp"), embed=False)
    report = slp.convert(tmp_path / "a.slp", tmp_path / "out", fractions=ALL_TRAIN)
    found = by_id(report)
    assert set(found) == {"day1/img0", "day1/img1", "day1/img2"}
    np.testing.assert_allclose(found["day1/img2"], POINTS + 2 * RIGHT, atol=1e-4)

    # Moved: the folder above has another name.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(str(tmp_path / "day1"), str(moved / "day1"))
    shutil.move(str(tmp_path / "a.slp"), str(moved / "a.slp"))
    again = slp.convert(moved / "a.slp", tmp_path / "again", fractions=ALL_TRAIN)
    assert [p.read_bytes() for p in again.files] == [p.read_bytes() for p in report.files]
    (moved / "day1" / "img1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 labelled images are missing .*img1.png"):
        slp.convert(moved / "a.slp", tmp_path / "o")
    fewer = slp.convert(moved / "a.slp", tmp_path / "o", skip_missing=True)
    assert fewer.animals == 2 and fewer.skipped["frames without an image"] == 1


@pytest.mark.parametrize("turned", [False, True])
def test_images_that_exif_turns(sio: Any, tmp_path: Path, turned: bool) -> None:
    """SLEAP itself reads them turned, sleap-io as stored: the shape in the labels tells."""
    h5py = pytest.importorskip("h5py")
    exif = Image.Exif()
    exif[0x112] = 6
    files = [str(tmp_path / f"img{number}.jpg") for number in range(3)]
    for name in files:
        Image.new("RGB", (64, 48)).save(name, exif=exif)
    video = sio.Video.from_filename(files)
    path = tmp_path / "a.slp"
    labels(sio, [video]).save(str(path), embed=False)
    with h5py.File(path, "a") as file:
        (entry,) = (json.loads(each) for each in file["videos_json"])
        entry["backend"]["shape"] = [3, 64, 48, 3] if turned else [3, 48, 64, 3]
        file["videos_json"][0] = json.dumps(entry)
    index = index_of(slp.convert(path, tmp_path / "out", fractions=ALL_TRAIN))
    size = (48, 64) if turned else (64, 48)
    assert (index.width[0], index.height[0]) == size
    other = slp.convert(path, tmp_path / "o", exif="stored" if turned else "shown")
    assert (index_of(other).width[0], index_of(other).height[0]) == size[::-1]

    with h5py.File(path, "a") as file:
        entry["backend"]["shape"] = None
        file["videos_json"][0] = json.dumps(entry)
    with pytest.raises(DataError, match=r"nothing tells .* say --exif shown"):
        slp.convert(path, tmp_path / "p")


def test_packages(sio: Any, tmp_path: Path) -> None:
    paths = [images(tmp_path / folder / "cam", mode=cv2.IMREAD_GRAYSCALE) for folder in "xy"]
    videos = [sio.Video.from_filename(files) for files in paths]
    given = labels(sio, videos)
    given.save(str(tmp_path / "a.pkg.slp"), embed="user")
    shutil.rmtree(tmp_path / "x")
    shutil.rmtree(tmp_path / "y")
    report = slp.convert(
        tmp_path / "a.pkg.slp", tmp_path / "out", split_by="video", fractions=(0.5, 0.5, 0)
    )
    # Both folders are called cam: the second one's frames get a longer name.
    assert set(by_id(report)) == {
        *(f"cam/img{n}" for n in range(3)),
        *(f"y/cam/img{n}" for n in range(3)),
    }
    assert report.frames == {"train": 3, "val": 3, "test": 0}
    index = index_of(report)
    for record in range(6):
        image = cv2.imdecode(np.frombuffer(index.jpeg(record), np.uint8), cv2.IMREAD_COLOR)
        number = int(index.image_id(record)[-1])
        assert image.shape == (48, 64, 3) and abs(image.astype(int) - 40 * number - 20).max() <= 2


def test_two_videos_of_one_name(sio: Any, tmp_path: Path) -> None:
    videos = []
    for folder in ("day1", "day2"):
        (tmp_path / folder).mkdir()
        shutil.copy(GOLDEN / "vids" / "cam1.mp4", tmp_path / folder / "cam1.mp4")
        videos.append(sio.load_video(str(tmp_path / folder / "cam1.mp4")))
    labels(sio, videos).save(str(tmp_path / "a.slp"), embed=False)
    report = slp.convert(tmp_path / "a.slp", tmp_path / "out", fractions=ALL_TRAIN)
    assert set(by_id(report)) == {
        *(f"cam1/00000{n}" for n in range(3)),
        *(f"day2/cam1/00000{n}" for n in range(3)),
    }


def test_a_video_that_is_elsewhere(sio: Any, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "labels.slp", tmp_path / "labels.slp")
    message = r"2 of 2 labelled images are missing \(frame 1 of C:/Users/lab/vids/cam1.mp4, .*--vid"
    with pytest.raises(DataError, match=message):
        slp.convert(tmp_path / "labels.slp", tmp_path / "out")
    given = slp.convert(
        tmp_path / "labels.slp", tmp_path / "out", videos=GOLDEN / "vids", fractions=ALL_TRAIN
    )
    again = slp.convert(GOLDEN / "labels.slp", tmp_path / "b", fractions=ALL_TRAIN)
    assert [p.read_bytes() for p in given.files] == [p.read_bytes() for p in again.files]


def test_predictions(sio: Any, tmp_path: Path) -> None:
    report = slp.convert(GOLDEN / "labels.slp", tmp_path, predictions=True, fractions=ALL_TRAIN)
    assert report.animals == 5 and set(by_id(report)) >= {"cam1/000005"}


def test_predictions_alone_need_the_option(sio: Any, tmp_path: Path) -> None:
    labels = sio.load_slp(str(GOLDEN / "labels.slp"), open_videos=False)
    for frame in labels.labeled_frames:
        frame.instances = frame.predicted_instances
    labels.labeled_frames = [frame for frame in labels.labeled_frames if frame.instances]
    unused = [*labels.skeletons, sio.Skeleton(nodes=list("xyz"))]
    labels = sio.Labels(labels.labeled_frames, videos=labels.videos, skeletons=unused)
    sio.save_slp(labels, str(tmp_path / "p.slp"), embed=False)
    with pytest.raises(DataError, match=r"p\.slp: holds a model's .*; convert them with --pred"):
        slp.convert(tmp_path / "p.slp", tmp_path / "o", videos=GOLDEN / "vids")
    report = slp.convert(
        tmp_path / "p.slp", tmp_path / "o", videos=GOLDEN / "vids", predictions=True
    )
    assert report.animals > 0


def test_tracks_name_the_animals_only_if_all_have_one(sio: Any, tmp_path: Path) -> None:
    from fasthg.data.records.schema import decode
    from fasthg.data.records.tfrecord import read_frames

    report = slp.convert(GOLDEN / "labels.slp", tmp_path, predictions=True, fractions=ALL_TRAIN)
    found = [decode(frame.payload, "") for frame in read_frames(report.files[0])]
    assert {record.image_id: record.object_id for record in found} == {
        "cam1/000001": ("black", "white"),
        "cam1/000004": ("0", "1"),
        "cam1/000005": ("0",),
    }


def test_parts(sio: Any, tmp_path: Path) -> None:
    report = slp.convert(
        GOLDEN / "labels.slp",
        tmp_path,
        parts={"earR": "right ear", "nose": "nose", "earL": "left ear"},
        fractions=ALL_TRAIN,
    )
    index = index_of(report)
    row = next(i for i in range(3) if index.image_id(int(index.record[i])) == "cam1/000001")
    np.testing.assert_allclose(index.keypoints[row], [[np.nan] * 2, [10.5, 20], [15, 22]])
    assert report.pairs == [(2, 0)]
    assert "names: earR -> right ear, earL -> left ear" in report.lines()
    with pytest.raises(DataError, match="no body part named paw; there are nose, earL, earR"):
        slp.convert(GOLDEN / "labels.slp", tmp_path, parts={"paw": "paw"})


def test_several_skeletons(sio: Any, tmp_path: Path) -> None:
    video = sio.Video.from_filename(images(tmp_path / "day1"))
    given = labels(sio, [video])
    other = sio.Instance.from_numpy(POINTS, skeleton=sio.Skeleton(nodes=list("xyz")))
    given.append(sio.LabeledFrame(video=video, frame_idx=2, instances=[other]))
    given.save(str(tmp_path / "a.slp"), embed=False)
    with pytest.raises(DataError, match=r"a.slp: needs one skeleton, but has: .*x, y, z"):
        slp.convert(tmp_path / "a.slp", tmp_path / "out")


def test_frames_beyond_the_video(sio: Any, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "vids" / "cam1.mp4", tmp_path / "cam1.mp4")
    video = sio.load_video(str(tmp_path / "cam1.mp4"))
    labels(sio, [video], frames=8).save(str(tmp_path / "a.slp"), embed=False)
    with pytest.raises(DataError, match=r"2 of 8 labelled images are missing \(frame 6 of .*cam1"):
        slp.convert(tmp_path / "a.slp", tmp_path / "out")


def test_broken_files(sio: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.slp"
    with pytest.raises(DataError, match=r"a.slp: no such file"):
        slp.convert(path, tmp_path / "out")
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"a.slp: not labels of SLEAP \(.*save the labels"):
        slp.convert(path, tmp_path / "out")
    shutil.copy(GOLDEN / "labels.slp", path)
    (tmp_path / "cam1.mp4").write_bytes(b"text" * 100)
    with pytest.raises(DataError, match=r"cam1.mp4: not a video that sleap-io can read"):
        slp.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sleap_io", None)
    with pytest.raises(EnvironmentFault, match=r"needs sleap_io; pip install 'fasthg\[sleap\]'"):
        slp.convert(tmp_path / "a.slp", tmp_path / "out")


def test_other_skeletons_and_other_orders_of_nodes(sio: Any, tmp_path: Path) -> None:
    video = sio.Video.from_filename(images(tmp_path / "day1"))
    given = labels(sio, [video], frames=2)
    turned = sio.Instance.from_numpy(POINTS[::-1], skeleton=sio.Skeleton(nodes=list("cba")))
    given.append(sio.LabeledFrame(video=video, frame_idx=2, instances=[turned]))
    given.skeletons.append(sio.Skeleton(nodes=list("xyz"), name="unused"))
    given.save(str(tmp_path / "a.slp"), embed=False)
    found = by_id(slp.convert(tmp_path / "a.slp", tmp_path / "out", fractions=ALL_TRAIN))
    np.testing.assert_allclose(found["day1/img2"], POINTS, atol=1e-4)
    np.testing.assert_allclose(found["day1/img1"], POINTS + RIGHT, atol=1e-4)


def test_a_frame_labelled_twice(sio: Any, tmp_path: Path) -> None:
    """Also where a film is in the file twice, as after a merge."""
    films = [sio.load_video(str(GOLDEN / "vids" / "cam1.mp4")) for _ in range(2)]
    given = labels(sio, films, frames=2)
    given.labeled_frames[3].instances[0].points["xy"] += 1
    given.save(str(tmp_path / "a.slp"), embed=False)
    message = r"labelled frame 1 and .*a.slp: labelled frame 3: both label cam1/000001.jpg, and"
    with pytest.raises(DataError, match=message):
        slp.convert(tmp_path / "a.slp", tmp_path / "out")
