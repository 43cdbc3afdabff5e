"""The whole loop by commands: train, suggest, correct, convert, train on both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from moving_dots import write_video
from tiny_run import run as train
from tiny_run import tiny

from fasthg.config.keys import Data, Init
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic.dataset import render, write_dataset

pandas = pytest.importorskip("pandas")
pytest.importorskip("tables")


def film(path: Path, frames: int = 12) -> Path:
    pictures = (render(3, "film", number, (192, 160)).image for number in range(frames))
    return write_video(path, pictures)


@pytest.mark.slow
def test_the_loop(tmp_path: Path, fasthg) -> None:
    write_dataset(tmp_path / "mice", seed=5, frames={"train": 6, "val": 2}, size=(192, 160))
    data = Data(TRAIN=[str(tmp_path / "mice/train*")], VAL=[str(tmp_path / "mice/val*")])
    run = train(tiny(tmp_path / "mice", tmp_path / "runs", DATA=data, LOADER="portable")).run
    path, out = film(tmp_path / "day1.mp4"), tmp_path / "next"
    ask = ("suggest", run.path, path, "--boxes", "whole", "-n", 4, "--confidence", 0, "-o", out)
    code, text, err = fasthg(*ask, "--json")
    assert (code, err) == (0, "")
    told = json.loads(text)
    assert len(told["frames"]) == 4
    assert all(Path(file).is_file() for file in told["files"])

    code, _, err = fasthg(*ask)
    assert (code, "is there already" in err) == (2, True)
    code, text, err = fasthg(*ask[:-1], tmp_path / "again")
    assert (code, err) == (0, "")
    for each in told["frames"]:
        assert f"{each['frame']:5d}  {each['time_s']:.2f} s" in text

    folder = out / "labeled-data/day1"
    table = pandas.read_hdf(folder / "machinelabels-iter0.h5")
    table = table.drop(columns="likelihood", level="coords")
    table.columns = table.columns.set_levels(["human"], level="scorer")
    table.iloc[:, :] = np.tile(
        [20.0, 30.0, 40, 50, 60, 70, 80, 90, 100, 90, 80, 70, 60, 50], (4, 1)
    )
    table.to_hdf(folder / "CollectedData_human.h5", key="df_with_missing")
    code, text, err = fasthg("data", "convert", "dlc", out, tmp_path / "records")
    assert (code, err) == (0, "")
    both = [str(tmp_path / "mice/train*"), str(tmp_path / "records/*_dataset-*")]
    assert RecordIndex.build(both, 7).num_records == 10
    union = tiny(
        *(tmp_path / "mice", tmp_path / "runs"),
        DATA=data.model_copy(update={"TRAIN": both}),
        INIT=Init(WEIGHTS=str(run.best)),
        NUM_TRAIN_ITERATIONS=2,
        VALIDATE_EVERY_N_STEPS=2,
        RUN_NAME="second",
        LOADER="portable",
    )
    second = train(union).run
    assert second.best.is_file()
    # The frames that were labelled meanwhile are known to the new run, by name and by picture.
    code, text, err = fasthg(
        *("suggest", second.path, path, "--boxes", "whole", "-n", 12, "-o", tmp_path / "third"),
        "--json",
    )
    assert (code, err) == (0, "")
    numbers = {each["frame"] for each in json.loads(text)["frames"]}
    assert numbers
    assert not numbers & {each["frame"] for each in told["frames"]}


@pytest.mark.slow
def test_one_line_for_each_mistake(tmp_path: Path, fasthg) -> None:
    write_dataset(tmp_path / "mice", seed=5, frames={"train": 4, "val": 2}, size=(192, 160))
    data = Data(TRAIN=[str(tmp_path / "mice/train*")], VAL=[str(tmp_path / "mice/val*")])
    config = tiny(
        *(tmp_path / "mice", tmp_path / "runs"),
        DATA=data,
        LOADER="portable",
        NUM_TRAIN_ITERATIONS=1,
        VALIDATE_EVERY_N_STEPS=1,
    )
    run, path = train(config).run, film(tmp_path / "day1.mp4", 2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"")
    (tmp_path / "b.csv").write_text("frame,x1,y1,x2,y2\n")
    cases = [
        ([tmp_path, path], 1, "not a run folder"),
        ([run.path, "BATCH_SIZE=2"], 2, "no film"),
        ([run.path, tmp_path / "images"], 2, "is no film"),
        ([run.path, path, "--scorer", "a b"], 2, "--scorer 'a b'"),
        ([run.path, path], 2, "nothing says where the animals are"),
        ([run.path, path, film(tmp_path / "c.mp4", 2), "--boxes", tmp_path / "b.csv"], 2, "is for"),
    ]
    for given, status, says in cases:
        code, out, err = fasthg("suggest", *given, "-o", tmp_path / "next")
        assert (code, out) == (status, ""), (given, out, err)
        assert says in err
        assert err.count("\n") == 1
    assert not (tmp_path / "next").exists()
