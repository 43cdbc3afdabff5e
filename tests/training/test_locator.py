"""The second training of a run: its folder, exact resume, runs without one, and what uses it."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_dots import write_video
from rich.console import Console
from tiny_run import tiny

from fasthg.config import Config
from fasthg.data.records.schema import encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.synthetic.dataset import make_record, render, write_dataset
from fasthg.inference.locator import load_locator, locator_folder
from fasthg.runs.checkpoint import load_weights
from fasthg.runs.run_folder import RunFolder
from fasthg.training import trainer
from fasthg.training.locator import LocatorTraining
from fasthg.training.step import TrainStep

KEYS = {
    "LOCATOR": "auto",
    "LOCATOR_ITERATIONS": 6,
    "LOCATOR_FEATURES": 8,
    "NUM_TRAIN_ITERATIONS": 2,
    "VALIDATE_EVERY_N_STEPS": 2,
    "SAVE_INTERVAL_SECS": 0,
}


def train(config: Config, resume: Path | None = None) -> RunFolder:
    return trainer.train(config, Console(quiet=True), resume=resume).run


def config_of(mice: Path, runs: Path, **keys: Any) -> Config:
    return tiny(mice, runs, **{**KEYS, **keys})


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 12, "val": 4, "test": 4}, size=(192, 144))
    return folder


@pytest.fixture(scope="module")
def run(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(config_of(mice, tmp_path_factory.mktemp("runs")))


def test_a_run_has_a_locator_that_describes_itself(run: RunFolder) -> None:
    locator = load_locator(run, run.config())
    assert locator is not None
    settings = locator.settings
    assert settings.classes == ("black", "white")
    assert settings.most == 2
    assert settings.margin == pytest.approx((0.04, 0.04), abs=1e-3)
    assert 0 < settings.sizes[0] <= settings.sizes[1] <= settings.sizes[2] < 1
    assert settings.pose_scores[0] <= settings.pose_scores[1]
    assert locator.config.PARTS.NUM_PARTS == 5
    logged = RunFolder(locator_folder(run.path)).logged()
    assert {row["step"] for row in logged if "val_quality" in row} == {2, 4, 6}
    image = render(1, "any", 0, (192, 144)).image
    (found, nothing) = locator.find([image, None], 3)
    assert len(nothing) == 0
    assert (found.boxes >= 0).all()


class _Killed(Exception):
    pass


def test_it_goes_on_bit_for_bit(mice: Path, tmp_path: Path, run: RunFolder, monkeypatch) -> None:
    config, taken = config_of(mice, tmp_path), [0]
    plain = TrainStep.__call__

    def dying(self: TrainStep, batch: Any, step: int) -> Any:
        taken[0] += 1
        if taken[0] == 6:  # two of the pose network, three of the locator
            raise _Killed
        return plain(self, batch, step)

    monkeypatch.setattr(TrainStep, "__call__", dying)
    with pytest.raises(_Killed):
        train(config)
    monkeypatch.setattr(TrainStep, "__call__", plain)
    folder = RunFolder(tmp_path / "tiny")
    assert not RunFolder(locator_folder(folder.path)).logged()[-1]["step"] > 3
    train(folder.config(), folder.path)
    mine, expected = (
        load_weights(RunFolder(locator_folder(each.path)).best)[0] for each in (folder, run)
    )
    assert mine.keys() == expected.keys()
    assert all((mine[name] == expected[name]).all() for name in expected)


def test_a_signal_within_it_ends_the_training(mice: Path, tmp_path: Path, monkeypatch) -> None:
    plain = LocatorTraining._control_requests

    def stopping(self: LocatorTraining, signals: Any) -> Any:
        requests = plain(self, signals)
        return requests._replace(stop=signal.SIGINT) if self.done == 3 else requests

    monkeypatch.setattr(LocatorTraining, "_control_requests", stopping)
    result = trainer.train(config_of(mice, tmp_path), Console(quiet=True))
    assert result.signal == signal.SIGINT
    assert RunFolder(locator_folder(result.run.path)).last.exists()


def test_frames_that_are_crops_need_none(tmp_path: Path, fasthg) -> None:
    for split, count in (("train", 6), ("val", 3)):
        records = [make_record(2, split, number, (160, 128)) for number in range(count)]
        for record in records:
            record.bbox[:] = 0.02, 0.02, 0.98, 0.98
        write_frames(tmp_path / f"{split}_dataset-0", map(encode, records))
    config = config_of(tmp_path, tmp_path / "runs")
    data = {s: [str(tmp_path / f"{s.lower()}_dataset-*")] for s in ("TRAIN", "VAL")}
    config = Config.model_validate({**config.model_dump(), "DATA": data})
    run = train(config)
    assert load_locator(run, config) is None
    assert json.loads((run.path / "locator.json").read_text())["frames_are_crops"]
    video = write_video(tmp_path / "a.mp4", [render(1, "f", 0, (160, 128)).image] * 3)
    code, _, err = fasthg("predict", run.path, video)
    assert (code, err) == (0, "")
    with (tmp_path / "a.pose.csv").open() as file:
        assert all(row["x"] for row in csv.DictReader(file))


def test_a_locator_for_an_old_run_and_what_it_is_for(mice: Path, tmp_path: Path, fasthg) -> None:
    run = train(config_of(mice, tmp_path, LOCATOR="off"))
    frames = (render(1, "f", number, (192, 144)).image for number in range(3))
    video = write_video(tmp_path / "f.mp4", frames)
    for arguments in (("eval", run.path, "--boxes", "found"), ("predict", run.path, video)):
        code, _, err = fasthg(*arguments)
        assert code != 0
        assert "fasthg train --locator" in err
    code, out, err = fasthg("train", "--locator", run.path, "LOCATOR=auto")
    assert (code, err) == (0, "")
    assert "locator  " in out
    code, out, err = fasthg("eval", run.path, "--boxes", "found", "--report", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["found_boxes"]
    assert found["animals"] == 2 * found["frames"]
    assert 0 <= found["found"] <= found["animals"]
    assert "Boxes that the locator finds" in (run.path / "report.html").read_text()
    code, out, err = fasthg("predict", run.path, video)
    assert (code, err) == (0, "")
    with (tmp_path / "f.pose.csv").open() as file:
        names = {row["animal"] for row in csv.DictReader(file)}
    assert names in ({"black", "white"}, {"animal1", "animal2"})


def test_bad_use_is_one_line(run: RunFolder, mice: Path, fasthg) -> None:
    for arguments, message in (
        (
            ("train", "configs/demo.yaml", "--locator", run.path),
            "--locator: give a RUN and no CONFIG",
        ),
        (("train", "--locator", mice), "not a run folder"),
        (("eval", run.path, "--boxes", "mine"), "--boxes mine: use given or found"),
        (
            ("eval", run.path, "EVAL_CROP=mars", "--boxes", "found"),
            "--boxes found: found boxes are cropped as in training; leave out EVAL_CROP: mars",
        ),
        (("config", "check", "configs/mars.yaml", "LOCATOR_INPUT_SIZE=100"), "use 128 or null"),
    ):
        code, _, err = fasthg(*arguments)
        assert code != 0
        assert message in err
        assert err.count("\n") == 1


def test_quality_of_a_found_animal_needs_its_image(run: RunFolder) -> None:
    locator = load_locator(run, run.config())
    assert locator is not None
    drawn, to_image = locator.letterbox(np.zeros((90, 160, 3), np.uint8))
    assert drawn.shape == (locator.config.INPUT_SIZE,) * 2 + (3,)
    # Cells of the corner: the square is around the frame, 35 px above and below.
    np.testing.assert_allclose(to_image @ [0, 0, 1], [0, -35])
