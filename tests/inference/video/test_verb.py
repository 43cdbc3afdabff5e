"""The verb on a trained run: the same keypoints as `fasthg eval`, and one line for each mistake."""

from __future__ import annotations

import csv
import json
import os
import signal
from glob import glob
from pathlib import Path

import forked
import numpy as np
import pytest
from moving_dots import write_video
from tiny_run import run as train
from tiny_run import tiny

from fasthg.config import Config
from fasthg.data.convert import to_coco
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic.dataset import render, write_dataset
from fasthg.report.evaluate import evaluate_run
from fasthg.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Config]:
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(
        folder / "mice", seed=5, frames={"train": 6, "val": 2, "test": 5}, size=(192, 160)
    )
    config = tiny(folder / "mice", folder / "runs", LOADER="portable")
    return train(config).run, config


def film(path: Path, frames: int) -> Path:
    pictures = (render(3, "film", number, (192, 160)).image for number in range(frames))
    return write_video(path, pictures)


BEYOND = ["CROP_BORDER=edge", "LOOSE_BBOX_PAD_FACTOR=2.0"]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["FLIP_TEST=true", "DECODE=quarter"], BEYOND])
def test_records_with_their_boxes_give_the_predictions_of_eval(
    trained, tmp_path: Path, fasthg, keys: list[str]
) -> None:
    run, config = trained
    settings = run.config(keys)
    report = evaluate_run(run, settings, "test", None)
    expected = json.loads((report.folder / "predictions.json").read_text())["instances"]
    index = RecordIndex.build(str(config.DATA.TEST[0]), 7)
    images = tmp_path / "frames"
    images.mkdir()
    lines = []
    for instance, record in enumerate(index.record):
        name = f"{record}.jpg"
        (images / name).write_bytes(index.jpeg(int(record)))
        size = np.array([192, 160] * 2, np.float64)
        edges = (index.bbox[instance] * size).tolist()
        lines.append([name, *map(repr, edges), f"mouse{index.object_number[instance]}"])
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["frame", "x1", "y1", "x2", "y2", "animal"], *lines])
    options = ["--flip-test", "--decode", "quarter"] if "FLIP_TEST=true" in keys else keys
    (records,) = glob(str(config.DATA.TEST[0]))
    code, out, err = fasthg("predict", run.path, records, "-o", tmp_path / "own", *options)
    assert (code, err) == (0, "")
    code, out, err = fasthg(
        "predict", run.path, images, "--boxes", tmp_path / "boxes.csv", *options
    )
    assert (code, err) == (0, "")
    assert "5 frames in" in out
    assert "network " in out
    with (tmp_path / "frames.pose.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected) * 7
    found = np.array([[float(row["x"]), float(row["y"])] for row in rows]).reshape(-1, 7, 2)
    np.testing.assert_allclose(found, [row["keypoints"] for row in expected], atol=1.1e-3)
    scores = np.array([float(row["score"]) for row in rows]).reshape(-1, 7)
    np.testing.assert_allclose(scores, [row["scores"] for row in expected], atol=1e-5)
    with next((tmp_path / "own").glob("*.pose.csv")).open() as file:
        record_rows = list(csv.DictReader(file))
    columns = ("frame", "part", "x", "y", "score")
    assert [[r[c] for c in columns] for r in record_rows if r["x"]] == [
        [r[c] for c in columns] for r in rows
    ]


def test_coco_boxes_and_results_of_one_set(trained, tmp_path: Path, fasthg) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    run, config = trained
    to_coco.export(config, tmp_path / "mice.json", splits=["test"])
    folders = sorted({path.parent for path in (tmp_path / "mice_images").rglob("*.jpg")})
    assert len(folders) == 1
    code, _, err = fasthg(
        *("predict", run.path, folders[0], "--boxes", tmp_path / "mice.json"),
        *("--to", "coco", "--to", "csv", "-o", tmp_path / "out"),
    )
    assert (code, err) == (0, "")
    (result,) = (tmp_path / "out").glob("*.coco.json")
    found = coco.COCO(str(tmp_path / "mice.json")).loadRes(str(result))
    assert len(found.getAnnIds()) == 10


@pytest.mark.slow
def test_ctrl_c_leaves_finished_rows_and_resume_ends_with_the_same(
    trained, tmp_path: Path, fasthg
) -> None:
    run, _ = trained
    path = film(tmp_path / "film.mp4", 3)
    long = tmp_path / "long.mp4"
    picture = render(3, "film", 0, (192, 160)).image
    write_video(long, (np.roll(picture, 2 * n, axis=1) for n in range(600)))
    whole_frame = ("--boxes", "whole")
    process, rows = forked.command("predict", run.path, long, *whole_frame), tmp_path / ".long.rows"
    process.wait_for(lambda: rows.exists() and rows.stat().st_size > 20_000)
    os.kill(process.pid, signal.SIGINT)
    status, out, err = process.ended()
    assert status == 130, err
    assert "go on with --resume" in out
    part = (tmp_path / "long.pose.csv").read_text()
    assert 7 < part.count("\n") < 600 * 7
    assert fasthg("predict", run.path, path, long, "--resume", *whole_frame)[0] == 0
    whole = (tmp_path / "long.pose.csv").read_text()
    assert whole.startswith(part)
    assert whole.count("\n") == 600 * 7 + 1
    assert (tmp_path / "film.pose.csv").read_text().count("\n") == 3 * 7 + 1


def test_one_line_for_each_mistake(trained, tmp_path: Path, fasthg) -> None:
    run, _ = trained
    path = film(tmp_path / "film.mp4", 2)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:900])
    (tmp_path / "b.csv").write_text("frame,x1,y1,x2,y2\n1,192,0,200,9\n")
    empty = RunFolder.create(run.config(["RUNS_DIR=" + str(tmp_path), "RUN_NAME=e"]), None, "e")
    cases = [
        ([run.path, "KEY=1"], "no input"),
        ([run.path, tmp_path / "gone.mp4"], "gone.mp4: no such file"),
        ([run.path, tmp_path / "notes.txt"], "unknown file type"),
        ([run.path, tmp_path / "cut.mp4"], "cannot be read as a video"),
        ([run.path, path, "--boxes", tmp_path / "b.csv"], "lies outside the 192x160 px image"),
        ([run.path, path], "train a locator, once, with: fasthg train --locator RUN"),
        ([run.path, path, "--to", "xml"], "unknown format"),
        ([run.path, path, "--decode", "best"], "DECODE"),
        ([empty.path, path], "best.safetensors"),
        ([tmp_path, path], "not a run folder"),
    ]
    for arguments, message in cases:
        code, _, err = fasthg("predict", *arguments)
        assert code in (1, 2, 3), arguments
        assert message in err, (arguments, err)
        assert err.count("\n") == 1, err
    assert not list(tmp_path.glob("*.pose.csv"))


