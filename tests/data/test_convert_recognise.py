"""What `fasthg init` takes a file or folder for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sources

from fasthg.data.convert.recognise import recognise
from fasthg.errors import ConfigError


def lightning_pose(folder: Path) -> None:
    sources._build_dlc(folder)
    shutil.move(folder / "labeled-data/v/CollectedData_me.csv", folder / "CollectedData.csv")
    (folder / "config.yaml").write_text("data: {}\n")


def slp(folder: Path) -> None:
    (folder / "a.slp").touch()


@pytest.mark.parametrize(
    ("build", "name", "kind"),
    [
        (sources._build_dlc, "", "dlc"),
        (sources._build_dlc, "config.yaml", "dlc"),
        (lightning_pose, "", "dlc"),
        (lightning_pose, "CollectedData.csv", "dlc"),
        (sources._build_mars, "", "mars"),
        (sources._build_mars, "project_config.yaml", "mars"),
        (sources._build_coco, "", "coco"),
        (sources._build_coco, "labels.json", "coco"),
        (sources._build_yolo, "", "yolo"),
        (sources._build_yolo, "data.yaml", "yolo"),
        (slp, "", "slp"),
        (slp, "a.slp", "slp"),
    ],
)
def test_kinds(tmp_path: Path, build: Callable[[Path], object], name: str, kind: str) -> None:
    build(tmp_path)
    # Of other programs, and no labels.
    (tmp_path / "notes.json").write_text('{"images": 3, "annotations": "none"}')
    (tmp_path / "other.yaml").write_text("\t: no YAML")
    assert recognise(tmp_path / name).kind == kind


def test_coco_files_of_several_splits(tmp_path: Path) -> None:
    sources._build_coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    for name in ("person_keypoints_train2017.json", "keypoints_val2017.json"):
        shutil.copy(tmp_path / "labels.json", tmp_path / "annotations" / name)
    with pytest.raises(ConfigError, match=r"several COCO files .*labels.json.*train=FILE"):
        recognise(tmp_path)
    (tmp_path / "labels.json").unlink()
    named = [path.rpartition("/")[2] for path in recognise(tmp_path).paths]
    assert sorted(named) == ["keypoints_val2017.json", "person_keypoints_train2017.json"]
    assert sorted(p.partition("=")[0] for p in recognise(tmp_path).paths) == ["train", "val"]


def test_boxes_alone_are_no_keypoints(tmp_path: Path) -> None:
    content = sources.coco_content()
    for annotation in content["annotations"]:
        del annotation["keypoints"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="found no labels there; looked for a DeepLabCut project"):
        recognise(tmp_path)


def test_several_kinds_name_the_commands(tmp_path: Path) -> None:
    sources._build_dlc(tmp_path)
    slp(tmp_path)
    with pytest.raises(ConfigError, match=r"several kinds .*data convert dlc .*data convert slp"):
        recognise(tmp_path)


def test_several_slp_files(tmp_path: Path) -> None:
    slp(tmp_path)
    (tmp_path / "b.slp").touch()
    with pytest.raises(ConfigError, match=r"several files of SLEAP labels \(a.slp, b.slp\)"):
        recognise(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        recognise(tmp_path / "gone")
