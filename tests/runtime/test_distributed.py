"""Several processes train as one, and go on after one of them was killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from random_batch import batch
from rich.console import Console
from tiny_run import result, rows, run, tiny

from fasthg.config import Config, dump_config
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.inference.predictor import Predictions
from fasthg.model import build_model
from fasthg.runs.checkpoint import load_state
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import ProcessGroup, TorchrunGroup, open_process_group
from fasthg.runtime.signals import Signals
from fasthg.training.resume import RestartNote, check_resumable, differences, resume_fingerprint
from fasthg.training.step import TrainStep
from fasthg.training.trainer import train

RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
KEYS: dict[str, Any] = {
    **{"NUM_STACKS": 1, "INPUT_SIZE": 128, "HEATMAP_SIZE": 32, "BATCHNORM_SYNC": True},
    **{"BATCH_SIZE": 2, "LOG_EVERY_N_STEPS": 1, "NUM_TRAIN_ITERATIONS": 6},
    **{"SAVE_INTERVAL_SECS": 0.0, "BATCHNORM_DECAY_WARMUP": True},
}


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder


@pytest.fixture(scope="module")
def two(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of two processes that torchrun starts."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny(mice, folder, **KEYS)
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "fasthg", "train", str(path), "--no-eval"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    run = RunFolder(folder / "tiny")
    (run.path / "said").write_text(done.stdout)
    return run


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(
    mice: Path, tmp_path: Path, two: RunFolder
) -> None:
    one = run(tiny(mice, tmp_path, **{**KEYS, "BATCH_SIZE": 4})).run
    one_rows, two_rows = rows(one), rows(two)
    assert [row["step"] for row in one_rows] == [row["step"] for row in two_rows]
    wanted, got = ([r["loss"] for r in each if "loss" in r] for each in (one_rows, two_rows))
    # The loss falls by 2 % in these steps; batch norms then make ever more of a rounding.
    assert got[:3] == pytest.approx(wanted[:3], rel=1e-5)
    assert got == pytest.approx(wanted, rel=1e-2)
    wanted, got = (
        [r["val_loss"] for r in each if "val_loss" in r] for each in (one_rows, two_rows)
    )
    assert wanted and got == pytest.approx(wanted, rel=1e-2)
    assert load_state(two.last)["batch_size"] == 4


@pytest.mark.slow
def test_one_process_prints_and_says_who_takes_part(two: RunFolder) -> None:
    said = (two.path / "said").read_text()
    assert said.count("ranks    2 processes of BATCH_SIZE 2: 4 instances a step;") == 1
    assert len(re.findall(r"^step 1/6 ", said, re.MULTILINE)) == 1


@pytest.mark.slow
def test_a_killed_process_comes_back_and_the_run_ends_as_if_nothing_was(
    mice: Path, tmp_path: Path, two: RunFolder
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(tiny(mice, tmp_path, **KEYS)))
    (ids := tmp_path / "ids").mkdir()
    again = RunFolder(tmp_path / "tiny")
    started = forked.torchrun(["train", str(path), "--no-eval"], str(ids), restarts=1)
    started.wait_for((again.checkpoints / "step_00000002.pt").exists)
    os.kill(int((ids / "1").read_text()), signal.SIGKILL)
    status, said, err = started.ended()
    assert status == 0, err
    assert re.search(r"^resumed .*/checkpoints/step_0000000[2-5]\.pt: ", said, re.MULTILINE)
    assert result(again) == result(two)
    assert not list(tmp_path.glob(".restart-*"))


def test_states_without_a_count_of_processes_are_of_one(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, NUM_TRAIN_ITERATIONS=1)
    found = resume_fingerprint(config, "d", None, torch.device("cpu"), {})
    older = {k: v for k, v in found.items() if k != "processes"}
    older["machine"] = {k: v for k, v in found["machine"].items() if k != "processes"}
    check_resumable(tmp_path, older, found)
    assert differences(older, found) == []
    with pytest.raises(DataError, match=r"here of 2 x BATCH_SIZE 4,"):
        check_resumable(
            tmp_path, older, resume_fingerprint(config, "d", None, torch.device("cpu"), {}, 2)
        )


@pytest.mark.slow
def test_state_of_two_processes_wants_as_many_instances_a_step(
    mice: Path, tmp_path: Path, two: RunFolder
) -> None:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "last.pt").write_bytes(two.last.read_bytes())
    config = tiny(mice, tmp_path, **{**KEYS, "NUM_TRAIN_ITERATIONS": 7})
    RunFolder(path).write_config(config)
    with pytest.raises(DataError, match=r"its steps are of 2 x BATCH_SIZE 2 .*4 instances a step"):
        run(config, resume=path)
    again = run(config.model_copy(update={"BATCH_SIZE": 4}), resume=path)
    assert again.step == 7


@pytest.mark.parametrize("scaling", ["sum", "mean"])
def test_a_gradient_is_that_of_all_batches(scaling: str) -> None:
    class Twins(ProcessGroup):
        """Two processes with the same batch."""

        size, active = 2, True

        def sum(self, tensor: torch.Tensor) -> None:
            tensor.mul_(2)

        def mean(self, tensor: torch.Tensor) -> None:
            """Of two equal ones."""

    keys = {"NUM_STACKS": 1, "FEATURES": 8, "STEM_FEATURES": 4, "INPUT_SIZE": 64}
    config = Config(**keys, HEATMAP_SIZE=16, PRECISION="fp32", LOSS_SCALING=scaling)
    device = torch.device("cpu")
    gradients = []
    for group in (ProcessGroup(), Twins()):
        step = TrainStep(config, build_model(config), device, group)
        step(batch(0), 0)
        gradients.append(step.flat.gradient.clone())
    assert torch.equal(gradients[1], gradients[0] * (2 if scaling == "sum" else 1))


def test_predictions_of_all_processes_are_in_the_order_of_the_index() -> None:
    def some(*instances: int, loss: float) -> Predictions:
        count = len(instances)
        numbers = np.array(instances, np.int64)
        points = np.repeat(numbers.astype(float), 4).reshape(count, 2, 2)
        scores = np.zeros((count, 2), np.float32)
        visible = np.full((count, 2), 2, np.uint8)
        return Predictions(
            *(numbers, points, scores, points, visible, np.ones(count), np.ones(count)), loss
        )

    merged = Predictions.merged([some(0, 2, 4, loss=1.0), some(1, 3, loss=2.0), some(loss=0.0)])
    assert merged.instance.tolist() == [0, 1, 2, 3, 4]
    assert (merged.keypoints[:, 0, 0] == merged.instance).all()
    assert merged.loss == pytest.approx(7 / 5)


def test_a_process_with_other_data_is_refused(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(ProcessGroup):
        size, active = 2, True

        def gathered(self, value: Any) -> list[Any]:
            return [value, {**value, "training data": "another"}]

    monkeypatch.setattr(
        "fasthg.training.trainer.open_process_group", lambda _: contextlib.nullcontext(Other())
    )
    with pytest.raises(DataError, match="rank 1 has another training data than rank 0"):
        train(tiny(mice, tmp_path), Console(quiet=True))
    assert not (tmp_path / "tiny").exists()


def test_half_set_variables_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"RANK is set but .*WORLD_SIZE.* not; .*torchrun"):
        TorchrunGroup({"RANK": "0"}, gpus=False)
    with pytest.raises(ConfigError, match=r"'many'.*use torchrun"):
        TorchrunGroup(
            {**RANKS, "WORLD_SIZE": "many", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, gpus=False
        )


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {**RANKS, "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    environment |= {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    with pytest.raises(EnvironmentFault, match=r"3 processes .* 2 GPUs; .*--nproc-per-node 2"):
        TorchrunGroup(environment, gpus=True)


def test_verbs_of_one_process_refuse_several(tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "fasthg", "eval", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr == "error: eval: runs in one process; start it without torchrun\n"


def test_a_signal_that_comes_twice_ends_patiently() -> None:
    """A scheduler signals every process, and torchrun hands its own on."""
    with Signals(patient=True) as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop == signal.SIGTERM
    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_job_started_anew_finds_its_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "mine").mkdir(parents=True)

    def attempt(number: int, job: str = "a/b") -> RestartNote:
        variables = {"TORCHELASTIC_RUN_ID": job, "TORCHELASTIC_RESTART_COUNT": str(number)}
        return RestartNote(runs, variables)

    assert attempt(1).read() is None
    attempt(0).write(runs / "mine")
    assert attempt(0).read() is None
    assert attempt(1).read() == runs / "mine"
    assert attempt(1, "other").read() is None
    attempt(2).remove()
    assert attempt(1).read() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("keys", [{}, {"BATCHNORM_SYNC": True}], ids=["apart", "sync"])
def test_a_captured_step_reduces(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with NCCL gives the steps of a process without, collectives in the graph."""
    for name, value in {**RANKS, "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    small = {"NUM_STACKS": 2, "FEATURES": 32, "STEM_FEATURES": 16, "INPUT_SIZE": 64}
    config = Config(**small, HEATMAP_SIZE=16, PRECISION="fp32", HEAD_INIT_SCALE=0.01, **keys)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with open_process_group("cuda") as group:
        assert group.active
        device = torch.device("cuda", group.local_rank)
        losses, gradients = [], []
        for each in (ProcessGroup(), group):
            step = TrainStep(config, build_model(config).to(device), device, each)
            assert step.mode.name == "graph"
            # Of 16 images: norms of the smallest maps make much of a rounding where values are few.
            losses.append(step(batch(0, 16).to(device), 0).loss.clone())
            gradients.append(step.flat.gradient.clone())
            step(batch(1, 16).to(device), 1)
            assert step.is_finite()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-3)
    apart = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert apart < 1e-3
