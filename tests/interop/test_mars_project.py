"""MARS projects as the place to train in: what is found there, and what is written for MARS."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fasthg.cli import main
from fasthg.config import Config, Parts
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import Reader
from fasthg.data.records.tfrecord import read_frames
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError
from fasthg.inference.predictor import Predictions
from fasthg.interop.mars_project import (
    find_project,
    newest_run,
    project_config,
    relocation_overrides,
)
from fasthg.metrics import oks
from fasthg.report import raster
from fasthg.report.evaluate import Evaluation
from fasthg.report.performance import as_coco, draw_pck
from fasthg.runs.run_folder import RunFolder

KEYPOINTS = list(Parts().NAMES)
PROJECT: dict[str, Any] = {
    "project_name": "mice",
    "manifest_name": "output.manifest",
    "pixels_per_cm": 18.33,
    "detection": {"black_top": ["black"]},
    "pose": {"top": ["black", "white"]},
    "species": "mouse",
    "animal_names": ["black", "white"],
    "keypoints": KEYPOINTS,
    "check_pairs": [["right ear", "left ear"], ["right rear knee", "left rear knee"]],
}
TINY = {
    "NUM_STACKS": 1,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "NUM_INPUT_THREADS": 0,
    "NUM_TRAIN_ITERATIONS": 2,
    "BATCH_SIZE": 4,
}
SMALL = ["FEATURES=8", "STEM_FEATURES=4", "PRECISION=fp32", "RUN_NAME=first"]


def make(root: Path, train: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A project without labels; None for a key leaves it out."""
    config = {**PROJECT, **changes}
    (root / "pose").mkdir(parents=True)
    kept = {key: value for key, value in config.items() if value is not None}
    (root / "project_config.yaml").write_text(yaml.safe_dump(kept))
    if train is not None:
        (root / "pose" / "config_train.yaml").write_text(yaml.safe_dump(train))
    return root


def put_records(root: Path, model: str = "top", splits: tuple[str, ...] = ("train",)) -> Path:
    """Files with the names of records: planning does not read them."""
    folder = root / "pose" / f"{model}_tfrecords_pose"
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"{split}_dataset-00000-of-00001").touch()
    return folder


def planned(root: Path, *overrides: str) -> Config:
    found = project_config(overrides, root)
    assert found is not None
    return found.config


def fasthg(*arguments: object) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fasthg", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("own", [None, {"OKS_SIGMAS": "wide"}])
def test_sigmas_measured_by_the_conversion(tmp_path: Path, own: dict[str, Any] | None) -> None:
    root = make(tmp_path, own)
    sigmas = [0.01 * (1 + part) for part in range(len(KEYPOINTS))]
    splits = {"by": "frame", "seed": 0, "fractions": [1, 0, 0], "parts": KEYPOINTS}
    splits["measured"] = {"OKS_SIGMAS": sigmas, "workers": 5}
    path = put_records(root) / "splits.json"
    path.write_text(json.dumps(splits))
    found = project_config([], root)
    assert found is not None
    assert ("wide" if own else tuple(sigmas)) == found.config.OKS_SIGMAS
    said = [line for line in found.lines if "measured on 5 workers" in line]
    assert len(said) == (0 if own else 1)
    # Of other parts, or damaged, the list says nothing.
    for text in (json.dumps(splits | {"parts": KEYPOINTS[::-1]}), "{"):
        path.write_text(text)
        assert ("wide" if own else "narrow") == planned(root).OKS_SIGMAS


