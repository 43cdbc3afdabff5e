"""`fasthg init`: from labels of any kind to a folder that `fasthg train` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sources

from fasthg.config import load_config


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (sources._build_dlc, "project"),
        (sources._build_coco, "labels.json"),
        (sources._build_mars, "project"),
        (sources._build_yolo, "project"),
    ],
)
def test_records_and_configuration_here(
    fasthg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build, name: str
) -> None:
    build(tmp_path / "project")
    source = tmp_path / "project" / (name if name != "project" else "")
    monkeypatch.chdir(tmp_path)
    code, out, err = fasthg("init", str(source), "--split", "1/0/0")
    assert (code, err) == (0, "")
    folder = "labels-fasthg" if name == "labels.json" else "project-fasthg"
    assert out.splitlines()[-1] == f"train with: fasthg train {folder}"
    cfg = load_config(Path(folder) / "config.yaml")
    assert (f"{tmp_path}/{folder}/train_dataset-*",) == cfg.DATA.TRAIN and cfg.DATA.VAL is None
    assert [*cfg.PARTS.NAMES] == [*sources.PARTS]


def test_options_reach_the_converter(fasthg, tmp_path: Path) -> None:
    sources._build_coco(tmp_path)
    out = tmp_path / "out"
    options = ["--parts", "nose=snout,left ear", "--boxes", "whole", "--split-by", "block"]
    options += ["--split", "0.5/0.5/0", "--images", str(tmp_path), "--category", "mouse", "--json"]
    code, text, _ = fasthg("init", str(tmp_path), str(out), *options)
    report = json.loads(text)
    assert code == 0 and report["parts"] == ["snout", "left ear"]
    stored = json.loads((out / "splits.json").read_text())
    assert stored["by"] == "block" and stored["fractions"] == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pose-model", "top"], "--pose-model: has no meaning for COCO keypoints"),
        (["--split", "0.9/0.2/0"], "--split 0.9/0.2/0: give three shares"),
        (["--boxes", "tight"], "--boxes tight: use whole"),
        (["--split-by", "day"], "--split-by day: use frame, video, session, block"),
    ],
)
def test_options_that_do_not_fit(fasthg, tmp_path: Path, options: list[str], message: str) -> None:
    sources._build_coco(tmp_path)
    code, _, err = fasthg("init", str(tmp_path), str(tmp_path / "out"), *options)
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_nothing_known(fasthg, tmp_path: Path) -> None:
    code, _, err = fasthg("init", str(tmp_path))
    assert code == 2 and "found no labels there; looked for a DeepLabCut project" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_two_commands_and_a_run(fasthg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is found from another folder, and the run stands when the records move."""
    sources._build_dlc(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    fasthg("init", "project", "records", "--split", "0.67/0.33/0")
    small = ["FEATURES=8", "STEM_FEATURES=4", "NUM_STACKS=1", "INPUT_SIZE=64", "HEATMAP_SIZE=16"]
    small += ["LOCATOR=off", "NUM_TRAIN_ITERATIONS=2", "BATCH_SIZE=2", "RUN_NAME=a"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = fasthg("train", "../records", *small)
    assert (code, err) == (0, "")
    run = tmp_path / "elsewhere" / "runs" / "a"
    assert load_config(run / "config.yaml").DATA == load_config(run / "config.resolved.yaml").DATA
    monkeypatch.chdir(tmp_path)
    assert fasthg("eval", str(run))[0] == 0
    assert fasthg("train", "--resume", str(run), "NUM_TRAIN_ITERATIONS=4", "--no-eval")[0] == 0
    (tmp_path / "records").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert fasthg("train", ".", *small, "RUN_NAME=null", "--no-eval")[0] == 0
    assert len([*Path("runs").glob("moved-*")]) == 1