def test_a_folder_of_films_once_and_once_more(trained, tmp_path: Path, fasthg) -> None:
    run, _ = trained
    films = tmp_path / "films"
    films.mkdir()
    film(films / "long.mp4", 6)
    film(films / "short.mp4", 2)
    asked = [run.path, films, "--boxes", "whole", "--frames", "3:5", "--filter", "median:3"]
    code, out, err = fasthg("predict", *asked)
    assert code == 1 and err.count("\n") == 1
    assert "1 of 2 inputs not predicted, see above: short.mp4" in err
    assert f"{films}: 2 films" in out
    assert "short.mp4: --frames 3:5: it has 2 frames; begin before its end" in out
    assert "2 frames in" in out and "(frames/s): " in out and " limits" in out
    names = ["long.filtered.pose.csv", "long.pose.csv"]
    assert sorted(path.name for path in films.glob("*.csv")) == names
    with (films / "long.pose.csv").open() as file:
        assert {row["frame"] for row in csv.DictReader(file)} == {"3", "4"}
    code, out, _ = fasthg("predict", *asked)
    done = "long.mp4: done before (long.pose.csv, long.filtered.pose.csv); --again makes it anew"
    assert code == 1 and done in out
    code, out, _ = fasthg("predict", *asked, "--again")
    assert code == 1 and "long.pose.csv (in place of an older one)" in out