@dataclass
class Trained:
    project: Path
    run: Path
    printed: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A project that `fasthg train` was run in, from a folder below; tests run in it, too."""
    root = make(tmp_path_factory.mktemp("lab") / "mice", TINY)
    write_dataset(
        root / "pose" / "top_tfrecords_pose",
        seed=4,
        frames={"train": 4, "val": 2, "test": 3},
        size=(192, 160),
    )
    below = root / "annotation_data"
    below.mkdir()
    with contextlib.chdir(below):
        code, out, err = fasthg("train", *SMALL)
    assert not code, err
    with contextlib.chdir(root):
        yield Trained(root, root / "pose" / "top_log" / "first", out)


def performance(trained: Trained) -> dict[str, Any]:
    path = trained.project / "pose" / "top_evaluation" / "performance_pose.json"
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.slow
def test_training_takes_everything_from_the_project(trained: Trained) -> None:
    config = RunFolder.open(trained.run).config()
    assert (str(trained.project), "top") == (config.MARS_PROJECT, config.POSE_MODEL)
    assert list(config.PARTS.NAMES) == KEYPOINTS
    assert config.PIXELS_PER_CM == 18.33
    assert config.NUM_STACKS == 1, "pose/config_train.yaml is the configuration"
    assert (trained.run / "config.yaml").read_text() == yaml.safe_dump(TINY)
    assert "mice: top (black, white), 7 keypoints, 18.33 px in a cm" in trained.printed
    assert "errors in cm" in trained.printed


@pytest.mark.slow
def test_the_files_of_the_notebooks(trained: Trained) -> None:
    folder = trained.project / "pose" / "top_evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["pck.png", "performance_pose.json"]
    for name in ("pck.png", "performance_pose.json"):
        assert str(folder / name) in trained.printed
    with Image.open(folder / "pck.png") as image:
        assert image.format == "PNG" and image.width > 1000

    data = performance(trained)
    assert list(data) == ["gt_keypoints", "pred_keypoints", "partNames"]
    assert data["partNames"] == KEYPOINTS
    truth, found = data["gt_keypoints"], data["pred_keypoints"]
    assert truth["categories"] == [{"id": number} for number in range(1, 9)]
    path = trained.project / "pose" / "top_tfrecords_pose" / "test_dataset-00000-of-00001"
    stored = [int(Reader(f.payload).string(b"image/id")) for f in read_frames(path)]
    assert truth["images"] == [{"id": number} for number in stored] and len(set(stored)) == 3
    assert len(truth["annotations"]) == len(found) == 6 * 8
    ids = [entry["id"] for entry in truth["annotations"]]
    assert len(set(ids)) == len(ids) and 0 not in ids, "0 is no match to COCO"

    index = RecordIndex.build(
        str(trained.project / "pose" / "top_tfrecords_pose" / "test_dataset-*"), 7
    )
    rows = json.loads((trained.run / "eval" / "test" / "predictions.json").read_text())
    for place, (label, prediction) in enumerate(zip(truth["annotations"], found, strict=True)):
        number, category = place // 8, label["category_id"]
        assert category == place % 8 + 1 == prediction["category_id"]
        frame = stored[number // 2]
        assert label["image_id"] == prediction["image_id"] == frame, "both mice of a frame"
        chosen = slice(None) if category == 1 else slice(category - 2, category - 1)
        xyv = np.reshape(label["keypoints"], (-1, 3))
        seen = index.visibility[number, chosen]
        np.testing.assert_array_equal(xyv[:, 2], seen)
        expected = np.where(seen[:, None] > 0, index.keypoints[number, chosen], 0)
        np.testing.assert_allclose(xyv[:, :2], expected, atol=1e-3)
        assert label["num_keypoints"] == (seen > 0).sum()
        x, y, width, height = label["bbox"]
        assert label["area"] == width * height and label["iscrowd"] == 0
        box = index.bbox[number] * np.array([192, 160, 192, 160])
        assert x <= box[0] + 1 and x + width >= box[2] - 1
        assert y <= box[1] + 1 and y + height >= box[3] - 1
        row = rows["instances"][number]
        xyv = np.reshape(prediction["keypoints"], (-1, 3))
        np.testing.assert_allclose(xyv[:, :2], row["keypoints"][chosen], atol=1e-3)
        assert (xyv[:, 2] == 1).all()
        assert prediction["score"] == pytest.approx(np.mean(row["scores"][chosen]))


@pytest.mark.slow
@pytest.mark.parametrize("category", [1, 4])
def test_coco_reads_them_as_the_notebooks_do(trained: Trained, category: int) -> None:
    data = performance(trained)
    truth = data["gt_keypoints"]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] == category]
    found = [p for p in data["pred_keypoints"] if p["category_id"] == category]
    labels = COCO()
    labels.dataset = truth
    labels.createIndex()
    judge = COCOeval(labels, labels.loadRes(found), "keypoints")
    sigmas = np.full(7 if category == 1 else 1, 0.025)
    judge.params.kpt_oks_sigmas = sigmas
    judge.params.catIds = [category]
    judge.evaluate()
    judge.accumulate()
    for image in labels.imgs:
        both, guesses = (
            [entry for entry in entries if entry["image_id"] == image]
            for entries in (truth["annotations"], found)
        )
        guesses.sort(key=lambda entry: -entry["score"])
        assert len(both) == len(guesses) == 2
        for row, prediction in enumerate(guesses):
            for column, annotation in enumerate(both):
                xyv, at = (np.reshape(d["keypoints"], (1, -1, 3)) for d in (annotation, prediction))
                distance = np.hypot(*np.moveaxis(xyv - at, -1, 0)[:2])
                distance[xyv[..., 2] == 0] = np.nan
                (wanted,) = oks(distance, sigmas, [annotation["area"]])
                actual = judge.ious[image, category][row, column]
                assert actual == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_eval_and_predict_find_the_newest_run(trained: Trained, tmp_path: Path) -> None:
    target = trained.project / "pose" / "top_evaluation" / "performance_pose.json"
    before = target.read_bytes()
    target.unlink()
    code, out, err = fasthg("eval", "FUSED=off", "--split", "val")
    assert not code, err
    assert f"run      {trained.run}" in out
    assert not target.exists(), "the notebooks number the test records"
    code, out, err = fasthg("eval", "POSE_MODEL=top")
    assert not code, err
    assert str(target) in out
    assert target.read_bytes() == before, "the same weights, the same file"

    Image.new("RGB", (192, 160)).save(tmp_path / "new.png")
    code, out, err = fasthg("predict", tmp_path / "new.png", "BATCH_SIZE=1")
    assert not code, err
    assert f"run      {trained.run}" in out and list(tmp_path.rglob("*.csv"))
    code, _, err = fasthg("predict", tmp_path / "gone.png", tmp_path / "new.png")
    assert code and "gone.png: not a run folder" in err


@pytest.mark.slow
def test_a_project_may_move(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(trained.project, root)
    run = RunFolder(root / "pose" / "top_log" / "first")
    config = run.config(relocation_overrides(run))
    assert str(root) == config.MARS_PROJECT
    assert (f"{root}/pose/top_tfrecords_pose/test_dataset-*",) == config.DATA.TEST
    assert relocation_overrides(RunFolder(trained.run)) == []
    shutil.copytree(trained.run, tmp_path / "alone")
    assert relocation_overrides(RunFolder(tmp_path / "alone")) == []


def test_the_newest_run_by_its_weights(tmp_path: Path) -> None:
    root = make(tmp_path)
    for number, name in enumerate(["top_log/b", "front_log/c", "top_log/a", "top_log/unfinished"]):
        run = RunFolder(root / "pose" / name)
        run.checkpoints.mkdir(parents=True)
        run.resolved.touch()
        if "unfinished" not in name:
            run.best.touch()
            os.utime(run.best, (1e9 - number, 1e9 - number))
    assert newest_run([], root / "pose").path == root / "pose" / "top_log" / "b"
    assert newest_run(["POSE_MODEL=front"], root).path == root / "pose" / "front_log" / "c"
    with pytest.raises(DataError, match=r"pose/side_log: no run with weights; run: fasthg train"):
        newest_run(["POSE_MODEL=side"], root)


def test_without_a_project_the_newest_of_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no RUN given, no folder runs in .*; give runs/<name>"):
        newest_run([], tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError, match=r"runs: no run with weights; run: fasthg train"):
        newest_run([], tmp_path)
    for number, name in enumerate(["b", "a"]):
        run = RunFolder(tmp_path / "runs" / name)
        run.checkpoints.mkdir(parents=True)
        run.resolved.touch()
        run.best.touch()
        os.utime(run.best, (1e9 - number, 1e9 - number))
    assert newest_run([], tmp_path).path == tmp_path / "runs" / "b"


def test_a_run_that_was_forgotten(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").touch()
    for arguments, message in (
        (["film.mp4"], "film.mp4 is not a run folder; give RUN first (no RUN given, no folder"),
        (["gone.mp4"], "no input, and gone.mp4 is not there; give RUN"),
        ([], "no RUN and no input; for example: fasthg predict runs/mouse film.mp4"),
    ):
        code, _, err = fasthg("predict", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err


def test_the_stock_values_without_a_configuration(tmp_path: Path) -> None:
    names = ["Nose", "leftEar", "rightEar", "paw A", "paw B", "belly"]
    pairs = [["paw A", "paw B"]]
    root = make(tmp_path, keypoints=names, check_pairs=pairs, pixels_per_cm=0, animal_names=[])
    root = make(tmp_path / "b", keypoints=names, check_pairs=pairs, pixels_per_cm=0, pose={"m": []})
    put_records(root, "m")
    found = project_config([], root)
    assert found is not None and found.source is None and found.model == "m"
    parts = found.config.PARTS
    assert parts.NUM_PARTS == 6 and list(parts.NAMES) == names
    assert parts.LEFT_RIGHT_PAIRS == ((3, 4), (1, 2)), "check_pairs, then by their names"
    assert parts.SIGMAS == (1.5, 2.0, 2.0, 3.0, 3.0, 3.0)
    assert found.config.NUM_STACKS == Config().NUM_STACKS
    assert found.config.PIXELS_PER_CM is None
    assert str(root / "pose" / "m_log") == found.config.RUNS_DIR
    assert found.config.DATA.VAL is None and found.config.DATA.TEST is None
    assert "pixels_per_cm unknown" in found.lines[0]
    assert "no val_dataset-*" in found.lines[1] and "no test_dataset-*" in found.lines[2]


def test_whose_parts_serve(tmp_path: Path) -> None:
    own = {
        "NUM_PARTS": 3,
        "NAMES": ["nose tip", "a", "b"],
        "LEFT_RIGHT_PAIRS": [],
        "SIGMAS": [1, 2, 4],
    }
    names = ["snout", "back", "tail"]
    edited = make(tmp_path / "edited", {"PARTS": own}, keypoints=names, check_pairs=[])
    put_records(edited)
    parts = planned(edited).PARTS
    assert list(parts.NAMES) == names, "the project's names"
    assert parts.SIGMAS == (1.0, 2.0, 4.0), "with what was chosen for as many parts"
    stock = Parts().model_dump()
    unedited = make(tmp_path / "stock", {"PARTS": stock}, keypoints=names, check_pairs=[])
    put_records(unedited)
    found = project_config(["PARTS.SIGMAS=[5, 5, 5]"], unedited)
    assert found is not None and "of other keypoints" in found.lines[1]
    assert found.config.PARTS.SIGMAS == (5.0, 5.0, 5.0), "the command line has the last word"
    same = make(tmp_path / "same", {"PARTS": {**stock, "SIGMAS": [9] * 7}})
    put_records(same)
    assert planned(same).PARTS.SIGMAS == (9.0,) * 7


def test_a_project_is_named_or_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "p", {"RUNS_DIR": "elsewhere"}, pose={"top": [], "front": ["white"]})
    put_records(root)
    put_records(root, "front", ("train", "val"))
    assert project_config([], tmp_path) is None and find_project(root / "pose") == root
    monkeypatch.chdir(tmp_path)
    found = project_config(["MARS_PROJECT=p", "POSE_MODEL=front"], tmp_path)
    assert found is not None and str(root) == found.config.MARS_PROJECT
    assert (f"{root}/pose/front_tfrecords_pose/val_dataset-*",) == found.config.DATA.VAL
    assert found.config.RUNS_DIR == "elsewhere"
    assert "front (white)" in found.lines[0]
    with pytest.raises(DataError, match=r"2 models \(front, top\); choose one with POSE_MODEL=f"):
        project_config([], root)
    with pytest.raises(DataError, match=r"project_config.yaml: No such file .*; give the folder"):
        project_config(["MARS_PROJECT=q"], tmp_path)
    with pytest.raises(ConfigError, match=r"keep either DATA or MARS_PROJECT"):
        project_config(["POSE_MODEL=top", "DATA.TRAIN=mine"], root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": None}, "project_config.yaml: keypoints is no list of names; add it"),
        ({"keypoints": "nose"}, "keypoints is no list of names; write keypoints: [first, second]"),
        ({"keypoints": ["a", "a"]}, "keypoints: a is there twice; name each once"),
        ({"pose": None}, "pose names no model; add e.g. pose: {top: []}"),
        ({"pose": ["top"]}, "pose names no models with their animals; write pose: {top: []}"),
        ({"pose": {"top": ["grey"]}}, "pose.top names grey, which animal_names lacks"),
        ({"check_pairs": [["nose", "beak"]]}, "is no pair of keypoints; correct it"),
        ({"check_pairs": 3}, "check_pairs: 3 is no pair of keypoints"),
        ({"pixels_per_cm": "many"}, "pixels_per_cm: 'many' is no number above 0"),
        ({"pixels_per_cm": -1}, "pixels_per_cm: -1 is no number above 0"),
        ({"check_pairs": [], "keypoints": ["left a", "b"]}, "'left a' has no partner"),
        ({"pose": {"side": []}}, "no train_dataset-* to train on; run: fasthg data convert mars"),
    ],
)
def test_one_line_for_what_is_wrong(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_records(make(tmp_path / "p", **changes))
    monkeypatch.chdir(tmp_path / "p")
    code, _, err = fasthg("train")
    assert code in (1, 2) and message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("train", "eval"):
        code, _, err = fasthg(verb)
        assert code == 2 and "no project_config.yaml" in err and err.count("\n") == 1
    code, _, err = fasthg("predict", "film.mp4")
    assert code == 2 and "no input" in err


@pytest.mark.slow
def test_what_is_missing_is_zero(trained: Trained) -> None:
    """Neither NaN, which is no JSON, nor a gap, over which the notebooks stumble."""
    config = RunFolder.open(trained.run).config()
    index = RecordIndex.build(config.DATA.TEST or (), 7)
    rows = np.array([4, 1])
    truth = index.keypoints[rows].astype(float)
    truth[0, 2] = np.nan
    visibility = np.full((2, 7), 2, np.uint8)
    visibility[0, 3] = 0
    keypoints = truth + 3
    keypoints[1, 6] = np.nan
    scores = np.full((2, 7), 0.5, np.float32)
    scores[1, 5] = np.nan
    one = np.ones(2)
    found = Predictions(rows, keypoints, scores, truth, visibility, one, one, 0.0)
    data = as_coco(config, Evaluation({"split": "test"}, Path(), found, index))
    json.dumps(data, allow_nan=False)
    labels, predictions = data["gt_keypoints"]["annotations"], data["pred_keypoints"]
    assert len(labels) == len(predictions) == 16
    assert [each["id"] for each in data["gt_keypoints"]["images"]] == [2_000_000, 2_000_002]
    assert [labels[part + 1]["keypoints"] for part in (2, 3)] == [[0, 0, 0]] * 2
    assert [labels[part + 1]["num_keypoints"] for part in (1, 2, 3)] == [1, 0, 0]
    assert labels[0]["num_keypoints"] == 5 and labels[0]["keypoints"][6:12] == [0] * 6
    assert predictions[8 + 7]["keypoints"] == [0, 0, 0]
    assert [p["score"] for p in predictions[8 + 5 :]] == [0.5, 0, 0]
    assert predictions[8]["score"] == pytest.approx(2.5 / 7)


def test_parts_without_labels_leave_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part nobody labelled has no curve, and an empty panel is no error."""
    distances = np.full((4, 2), np.nan)
    distances[:, 0] = [0, 1, 2, 30]
    curves: dict[str, Any] = {}

    def panel(title: str, x: Any, y: Any, lines: Any, *rest: Any, **options: Any) -> Any:
        curves[title] = np.asarray(lines[0].y)
        return raster.panel(title, x, y, lines, *rest, **options)

    monkeypatch.setattr("fasthg.report.performance.panel", panel)
    picture = draw_pck(["nose", "tail"], distances, 20.0, None, None)
    assert list(curves) == ["all", "nose", "tail"]
    assert curves["nose"][-1] == 0.75 and np.isnan(curves["tail"]).all()
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.min() == 0
