"""What all ranks must have in common before the first step, and what is printed then."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny

from fasthg.data.split import open_split
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.model import build_model
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.training import setup
from fasthg.training.setup import (
    check_batch_norm,
    check_same_weights,
    describe_training,
    open_data,
    open_run,
)
from fasthg.training.step import TrainStep


class SecondOfTwo(ProcessGroup):
    """Rank 1, where rank 0 has answered with `answer`."""

    rank, size, active = 1, 2, True

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def gathered(self, value: Any) -> list[Any]:
        return [self.answer, value]


def test_a_rank_with_other_weights_is_refused() -> None:
    values = torch.arange(5.0)
    check_same_weights(SINGLE_PROCESS, values)
    same = zlib.crc32(values.numpy().tobytes())
    check_same_weights(SecondOfTwo(same), values)
    values[3] += 1e-6
    with pytest.raises(EnvironmentFault, match="rank 1 begins with other weights than rank 0"):
        check_same_weights(SecondOfTwo(same), values)


@pytest.mark.parametrize(
    ("batch", "size", "freeze", "refused"),
    [
        *((1, 64, (), True), (2, 64, (), False), (1, 128, (), False)),
        *((1, 64, ("stem",), True), (1, 64, ("stack 0 body",), False)),
    ],
)
def test_a_batch_of_one_value_a_channel_is_refused_where_torch_would(
    tmp_path: Path, batch: int, size: int, freeze: tuple[str, ...], refused: bool
) -> None:
    config = tiny(
        *(tmp_path, tmp_path),
        BATCH_SIZE=batch,
        INPUT_SIZE=size,
        HEATMAP_SIZE=size // 4,
        INIT={"WEIGHTS": "w.safetensors", "FREEZE": freeze},
        DO_RANDOM_FLIP_LEFT_RIGHT=False,
    )
    network, images = build_model(config).train(), torch.zeros(batch, 3, size, size)
    if refused:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            network(images)
        message = "BATCH_SIZE: 1 with INPUT_SIZE 64 .*; set BATCH_SIZE: 2 or more"
        with pytest.raises(ConfigError, match=message):
            check_batch_norm(config)
        together = config.model_copy(update={"BATCHNORM_SYNC": True})
        check_batch_norm(together, processes=2)
        with pytest.raises(ConfigError):
            check_batch_norm(together)
    else:
        network(images)
        check_batch_norm(config)


def test_other_ranks_take_the_run_folder_of_the_first(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path)
    run, resumed = open_run(config, None, "a", None, SINGLE_PROCESS, None)
    assert (run.path, resumed) == (tmp_path / "tiny", False)
    group = SecondOfTwo((run.path, True))
    same, resumed = open_run(config, None, "a", None, group, None)
    assert (same.path, resumed) == (run.path, True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    elsewhere = SecondOfTwo((tmp_path / "elsewhere", False))
    with pytest.raises(DataError, match="rank 0 made it, rank 1 has none; put RUNS_DIR where"):
        open_run(config, None, "a", None, elsewhere, None)


def test_the_description_names_what_will_be_done(mice: Path, tmp_path: Path) -> None:
    config = tiny(mice, tmp_path, QUEUE_MIN=4, NUM_STACKS=2)
    device = torch.device("cpu")
    with open_data(config, device) as (train, validation):
        step = TrainStep(config, build_model(config), device)
        lines = describe_training(RunFolder(tmp_path), train, validation, step, SINGLE_PROCESS)
    weights = sum(p.numel() for p in step.model.parameters())
    assert lines[:3] == [
        f"run      {tmp_path}",
        "data     12 instances, 4 for validation",
        f"network  2 stacks, 8 features, {weights:,} weights, on cpu",
    ]
    assert lines[3] == f"numbers  {step.precision.name} ({step.precision.reason})"
    assert [line.split()[:2] for line in lines[4:6]] == [["step", "eager"], ["loader", "portable"]]
    assert any(line.startswith("no effect: QUEUE_MIN: ") for line in lines[6:])
    assert not any(line.startswith(("ranks", "flips")) for line in lines)


def test_the_description_names_lateral_parts_without_a_pair(mice: Path, tmp_path: Path) -> None:
    names = ["nose", "LF", "RF", "neck", "LH", "RH", "tail"]
    given = {"NUM_PARTS": 7, "NAMES": names, "SIGMAS": [2.0] * 7, "LEFT_RIGHT_PAIRS": [[1, 2]]}
    device = torch.device("cpu")
    config = tiny(mice, tmp_path, PARTS=given, DO_RANDOM_FLIP_LEFT_RIGHT=True)
    with open_data(config, device) as (train, validation):
        step = TrainStep(config, build_model(config), device)
        lines = describe_training(RunFolder(tmp_path), train, validation, step, SINGLE_PROCESS)
    (flips,) = [line for line in lines if line.startswith("flips")]
    assert "'LH' and 'RH' look like left and right of each other but are no pair [4, 5]" in flips


def test_data_without_labels_are_refused_and_parts_without_labels_named(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, device, lost = tiny(mice, tmp_path), torch.device("cpu"), {"train": [3, 5], "val": [0]}

    def opened(*arguments: Any, training: bool, **options: Any) -> Any:
        split = open_split(*arguments, training=training, **options)
        split.index.visibility[:, lost["train" if training else "val"]] = 0
        return split

    monkeypatch.setattr(setup, "open_split", opened)
    names = config.PARTS.NAMES
    with open_data(config, device) as (train, validation):
        step = TrainStep(config, build_model(config), device)
        lines = describe_training(RunFolder(tmp_path), train, validation, step, SINGLE_PROCESS)
    assert [line for line in lines if line.startswith("labels")] == [
        f"labels   none in the training data of {names[3]}, {names[5]}: not learnt; label them or "
        "leave out of PARTS",
        f"labels   none in the validation data of {names[0]}: not measured; label it or leave out "
        "of PARTS",
    ]
    lost["train"] = list(range(7))
    with (
        pytest.raises(DataError, match=r"train_dataset-\*: no labelled part; label it"),
        open_data(config, device),
    ):
        pass


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder
