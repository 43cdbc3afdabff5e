"""Boxes from files, in each form, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from moving_dots import dots

from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.boxes import Boxes, read_boxes
from fasthg.inference.video.sources import ImageSource


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        cv2.imwrite(str(file), dots(None, (200, 100)))
    return ImageSource(tmp_path, files, tmp_path / "x")


def given(tmp_path: Path, text: str, name: str = "boxes.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_csv_with_numbers_names_and_animals(tmp_path: Path, source: ImageSource) -> None:
    text = (
        "frame,x1,y1,x2,y2,animal\n0,20,10,100,50,white\n0,0,0,200,100,black\nb.png,1,2,3,4,black\n"
    )
    boxes = read_boxes(given(tmp_path, text), source)
    assert boxes.animals == ("white", "black")
    np.testing.assert_allclose(boxes.shares(0, 200, 100), [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]])
    np.testing.assert_allclose(
        boxes.shares(1, 200, 100), [[np.nan] * 4, [0.005, 0.02, 0.015, 0.04]]
    )
    assert np.isnan(boxes.shares(2, 200, 100)).all()


def test_csv_without_animals_numbers_them(tmp_path: Path, source: ImageSource) -> None:
    text = "x1,y1,x2,y2,frame\n0,0,10,10,0\n5,5,15,15,0\n0,0,1,1,1\n"
    assert read_boxes(given(tmp_path, text), source).animals == ("animal1", "animal2")


def test_mars(tmp_path: Path, source: ImageSource) -> None:
    content = {"bbox": [[[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]] * 3, "keypoints": []}
    boxes = read_boxes(given(tmp_path, json.dumps(content), "p.json"), source)
    assert boxes.animals == ("animal1", "animal2")
    np.testing.assert_allclose(boxes.shares(2, 9, 9), [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]])


def test_coco_finds_images_by_name(tmp_path: Path, source: ImageSource) -> None:
    content = {
        "images": [{"id": 7, "file_name": "x\\b.png"}, {"id": 9, "file_name": "other.png"}],
        "annotations": [
            {"image_id": 7, "bbox": [20, 10, 40, 30]},
            {"image_id": 9, "bbox": [0, 0, 1, 1]},
            {"image_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": 1},
        ],
    }
    boxes = read_boxes(given(tmp_path, json.dumps(content), "c.json"), source)
    assert (boxes.animals, boxes.image_ids) == (("animal1",), {1: 7})
    np.testing.assert_allclose(boxes.shares(1, 200, 100), [[0.1, 0.1, 0.3, 0.4]])


def test_the_whole_frame_without_a_file() -> None:
    np.testing.assert_array_equal(Boxes().shares(5, 20, 10), [[0, 0, 1, 1]])


HEAD = "frame,x1,y1,x2,y2\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.csv", "frame,x1,y1\n", r"b\.csv: no column x2, y2"),
        ("b.csv", "", r"b\.csv: no column"),
        ("b.csv", HEAD, r"b\.csv: no box for these frames"),
        ("b.csv", HEAD + "0,1,2,three,4\n", r"b\.csv:2: a box is four numbers"),
        ("b.csv", HEAD + "0,1,2,inf,4\n", r"b\.csv:2: a box is four finite numbers"),
        ("b.csv", HEAD + "z.png,1,2,3,4\n", r"b\.csv:2: .* has no frame 'z\.png'"),
        (
            "b.csv",
            HEAD.strip() + ",animal\n0,1,2,3,4,a\n0,1,2,3,4,a\n",
            "two boxes of a in frame 0",
        ),
        ("b.json", "{", r"b\.json: no JSON"),
        ("b.json", "[]", r"b\.json: neither MARS's bbox nor COCO's"),
        ("b.json", '{"bbox": [[1, 2], [3]]}', r"bbox is not \[frame\]\[animal\]\[4\]"),
        ("b.json", '{"images": [{}], "annotations": []}', "lacks 'id'|lacks 'file_name'"),
        ("missing.csv", None, r"missing\.csv: No such file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, source, name: str, text: str, message: str) -> None:
    path = tmp_path / name if text is None else given(tmp_path, text, name)
    with pytest.raises(DataError, match=message) as raised:
        read_boxes(path, source)
    assert "\n" not in str(raised.value)


def test_another_type_of_file_is_refused(tmp_path: Path, source: ImageSource) -> None:
    with pytest.raises(ConfigError, match=r"neither \.csv nor \.json"):
        read_boxes(tmp_path / "b.txt", source)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("200,0,210,10", "lies outside the 200x100 px image"),
        ("-9,5,0,10", "lies outside"),
        ("10,10,10,20", "is empty"),
    ],
)
def test_a_box_that_is_nowhere(tmp_path: Path, source: ImageSource, box: str, message: str) -> None:
    boxes = read_boxes(given(tmp_path, HEAD + f"1,{box}\n"), source)
    with pytest.raises(DataError, match=rf"frame 1, animal1: box .* {message}"):
        boxes.shares(1, 200, 100)
