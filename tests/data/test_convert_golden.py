"""Projects that each format's own tool wrote (golden/make_golden.py), to literal numbers and back.

A test that needs sleap-io, pandas, tables or pycocotools skips without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fasthg.config import Config
from fasthg.data.convert import coco, dlc, slp, to_coco, to_dlc
from fasthg.data.convert.report import Report
from fasthg.data.records.schema import Record, decode
from fasthg.data.records.tfrecord import read_frames

GOLDEN = Path(__file__).resolve().parent / "golden"
NAN = float("nan")
ALL_TRAIN = (1.0, 0.0, 0.0)


def records(files: Iterable[Path]) -> dict[str, Record]:
    found = [decode(frame.payload, "") for path in files for frame in read_frames(path)]
    assert len({record.image_id for record in found}) == len(found)
    return {record.image_id: record for record in found}


def keypoints(record: Record) -> np.ndarray:
    return record.keypoints * (record.width, record.height)


def check(record: Record, expected: Any) -> None:
    np.testing.assert_allclose(keypoints(record), expected, atol=1e-4)


def colours(record: Record) -> list[list[int]]:
    """BGR of the background and of the square, each within JPEG's errors."""
    image = cv2.imdecode(np.frombuffer(record.encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (48, 64, 3)
    return [image[40, 50].tolist(), image[15, 10].tolist()]


def config_of(report: Report) -> Config:
    parts = {
        "NUM_PARTS": len(report.parts),
        "NAMES": list(report.parts),
        "LEFT_RIGHT_PAIRS": [list(pair) for pair in report.pairs],
        "SIGMAS": [2.0] * len(report.parts),
    }
    patterns = {
        split.upper(): [str(path) for path in report.files if path.name.startswith(split)]
        for split, frames in report.frames.items()
        if frames
    }
    return Config(PARTS=parts, DATA=patterns)


def test_coco_in(tmp_path: Path) -> None:
    source = coco.Source(GOLDEN / "coco" / "annotations.json")
    report = coco.convert([source], tmp_path, fractions=ALL_TRAIN)
    assert report.parts == ("nose", "left_ear", "right_ear") and report.pairs == [(1, 2)]
    assert report.skipped["annotations of crowds (iscrowd)"] == 1
    found = records(report.files)
    assert set(found) == {"day1/a", "day2/b"}
    first, second = found["day1/a"], found["day2/b"]
    check(first, [[[10.5, 20], [15, 22], [NAN, NAN]], [[40, 30], [44.25, 33], [41, 36]]])
    check(second, [[[12, 21], [16, 23], [14, 26]]])
    assert first.visibility.tolist() == [[2, 1, 0], [2, 2, 2]]
    assert second.visibility.tolist() == [[2, 2, 1]]
    expected = [[0.0625, 0.25, 0.375, 0.75], [0.5625, 26 / 48, 0.8125, 0.875]]
    np.testing.assert_allclose(first.bbox, expected, atol=1e-6)
    np.testing.assert_allclose(second.bbox, [[0.125, 0.375, 0.3125, 0.625]], atol=1e-6)
    # The last area is 0 in the file: that of the box.
    np.testing.assert_allclose(first.area, [300.5, 128])
    np.testing.assert_allclose(second.area, [144], rtol=1e-5)
    np.testing.assert_allclose(colours(second), [[10, 60, 200], [255, 0, 0]], atol=6)


@pytest.mark.parametrize("name", ["labels.slp", "labels.pkg.slp"])
def test_sleap_in(tmp_path: Path, name: str) -> None:
    pytest.importorskip("sleap_io")
    report = slp.convert(GOLDEN / "sleap" / name, tmp_path, fractions=ALL_TRAIN)
    assert report.parts == ("nose", "earL", "earR") and report.pairs == [(1, 2)]
    assert report.skipped["frames without a user's labels"] == 1
    found = records(report.files)
    assert set(found) == {"cam1/000001", "cam1/000004"}
    first, second = found["cam1/000001"], found["cam1/000004"]
    check(first, [[[10.5, 20], [15, 22], [NAN, NAN]], [[40, 30], [44.25, 33], [41, 36]]])
    check(second, [[[12, 21], [16, 23], [NAN, NAN]]])
    assert first.object_id == ("black", "white") and second.object_id == ("black",)
    np.testing.assert_allclose(colours(first), [[10, 50, 200], [255, 0, 0]], atol=8)
    np.testing.assert_allclose(colours(second), [[10, 80, 200], [255, 0, 0]], atol=8)


@pytest.mark.parametrize("h5", [False, True])
def test_dlc_in(tmp_path: Path, h5: bool) -> None:
    if h5:
        pytest.importorskip("tables")
    report = dlc.convert(GOLDEN / "dlc", tmp_path, prefer_h5=h5, fractions=ALL_TRAIN)
    assert report.parts == ("nose", "tail") and report.pairs == []
    found = records(report.files)
    assert set(found) == {"day1_cam1/img000", "day1_cam1/img007"}
    first, second = found["day1_cam1/img000"], found["day1_cam1/img007"]
    check(first, [[[10.5, 20], [30, 25.25]], [[40, 30], [55, 44]]])
    check(second, [[[11, 21], [31, 26]]])
    assert first.object_id == ("mus1", "mus2") and second.object_id == ("mus1",)
    np.testing.assert_allclose(colours(second), [[10, 110, 200], [255, 0, 0]], atol=6)


def test_coco_out(tmp_path: Path) -> None:
    source = coco.Source(GOLDEN / "coco" / "annotations.json")
    given = coco.convert([source], tmp_path / "one", seed=1)
    out = tmp_path / "back" / "mice.json"
    report = to_coco.export(config_of(given), out, category="mouse")
    assert report.frames == {split: n for split, n in given.frames.items() if n}
    content = json.loads(out.read_text())
    images = {image["file_name"]: image for image in content["images"]}
    assert set(images) == {"mice_images/day1/a.jpg", "mice_images/day2/b.jpg"}
    a = images["mice_images/day1/a.jpg"]
    assert (a["width"], a["height"]) == (64, 48)
    first, second = (each for each in content["annotations"] if each["image_id"] == a["id"])
    np.testing.assert_allclose(first["keypoints"], [10.5, 20, 2, 15, 22, 1, 0, 0, 0], atol=1e-4)
    assert first["num_keypoints"] == 2 and second["num_keypoints"] == 3
    np.testing.assert_allclose(first["bbox"], [4, 12, 20, 24], atol=1e-4)
    assert first["area"] == 300.5
    assert content["categories"][0]["name"] == "mouse"
    assert content["categories"][0]["keypoints"] == ["nose", "left_ear", "right_ear"]

    again = coco.convert([coco.Source(out)], tmp_path / "two")
    assert again.notes[0] == "splits as the source names them"
    assert again.frames == given.frames
    before, after = records(given.files), records(again.files)
    assert set(before) == set(after)
    for image_id, record in before.items():
        assert after[image_id].encoded == record.encoded
        assert after[image_id].visibility.tolist() == record.visibility.tolist()
        np.testing.assert_allclose(keypoints(after[image_id]), keypoints(record), atol=1e-3)
        np.testing.assert_allclose(after[image_id].bbox, record.bbox, atol=1e-5)


def test_coco_out_as_pycocotools_reads_it(tmp_path: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    given = coco.convert([coco.Source(GOLDEN / "coco" / "annotations.json")], tmp_path / "one")
    out = tmp_path / "mice.json"
    to_coco.export(config_of(given), out)
    read = pycocotools.COCO(str(out))
    assert len(read.imgs) == 2 and read.getCatIds(catNms=["animal"]) == [1]
    (b,) = (image for image in read.imgs.values() if "day2" in image["file_name"])
    (animal,) = read.loadAnns(read.getAnnIds(imgIds=[b["id"]]))
    expected = [12, 21, 2, 16, 23, 2, 14, 26, 1]
    np.testing.assert_allclose(animal["keypoints"], expected, atol=1e-4)
    assert (tmp_path / b["file_name"]).is_file()


def test_dlc_out(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    given = dlc.convert(GOLDEN / "dlc", tmp_path / "one", fractions=ALL_TRAIN)
    project = tmp_path / "back"
    report = to_dlc.export(config_of(given), project, scorer="me")
    table = project / "labeled-data" / "day1_cam1" / "CollectedData_me.csv"
    assert report.files == [table, project / "config.yaml"]
    # As DeepLabCut's own table was read, and as DeepLabCut reads ours.
    ours = pandas.read_csv(table, header=[0, 1, 2, 3], index_col=[0, 1, 2]).sort_index()
    theirs = pandas.read_csv(
        GOLDEN / "dlc" / "labeled-data" / "day1_cam1" / "CollectedData_lab.csv",
        header=[0, 1, 2, 3],
        index_col=[0, 1, 2],
    ).rename(columns={"lab": "me"}, level="scorer")
    assert list(ours.columns) == list(theirs.columns)
    assert [path[:2] for path in ours.index] == [("labeled-data", "day1_cam1")] * 2
    assert [path[2] for path in ours.index] == ["img000.jpg", "img007.jpg"]
    np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), atol=1e-4)

    again = dlc.convert(project, tmp_path / "two", fractions=ALL_TRAIN)
    before, after = records(given.files), records(again.files)
    assert set(before) == set(after)
    for image_id, record in before.items():
        assert after[image_id].encoded == record.encoded
        assert after[image_id].object_id == record.object_id
        np.testing.assert_allclose(keypoints(after[image_id]), keypoints(record), atol=1e-4)
