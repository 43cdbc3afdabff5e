"""What a resumed run refuses and prints, and that one training at a time uses a run folder."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from rich.console import Console
from tiny_run import result, rows, run, tiny

from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import decode, encode
from fasthg.data.records.tfrecord import read_frames, write_frames
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import DataError, FasthgError
from fasthg.runs.checkpoint import load_state, load_weights
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.process import configure_process
from fasthg.training.trainer import train


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder


@pytest.mark.parametrize("key", ["BATCH_SIZE", "RANDOM_SEED"])
def test_another_order_of_the_data_is_refused(mice: Path, tmp_path: Path, key: str) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=2))
    with pytest.raises(DataError, match=rf"step_00000002\.pt: its {key} is .*resume with {key}="):
        run(tiny(mice, tmp_path, **{key: 5}), resume=first.run.path)


def test_other_data_are_refused_and_moved_ones_are_not(mice: Path, tmp_path: Path) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=2))
    records = [decode(f.payload, "") for f in read_frames(next(mice.glob("train_dataset-*")))]
    same, changed = tmp_path / "moved", tmp_path / "changed"
    write_frames(same, map(encode, records))
    records[1].keypoints[0, 0] += 0.01
    write_frames(changed, map(encode, records))
    with pytest.raises(DataError, match="the training data changed since"):
        run(tiny(mice, tmp_path, DATA={"TRAIN": str(changed)}), resume=first.run.path)
    again = run(tiny(mice, tmp_path, DATA={"TRAIN": str(same)}), resume=first.run.path)
    assert again.step == 6


def test_the_fingerprint_does_not_depend_on_the_files(mice: Path, tmp_path: Path) -> None:
    whole = RecordIndex.build(str(mice / "train_dataset-*"), 7)
    payloads = [f.payload for f in read_frames(next(mice.glob("train_dataset-*")))]
    write_frames(tmp_path / "a", payloads[:2])
    write_frames(tmp_path / "b", payloads[2:])
    assert RecordIndex.build(str(tmp_path / "*"), 7).fingerprint() == whole.fingerprint()
    write_frames(tmp_path / "b", payloads[:1:-1])
    assert RecordIndex.build(str(tmp_path / "*"), 7).fingerprint() != whole.fingerprint()


@pytest.mark.slow
def test_what_changed_is_told(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=2))
    config = tiny(mice, tmp_path, WEIGHT_DECAY=0.5, LOADER="portable")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(config, Console(width=300), resume=first.run.path)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert f"changed  WEIGHT_DECAY: {first.run.config().WEIGHT_DECAY} -> 0.5" not in said
    assert re.search(r"changed  WEIGHT_DECAY: \S+ -> 0\.5\n", said)
    assert "changed  NUM_TRAIN_ITERATIONS: 2 -> 6" in said
    assert f"changed  threads: {threads} -> {threads + 1}; not bit for bit the same" in said
    assert "changed  DATA" not in said and "BATCH_SIZE" not in said


def test_unreadable_images_are_still_counted_after_a_resume(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [decode(f.payload, "") for f in read_frames(next(mice.glob("train_dataset-*")))]
    records[1].encoded = records[1].encoded[:500]
    write_frames(tmp_path / "bad", map(encode, records))
    data = {"TRAIN": str(tmp_path / "bad")}
    first = run(tiny(mice, tmp_path, DATA=data, NUM_TRAIN_ITERATIONS=5))
    assert list(load_state(first.run.last)["corrupt"]) == [1]
    # One step more does not meet that record again.
    train(
        tiny(mice, tmp_path, DATA=data, NUM_TRAIN_ITERATIONS=6),
        Console(width=300),
        resume=first.run.path,
    )
    assert "1 unreadable image was skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_other_validation_data_start_a_new_best(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=3))
    assert load_state(first.run.last)["best"] < float("inf")
    data = {s: str(mice / f"{s.lower()}_dataset-*") for s in ("TRAIN", "TEST")}
    data["VAL"] = data["TEST"]
    config = tiny(mice, tmp_path, DATA=data, NUM_TRAIN_ITERATIONS=4)
    again = train(config, Console(width=300), resume=first.run.path)
    assert "DATA.VAL: the best so far does not count" in capsys.readouterr().out
    assert load_state(again.run.last)["best"] == rows(again.run)[-1]["val_error_mean_px"]


@pytest.mark.slow
def test_damaged_best_weights_are_made_again(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=3))
    data = bytearray(first.run.best.read_bytes())
    data[-3] ^= 1
    first.run.best.write_bytes(data)
    train(tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=4), Console(width=300), resume=first.run.path)
    assert "the next ones count as the best" in capsys.readouterr().out
    assert json.loads(load_weights(first.run.best)[1]["step"]) == 4


ENDLESS = {"NUM_TRAIN_ITERATIONS": 100_000, "VALIDATE_EVERY_N_STEPS": 100_000}


def _start(config: Any, tmp_path: Path) -> forked.Forked:
    path = tmp_path / "config.yaml"
    path.write_text(RunFolder.create(config, None, "x").resolved.read_text())
    return forked.command("train", path, "RUN_NAME=run")


@pytest.mark.slow
def test_the_second_training_in_a_folder_is_refused(mice: Path, tmp_path: Path) -> None:
    keys = {"SAVE_INTERVAL_SECS": 0.2, "NUM_INPUT_THREADS": 1}
    config = tiny(mice, tmp_path, **ENDLESS, **keys)
    process = _start(config, tmp_path)
    folder = RunFolder(tmp_path / "run")
    try:
        process.wait_for(folder.last.exists)
        with pytest.raises(FasthgError, match=rf"process {process.pid} on .* trains in it"):
            run(config, resume=folder.path)
        os.kill(process.pid, signal.SIGKILL)  # which ends the lock, also while workers live on
        assert process.ended()[0] == -signal.SIGKILL
        step = load_state(folder.last)["step"]
        again = run(
            config.model_copy(update={"NUM_TRAIN_ITERATIONS": step + 1}), resume=folder.path
        )
        assert again.step == step + 1
    finally:
        process.process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="not on this system")
def test_sigusr1_saves_and_goes_on(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, **ENDLESS, NUM_INPUT_THREADS=1)
    process = _start(config, tmp_path)
    folder = RunFolder(tmp_path / "run")
    log = folder.path / "metrics.jsonl"
    try:
        process.wait_for(lambda: log.exists() and log.stat().st_size)
        assert not folder.last.exists()
        os.killpg(process.pid, signal.SIGUSR1)  # a scheduler tells the workers, too
        process.wait_for(folder.last.exists)
        step = load_state(folder.last)["step"]
        process.wait_for(lambda: rows(folder)[-1]["step"] > step + 2)
    finally:
        process.process.terminate()
        status, out, err = process.ended()
    assert status == 128 + signal.SIGTERM, err
    assert f"step {step}: saved, as SIGUSR1 asks" in out


@pytest.mark.slow
def test_a_killed_worker_is_replaced(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, **ENDLESS, NUM_INPUT_THREADS=1)
    process = _start(config, tmp_path)
    folder = RunFolder(tmp_path / "run")
    log = folder.path / "metrics.jsonl"
    try:
        process.wait_for(lambda: log.exists() and log.stat().st_size)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [
            int(pid) for pid in children if b"fasthg" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(workers[0], signal.SIGKILL)
        time.sleep(0.1)
        step = rows(folder)[-1]["step"]
        process.wait_for(lambda: rows(folder)[-1]["step"] > step + 20)
    finally:
        process.process.terminate()
        status, out, err = process.ended()
    assert status == 128 + signal.SIGTERM, err
    assert "an input worker was killed; new ones go on at the same batch" in err + out


def test_a_loss_that_is_no_number_leaves_the_state_behind(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, OPTIMIZER="sgd", INITIAL_LEARNING_RATE=1e12, LOG_EVERY_N_STEPS=99)
    with pytest.raises(DataError, match=r"step (\d+): .*train_dataset.*diverged\.pt") as caught:
        run(config)
    state = load_state(tmp_path / "tiny" / "checkpoints" / "diverged.pt")
    assert f"step {state['step']}:" in str(caught.value)
    bad = ~torch.isfinite(state["losses"]).all(0)
    assert bad.any() and len(bad) == len(state["instances"]) == 4
    assert json.dumps(state["keys"])  # plain values


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_on_a_gpu_goes_on_bit_for_bit(
    mice: Path, tmp_path: Path, step: str, precision: str
) -> None:
    keys = {"DEVICE": "cuda", "DETERMINISTIC": True, "STEP": step, "PRECISION": precision}
    keys |= {"VALIDATE_EVERY_N_STEPS": 2, "FEATURES": 16}
    configure_process(torch.device("cuda"), deterministic=True)
    try:
        whole = run(tiny(mice, tmp_path / "whole", **keys))
        first = run(tiny(mice, tmp_path / "cut", **keys, NUM_TRAIN_ITERATIONS=4))
        cut = run(tiny(mice, tmp_path / "cut", **keys), resume=first.run.path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert result(cut.run) == result(whole.run)
