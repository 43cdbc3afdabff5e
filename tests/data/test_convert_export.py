"""Records back to COCO and DeepLabCut, and the verbs of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fasthg import cli
from fasthg.config import Config
from fasthg.data.convert import coco, dlc, to_coco, to_dlc
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.errors import ConfigError, DataError, FasthgError

NAN = np.nan
NAMES = ["nose", "left ear", "right ear"]
XY = np.array([[[0.1, 0.25], [0.2, 0.3], [NAN, NAN]], [[0.5, 0.5], [0.6, 0.5], [0.55, 0.7]]])
BOXES = np.array([[0.05, 0.2, 0.3, 0.4], [0.4, 0.4, 0.7, 0.8]], np.float32)


def record(image_id: str, animals: int = 2, png: bool = False, **more: Any) -> Record:
    image = np.full((80, 100, 3), len(image_id), np.uint8)
    encoded = cv2.imencode(".png" if png else ".jpg", image)[1].tobytes()
    return Record(
        encoded=encoded,
        width=100,
        height=80,
        image_id=image_id,
        bbox=BOXES[:animals],
        keypoints=XY[:animals].astype(np.float32),
        **more,
    )


def config(folder: Path, **splits: Sequence[Record]) -> Config:
    data = {}
    for split, records in splits.items():
        data[split.upper()] = str(folder / f"{split}_dataset-00000-of-00001")
        write_frames(data[split.upper()], [encode(each) for each in records])
    parts = {"NUM_PARTS": 3, "NAMES": NAMES, "LEFT_RIGHT_PAIRS": [[1, 2]], "SIGMAS": [1, 1, 1]}
    return Config(PARTS=parts, DATA=data)


def test_coco_has_all_splits_and_all_frames(tmp_path: Path) -> None:
    cfg = config(tmp_path, train=[record("v/a"), record("v/b", 1)], test=[record("c", 0)])
    out = tmp_path / "x.json"
    report = to_coco.export(cfg, out)
    assert report.frames == {"train": 2, "test": 1}
    assert (report.animals, report.unlabelled_parts) == (3, 2)
    content = json.loads(out.read_text())
    assert [(i["id"], i["file_name"], i["split"]) for i in content["images"]] == [
        (1, "x_images/v/a.jpg", "train"),
        (2, "x_images/v/b.jpg", "train"),
        (3, "x_images/test/c.jpg", "test"),
    ]
    assert [a["image_id"] for a in content["annotations"]] == [1, 1, 2]
    assert content["annotations"][0]["keypoints"] == [10, 20, 2, 20, 24, 2, 0, 0, 0]
    assert content["annotations"][1]["bbox"] == [40, 32, 30, 32]
    assert content["annotations"][1]["area"] == pytest.approx(960, rel=1e-5)
    assert (tmp_path / "x_images" / "v" / "a.jpg").read_bytes() == record("v/a").encoded
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []


def test_coco_of_one_split_without_images(tmp_path: Path) -> None:
    cfg = config(tmp_path, train=[record("a")], val=[record("b")])
    report = to_coco.export(cfg, tmp_path / "x.json", splits=["val"], images=False)
    assert report.frames == {"val": 1} and not (tmp_path / "x_images").exists()
    with pytest.raises(ConfigError, match=r"DATA.TEST: not set; set it or leave out --split test"):
        to_coco.export(cfg, tmp_path / "y.json", splits=["test"])
    with pytest.raises(ConfigError, match="--split dev: use train, val, test"):
        to_coco.export(cfg, tmp_path / "y.json", splits=["dev"])
    with pytest.raises(ConfigError, match="DATA names no split"):
        to_coco.export(Config(), tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_names_of_files_are_never_the_same(tmp_path: Path) -> None:
    ids = ["v/a", "V/A", "V/a", "..\\v/a", "", "", 'C:\\v<1>\\b?"', "train/c", "c"]
    given = [record(each, png=number == 0) for number, each in enumerate(ids)]
    out = tmp_path / "x.json"
    to_coco.export(config(tmp_path, train=given), out)
    names = [image["file_name"] for image in json.loads(out.read_text())["images"]]
    assert names == [
        "x_images/v/a.png",
        "x_images/V/A.jpg",
        "x_images/V/a_2.jpg",
        "x_images/v/a_3.jpg",
        "x_images/train/000004.jpg",
        "x_images/train/000005.jpg",
        "x_images/C_/v_1_/b__.jpg",
        "x_images/train/c.jpg",
        "x_images/train/c_2.jpg",
    ]
    # PNGs are converted to JPEG on the way back; the others come back as they were.
    again = coco.convert([coco.Source(out)], tmp_path / "back")
    assert again.frames["train"] == len(ids)


def test_other_parts_are_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path, train=[record("a")])
    parts = {"NUM_PARTS": 2, "NAMES": ["a", "b"], "LEFT_RIGHT_PAIRS": [], "SIGMAS": [1, 1]}
    cfg = Config(PARTS=parts, DATA=cfg.DATA)
    for export, out in ((to_coco.export, "x.json"), (to_dlc.export, "x")):
        with pytest.raises(DataError, match=r"record 0: 3 parts an object, but PARTS.NUM_PARTS"):
            export(cfg, tmp_path / out)
        assert not (tmp_path / out).is_file()


def test_dlc_of_one_animal(tmp_path: Path) -> None:
    given = [record("v/a", 1), record("w/b/c", 1), record("d", 1), record("e", 0)]
    report = to_dlc.export(config(tmp_path, val=given), tmp_path / "p")
    assert report.frames == {"val": 3} and report.skipped == {"frames without an animal": 1}
    table = (tmp_path / "p/labeled-data/v/CollectedData_fasthg.csv").read_text()
    assert table.splitlines() == [
        "scorer,,," + ",".join(["fasthg"] * 6),
        "bodyparts,,,nose,nose,left ear,left ear,right ear,right ear",
        "coords,,,x,y,x,y,x,y",
        "labeled-data,v,a.jpg,10.0,20.0,20.0,24.0,,",
    ]
    settings = yaml.safe_load((tmp_path / "p" / "config.yaml").read_text())
    assert settings["bodyparts"] == NAMES and settings["multianimalproject"] is False
    assert [Path(name).stem for name in settings["video_sets"]] == ["v", "w_b", "val"]
    assert {each["crop"] for each in settings["video_sets"].values()} == {"0, 100, 0, 80"}
    again = dlc.convert(tmp_path / "p", tmp_path / "back", fractions=(1, 0, 0))
    index = RecordIndex.build([str(path) for path in again.files], 3)
    assert {index.image_id(r) for r in range(3)} == {"v/a", "w_b/c", "val/d"}
    np.testing.assert_allclose(index.keypoints, [XY[0] * (100, 80)] * 3, atol=1e-3)


@pytest.mark.parametrize(
    ("names", "individuals"),
    [
        ([(), ()], ["animal1", "animal2"]),
        ([("black", "white"), ("white", "grey")], ["black", "white", "grey"]),
        ([("black", "white"), ("7", "8")], ["animal1", "animal2"]),
        ([("black", "black"), ("black", "white")], ["animal1", "animal2"]),
    ],
)
def test_dlc_of_several_animals(
    tmp_path: Path, names: list[tuple[str, ...]], individuals: list[str]
) -> None:
    given = [record(f"v/{n}", object_id=own) for n, own in enumerate(names)]
    to_dlc.export(config(tmp_path, train=given), tmp_path / "p", scorer="me")
    settings = yaml.safe_load((tmp_path / "p" / "config.yaml").read_text())
    assert settings["individuals"] == individuals and settings["scorer"] == "me"
    assert settings["multianimalbodyparts"] == NAMES and settings["uniquebodyparts"] == []
    table = (tmp_path / "p" / "labeled-data" / "v" / "CollectedData_me.csv").read_text()
    row = table.splitlines()[-1].split(",")[3:]
    # By individuals: which of the record's animals has its nose there.
    animals = [{"10.0": 0, "50.0": 1, "": None}[cell] for cell in row[::6]]
    assert animals == ([None, 0, 1] if individuals[-1] == "grey" else [0, 1])
    report = dlc.convert(tmp_path / "p", tmp_path / "back", fractions=(1, 0, 0))
    index = RecordIndex.build([str(path) for path in report.files], 3)
    assert len(index) == 4
    for frame in range(2):
        rows = index.keypoints[index.record == frame]
        np.testing.assert_allclose(rows, XY * (100, 80), atol=1e-3)


def test_no_project_is_written_over(tmp_path: Path) -> None:
    cfg = config(tmp_path, train=[record("v/a")])
    to_dlc.export(cfg, tmp_path / "p")
    with pytest.raises(DataError, match="holds a project already; give another folder"):
        to_dlc.export(cfg, tmp_path / "p")
    empty = config(tmp_path, train=[record("v/a", 0)])
    with pytest.raises(DataError, match="no animal in the records of the config"):
        to_dlc.export(empty, tmp_path / "q")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["data", "convert", *map(str, arguments)])
    if isinstance(result.exception, FasthgError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.output)


def test_command_line_there_and_back(tmp_path: Path) -> None:
    config(tmp_path, train=[record("v/a"), record("v/b")], val=[record("w/c")])
    settings = tmp_path / "config.yaml"
    parts = f"PARTS={{NUM_PARTS: 3, NAMES: [{', '.join(NAMES)}], LEFT_RIGHT_PAIRS: [[1, 2]], "
    settings.write_text(f"DATA: {{TRAIN: {tmp_path}/train_dataset-*}}\nBATCH_SIZE: 2\n")
    given = [parts + "SIGMAS: [1, 1, 1]}", f"DATA.VAL={tmp_path}/val_dataset-*"]
    out = tmp_path / "x.json"
    text = run("to-coco", settings, out, *given)
    assert text.startswith("3 frames (2 train, 1 val), 6 animals, 3 parts unlabelled\n")
    assert f"wrote {out}" in text and "\nnames:" not in text

    options = ("--parts", "nose=snout,right ear,left ear", "--split-by", "video")
    text = run("coco", out, tmp_path / "back", *options)
    assert "\nnames: nose -> snout\n" in text
    assert "LEFT_RIGHT_PAIRS by their names: [[2, 1]] (left ear and right ear)" in text
    assert "split by video: 2 videos (1 train, 1 val, 0 test)" in text
    again = run("coco", out, tmp_path / "back", "--split-by", "video", "--json")
    assert json.loads(again)["frames"] == {"train": 2, "val": 1, "test": 0}

    run("to-coco", settings, out, *given)
    labels = tmp_path / "labels.json"
    labels.write_text("{}")
    with pytest.raises(DataError, match=r"labels.json: is there, and not written by fasthg; give"):
        run("to-coco", settings, labels, *given)

    run("to-dlc", settings, tmp_path / "p", *given, "--split", "train", "--scorer", "me")
    text = run("dlc", tmp_path / "p", tmp_path / "dlc")
    assert "2 frames" in text
    with pytest.raises(DataError, match="made by frame, not by video"):
        run("dlc", tmp_path / "p", tmp_path / "dlc", "--split-by", "video")
    with pytest.raises(ConfigError, match="is a folder; give the name of a JSON file"):
        run("to-coco", settings, tmp_path, *given)
    text = run("coco", f"train={out}", f"test={out}", tmp_path / "t", "--split-by", "frame")
    assert "3 frames" in text and "skipped: 3 frames labelled twice, the same way" in text
