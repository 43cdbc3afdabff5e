"""YOLO pose data sets in the layouts that tools write them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from fasthg.config import load_config
from fasthg.data.convert import yolo
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import DataError

WIDTH, HEIGHT = 80, 60
# Box, then nose, left ear, right ear; the right ear is not labelled.
LINE = "0 0.5 0.5 0.25 0.5 0.5 0.25 2 0.4 0.5 1 0 0 0"
SETTINGS: dict[str, Any] = {
    "path": ".",
    "train": "images/train",
    "val": "images/val",
    "names": {0: "mouse"},
    "kpt_shape": [3, 3],
    "flip_idx": [0, 2, 1],
    "kpt_names": {0: ["nose", "left ear", "right ear"]},
}


def put(folder: Path, name: str, labels: str | None = LINE) -> Path:
    """An image by its path in the data set, and its labels."""
    image = folder / name
    image.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), np.full((HEIGHT, WIDTH, 3), len(name), np.uint8))
    if labels is not None:
        path = folder / name.replace("images", "labels").rpartition(".")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.txt").write_text(labels + "\n")
    return image


def make(folder: Path, **settings: Any) -> Path:
    for number in range(3):
        put(folder, f"images/train/img{number}.png")
    put(folder, "images/val/a.b.jpg")
    values = {key: value for key, value in (SETTINGS | settings).items() if value is not None}
    (folder / "data.yaml").write_text(yaml.safe_dump(values))
    return folder / "data.yaml"


def read(report: Any, parts: int = 3) -> RecordIndex:
    return RecordIndex.build([str(path) for path in report.files], parts)


def test_keypoints_boxes_pairs_and_splits(tmp_path: Path) -> None:
    report = yolo.convert(make(tmp_path / "d"), tmp_path / "out")
    assert report.frames == {"train": 3, "val": 1, "test": 0}
    index = read(report)
    train = {f"train/img{n}" for n in range(3)}
    assert {index.image_id(n) for n in range(4)} == train | {"val/a.b"}
    expected = np.array([[40, 15], [32, 30], [np.nan, np.nan]])
    assert np.allclose(index.keypoints, expected, equal_nan=True, atol=1e-4)
    assert np.allclose(index.bbox, [0.375, 0.25, 0.625, 0.75], atol=1e-6)
    assert index.visibility[0].tolist() == [2, 1, 0]
    cfg = load_config(report.config)
    assert cfg.PARTS.NAMES == ("nose", "left ear", "right ear")
    assert cfg.PARTS.LEFT_RIGHT_PAIRS == ((1, 2),)
    assert cfg.DATA.VAL is not None and cfg.DATA.TEST is None


def test_two_numbers_a_keypoint_and_no_names(tmp_path: Path) -> None:
    path = make(tmp_path, kpt_shape=[3, 2], kpt_names=None, flip_idx=[1, 0, 2], val=None)
    for label in (tmp_path / "labels" / "train").iterdir():
        label.write_text("0 .5 .5 .25 .5 .5 .25 0 0 -1 -1\n\n1 .5 .5 .5 .5 0 .1 .2 .3 .4 .5\n")
    report = yolo.convert(path, tmp_path / "out", fractions=(1, 0, 0))
    index = read(report)
    assert report.parts == ("part0", "part1", "part2") and report.pairs == [(0, 1)]
    assert index.visibility[:2].tolist() == [[2, 0, 0], [2, 2, 2]]
    named = {"snout": "snout", "hand": "hand", "foot": "paw"}
    renamed = yolo.convert(path, tmp_path / "named", parts=named, fractions=(1, 0, 0))
    assert renamed.parts == ("snout", "hand", "paw")
    fewer = yolo.convert(path, tmp_path / "few", parts={"part2": "c", "part0": "a"})
    assert fewer.parts == ("c", "a") and fewer.pairs == []


def test_one_split_alone_is_divided(tmp_path: Path) -> None:
    report = yolo.convert(make(tmp_path, val=None), tmp_path / "out", fractions=(0.5, 0.5, 0))
    assert report.frames == {"train": 1, "val": 2, "test": 0}


@pytest.mark.parametrize("parents", ["", "../"])
def test_folders_of_a_split_with_images_and_labels_each(tmp_path: Path, parents: str) -> None:
    """As Roboflow lays out its exports."""
    path = make(tmp_path, path=None, train=f"{parents}train/images", val=f"{parents}valid/images")
    put(tmp_path, "train/images/x.jpg")
    put(tmp_path, "valid/images/x.jpg")
    index = read(yolo.convert(tmp_path, tmp_path / "out"))
    assert {index.image_id(n) for n in range(2)} == {"train/x", "valid/x"}
    assert path.is_file()


def test_lists_of_files_and_a_folder_that_moved(tmp_path: Path) -> None:
    path = make(tmp_path / "d", path="/gone/d", train="train.txt", val=["images/val"])
    (tmp_path / "d" / "train.txt").write_text("./images/train/img0.png\nimages/train/gone.png\n")
    with pytest.raises(DataError, match=r"1 of 3 labelled images are missing .*gone.png"):
        yolo.convert(path, tmp_path / "out")
    report = yolo.convert(path, tmp_path / "out", skip_missing=True)
    assert report.frames["train"] == 1 and report.frames["val"] == 1


def test_images_without_labels_are_counted(tmp_path: Path) -> None:
    path = make(tmp_path)
    put(tmp_path, "images/train/empty.png", "")
    put(tmp_path, "images/train/none.png", None)
    report = yolo.convert(path, tmp_path / "out")
    assert report.skipped["images without a file of labels"] == 1
    assert report.skipped["frames without a labelled animal"] == 1
    assert sum(report.frames.values()) == 4


def test_exif_turns_the_image_that_labels_are_of(tmp_path: Path) -> None:
    from PIL import Image

    path = make(tmp_path)
    exif = Image.Exif()
    exif[274] = 6  # shown is 80 wide and 60 high
    pixels = np.zeros((WIDTH, HEIGHT, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/val/a.b.jpg", exif=exif)
    index = read(yolo.convert(path, tmp_path / "out"))
    assert np.allclose(index.keypoints[:, 0], [40, 15], atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2 0.5", r"img1.txt:2: 6 numbers, but .*\[3, 3\] make 14"),
        (LINE.replace("0.4", "x"), r"img1.txt:2: could not convert .*'x'"),
        (LINE.replace("0.4", "nan"), r"img1.txt:2: holds nan"),
        (LINE.replace("0.4", "312"), r"img1.txt:2: coordinates are no fractions"),
    ],
)
def test_lines_that_are_no_labels(tmp_path: Path, line: str, message: str) -> None:
    path = make(tmp_path)
    (tmp_path / "labels/train/img1.txt").write_text(f"{LINE}\n{line}\n")
    with pytest.raises(DataError, match=message):
        yolo.convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kpt_shape": [3]}, r"data.yaml: kpt_shape is \[3\]; write"),
        ({"kpt_shape": [3, 4]}, r"kpt_shape is \[3, 4\]"),
        ({"flip_idx": [0, 0, 1]}, "flip_idx is no order of the numbers 0 to 2"),
        ({"flip_idx": [1, 2, 0]}, "flip_idx sends 0 to 1, but that not back"),
        ({"kpt_names": ["nose"]}, "kpt_names are no list of 3 names"),
        ({"train": "images/nowhere"}, "train: images/nowhere is not there"),
        ({"train": None, "val": None}, "no image in train, val or test"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        yolo.convert(make(tmp_path, **settings), tmp_path / "out")


def test_folder_of_labels_elsewhere_is_named(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "texts")
    with pytest.raises(DataError, match=r"no label in any file, for example .*labels/train/img0"):
        yolo.convert(path, tmp_path / "out")
