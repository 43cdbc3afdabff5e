"""Training from the first step to the evaluation, on tiny networks and synthetic mice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import rows, run, tiny

from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError, EnvironmentFault, FasthgError
from fasthg.report.evaluate import evaluate_run
from fasthg.runs.checkpoint import load_state, load_weights, save_state
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.device import choose_device, choose_precision
from fasthg.training.step import TrainStep
from fasthg.training.trainer import TrainResult


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder


@pytest.fixture(scope="module")
def trained(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tiny(mice, tmp_path_factory.mktemp("runs"), NUM_STACKS=2), draw=True)


def test_a_run_leaves_everything_in_its_folder(trained: TrainResult) -> None:
    folder = trained.run.path
    for name in ("config.resolved.yaml", "env.json", "metrics.jsonl", "checkpoints/last.pt"):
        assert (folder / name).stat().st_size > 0
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("val_error_mean_px")] == [3, 6]
    images = events.Images("validation")
    assert [(image.step, min(image.width, image.height) > 300) for image in images] == [
        (3, True),
        (6, True),
    ]
    assert [r["step"] for r in rows(trained.run) if "loss" in r] == [1, 2, 4, 6]
    assert [r["step"] for r in rows(trained.run) if "val_loss" in r] == [3, 6]
    assert all(len(r["loss_per_stack"]) == 2 for r in rows(trained.run) if "loss" in r)


def test_best_weights_describe_themselves(trained: TrainResult) -> None:
    tensors, metadata = load_weights(trained.run.best)
    best = min(r["val_error_mean_px"] for r in rows(trained.run) if "val_loss" in r)
    assert json.loads(metadata["val_error_mean_px"]) == best
    assert json.loads(metadata["parts"])[0] == "nose"
    assert "stem.conv.bn.running_mean" in tensors


@pytest.mark.slow
def test_evaluation_measures_the_saved_weights(trained: TrainResult) -> None:
    config = trained.run.config()
    report = evaluate_run(trained.run, config, "test", None, decode="all")
    saved = json.loads((report.folder / "metrics.json").read_text())
    assert saved == json.loads(json.dumps(report.metrics))
    assert saved["instances"] == 4
    assert set(saved["decodes"]) == {"argmax", "quarter", "dark", "plateau"}
    assert set(saved["oks"]["area"]) == {"annotation's area", "padded crop's area"}
    assert saved["error_cm"] is None
    for name in ("predictions.png", "worst.png"):
        assert (report.folder / name).read_bytes().startswith(b"\x89PNG")
    predicted = json.loads((report.folder / "predictions.json").read_text())["instances"]
    errors = [
        np.hypot(*(np.array(i["keypoints"]) - np.array(i["truth"], float)).T) for i in predicted
    ]
    assert np.nanmean(errors) == pytest.approx(saved["error_px"]["all"]["mean"], abs=1e-3)


@pytest.mark.slow
def test_evaluation_in_centimetres(trained: TrainResult) -> None:
    config = trained.run.config(["PIXELS_PER_CM=20"])
    metrics = evaluate_run(trained.run, config, "val", None).metrics
    px, cm = metrics["error_px"]["all"]["mean"], metrics["error_cm"]["all"]["mean"]
    assert cm == pytest.approx(px / 20)


@pytest.mark.slow
def test_validation_and_evaluation_agree(trained: TrainResult, mice: Path) -> None:
    metrics = evaluate_run(trained.run, trained.run.config(), "val", None).metrics
    best = min(r["val_error_mean_px"] for r in rows(trained.run) if "val_loss" in r)
    assert metrics["error_px"]["all"]["mean"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_exact(mice: Path, tmp_path: Path, workers: int) -> None:
    keys = {"NUM_INPUT_THREADS": workers, "LEARNING_RATE_DECAY_TYPE": "fixed"}
    whole = run(tiny(mice, tmp_path / "whole", **keys))
    half = run(tiny(mice, tmp_path / "half", **keys, NUM_TRAIN_ITERATIONS=3))
    again = run(tiny(mice, tmp_path / "half", **keys), resume=half.run.path)
    assert again.run.path == half.run.path
    expected, actual = load_state(whole.run.last), load_state(again.run.last)
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(value, actual[part][name]), name
    assert torch.equal(expected["optimizer"]["squares"], actual["optimizer"]["squares"])
    losses = [
        [r["loss"] for r in rows(o.run) if r["step"] in (4, 6) and "loss" in r]
        for o in (whole, again)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_runs_are_equal(trained: TrainResult, mice: Path, tmp_path: Path) -> None:
    other = run(tiny(mice, tmp_path, NUM_STACKS=2))
    first, second = load_state(trained.run.last), load_state(other.run.last)
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())


def test_a_new_run_never_writes_into_an_old_one(trained: TrainResult, mice: Path) -> None:
    before = (trained.run.path / "metrics.jsonl").read_bytes()
    other = run(tiny(mice, trained.run.path.parent, NUM_TRAIN_ITERATIONS=1))
    assert other.run.path.name == "tiny-2"
    assert (trained.run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("bf16", "adamw"), ("fp16", "adamw"), ("fp16", "rmsprop")]
)
def test_half_precision_trains(mice: Path, tmp_path: Path, precision: str, optimizer: str) -> None:
    keys = {"OPTIMIZER": optimizer, "INITIAL_LEARNING_RATE": 5e-3, "NUM_TRAIN_ITERATIONS": 20}
    result = run(tiny(mice, tmp_path, PRECISION=precision, VALIDATE_EVERY_N_STEPS=50, **keys))
    losses = [r["loss"] for r in rows(result.run) if "loss" in r]
    assert np.mean(losses[-3:]) < 0.95 * losses[0]


@pytest.mark.slow
def test_both_loaders_train_alike(trained: TrainResult, mice: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    other = run(tiny(mice, tmp_path, LOADER="dali", NUM_STACKS=2))
    portable = [r["loss"] for r in rows(trained.run) if "loss" in r]
    dali = [r["loss"] for r in rows(other.run) if "loss" in r]
    np.testing.assert_allclose(dali, portable, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_loss_falls(mice: Path, tmp_path: Path, name: str) -> None:
    rate = {"adamw": 5e-3, "momentum": 2e-3}[name]
    keys = {"OPTIMIZER": name, "INITIAL_LEARNING_RATE": rate, "LOSS_SCALING": "mean"}
    result = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=30, GRADIENT_CLIP_NORM=10.0, **keys))
    losses = [r["loss"] for r in rows(result.run) if "loss" in r]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_without_validation_the_last_weights_are_the_best(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, DATA={"TRAIN": str(mice / "train_dataset-*")})
    result = run(config)
    state = load_state(result.run.last)
    tensors, metadata = load_weights(result.run.best)
    assert json.loads(metadata["val_error_mean_px"]) is None
    assert all(torch.equal(tensors[k], v) for k, v in state["ema"].items())


@pytest.mark.slow
def test_nan_stops_with_the_names_of_the_images(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, OPTIMIZER="sgd", INITIAL_LEARNING_RATE=1e12)
    with pytest.raises(DataError, match=r"step \d+: the loss is not finite .*train_dataset"):
        run(config)


@pytest.mark.slow
def test_diverged_weights_never_replace_a_checkpoint(mice: Path, tmp_path: Path) -> None:
    good = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=2))
    before = good.run.last.read_bytes()
    keys = {"INITIAL_LEARNING_RATE": 3e38, "SAVE_INTERVAL_SECS": 0, "LOG_EVERY_N_STEPS": 100}
    with pytest.raises(DataError, match=rf"not finite; .*--resume {good.run.path}"):
        run(tiny(mice, tmp_path, **keys), resume=good.run.path)
    assert good.run.last.read_bytes() == before


def test_overrides_count_and_last_on_resume(mice: Path, tmp_path: Path) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=2, OPTIMIZER="adamw"))
    keys = {"NUM_TRAIN_ITERATIONS": 3, "WEIGHT_DECAY": 0.5, "ADAM_EPSILON": 0.1}
    run(tiny(mice, tmp_path, OPTIMIZER="adamw", **keys), resume=first.run.path)
    group = load_state(first.run.last)["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["eps"]) == (0.5, 0.1)
    assert first.run.config().WEIGHT_DECAY == 0.5


@pytest.mark.slow
def test_resume_refuses_another_optimiser(trained: TrainResult, mice: Path) -> None:
    with pytest.raises(DataError, match="its optimiser is rmsprop"):
        run(tiny(mice, trained.run.path.parent, OPTIMIZER="adam"), resume=trained.run.path)


def test_full_memory_ends_with_the_figures_and_the_keys_that_help(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainStep, "_device_work", full)
    with pytest.raises(
        FasthgError, match=r"is full \(CUDA out of memory\), .*; set RECOMPUTE=stack"
    ):
        run(tiny(mice, tmp_path))


def test_what_only_the_end_needs_is_checked_first(mice: Path, tmp_path: Path) -> None:
    parts = {
        "NUM_PARTS": 7,
        "NAMES": list("abcdefg"),
        "LEFT_RIGHT_PAIRS": [],
        "SIGMAS": [1.0] * 7,
    }
    with pytest.raises(ConfigError, match=r"PARTS\.COLORS: 'blurple'"):
        run(tiny(mice, tmp_path, PARTS={**parts, "COLORS": ["blurple"]}))
    with pytest.raises(ConfigError, match="mouse_top has no sigma"):
        run(tiny(mice, tmp_path, PARTS=parts, OKS_SIGMAS="mouse_top"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_evaluation_works_from_any_folder(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mice)
    data = {"TRAIN": "train_dataset-*", "TEST": "test_dataset-*"}
    result = run(tiny(mice, tmp_path, DATA=data, NUM_TRAIN_ITERATIONS=1))
    monkeypatch.chdir("/")
    report = evaluate_run(result.run, result.run.config(), "test", None)
    assert report.metrics["instances"] == 4


def test_resume_refuses_another_network(trained: TrainResult, mice: Path) -> None:
    config = tiny(mice, trained.run.path.parent, FEATURES=12)
    with pytest.raises(DataError, match="does not fit"):
        run(config, resume=trained.run.path)


def test_resume_refuses_another_networks_mean_squares(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=1)
    first = run(config)
    state = load_state(first.run.last)
    state["optimizer"]["squares"] = state["optimizer"]["squares"][:-1].clone()
    save_state(first.run.last, state)
    first.run.checkpoints.joinpath("step_00000001.pt").unlink()
    with pytest.raises(DataError, match=r"last\.pt: does not fit .*optimiser's squares are"):
        run(config, resume=first.run.path)


def test_no_folder_is_made_for_data_that_cannot_be_read(mice: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        run(tiny(mice, tmp_path / "runs", DATA={"TRAIN": str(mice / "none-*")}))
    with pytest.raises(ConfigError, match=r"DATA\.TRAIN"):
        run(tiny(mice, tmp_path / "runs", DATA={}))
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_cannot_be_made(mice: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FasthgError, match="choose another RUNS_DIR"):
        run(tiny(mice, tmp_path / "file"))


def test_device_and_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("fp32", cpu).dtype == torch.float32
    assert choose_precision("auto", cpu).dtype in (torch.float32, torch.bfloat16)
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentFault, match="DEVICE"):
            choose_device("cuda")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_exits(mice: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The signal reaches the loader's workers too, as from a terminal or a scheduler."""
    keys = {"NUM_TRAIN_ITERATIONS": 100_000, "VALIDATE_EVERY_N_STEPS": 100_000}
    config = tiny(mice, tmp_path, **keys, NUM_INPUT_THREADS=1)
    path = tmp_path / "config.yaml"
    path.write_text(RunFolder.create(config, None, "x").resolved.read_text())
    process = forked.command("train", path, "RUN_NAME=stopped")
    log = tmp_path / "stopped" / "metrics.jsonl"
    process.wait_for(lambda: log.exists() and log.stat().st_size)
    os.killpg(process.pid, number)
    status, out, err = process.ended()
    assert status == 128 + number, err
    assert "go on with: --resume" in out
    assert "Traceback" not in err
    state = load_state(tmp_path / "stopped" / "checkpoints" / "last.pt")
    assert state["step"] >= 1


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line(mice: Path, tmp_path: Path) -> None:
    """The file-size limit of the process replaces a full disk."""
    config = tiny(mice, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(RunFolder.create(config, None, "x").resolved.read_text())
    full = forked.command("train", path, "RUN_NAME=full", file_bytes=100_000)
    status, _, err = full.ended()
    assert status == 1
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert "cannot write" in err
