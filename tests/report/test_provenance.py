"""Where a run comes from: what its files tell, what they do not, and what may be claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.model import build_model
from fasthg.report.provenance import Provenance, lines
from fasthg.runs.run_folder import RunFolder

ENV = {
    "fasthg": "9.8.7",
    "date": "2031-02-03T04:05:06+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "command": ["/home/me/venv/bin/fasthg", "train", "my mice.yaml", "BATCH_SIZE=4"],
    "device": "cuda",
    "gpus": [{"name": "NVIDIA X"}],
    "packages": {"torch": "2.9"},
}


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=1, frames={"train": 3, "val": 2, "test": 1}, size=(160, 128))
    return folder


def made(folder: Path, env: Any, rows: list[dict[str, Any]]) -> RunFolder:
    run = RunFolder(folder)
    if env is not None:
        run.write_json("env.json", env)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    return run


def told(run: RunFolder, config: Config) -> dict[str, str]:
    return dict(Provenance.of(run, config).facts(config))


def test_all_that_is_known_is_told(tmp_path: Path, mice: Path) -> None:
    config = tiny(mice, tmp_path)
    run = made(tmp_path, ENV, [{"step": 6, "elapsed_s": 600.0}])
    weights = sum(p.numel() for p in build_model(config).parameters())
    assert told(run, config) == {
        "Trained": "2031-02-03, fasthg 9.8.7 (commit 0123456789ab, changed) on NVIDIA X",
        "Network": f"1 stack, 8 features, {weights:,} weights; 6 steps of 4 animals in 10 min",
        "Data": (
            "training 6 animals in 3 frames; validation 4 animals in 2 frames; "
            "test 2 animals in 1 frame"
        ),
        "Command": "fasthg train 'my mice.yaml' BATCH_SIZE=4",
    }
    assert "<dd>fasthg train &#x27;my mice.yaml&#x27;" in lines(
        Provenance.of(run, config).facts(config)
    )


@pytest.mark.parametrize("env", [None, [], {}, {"command": [], "git": None, "gpus": "x"}])
def test_what_is_not_known_is_left_out(tmp_path: Path, mice: Path, env: Any) -> None:
    data = {"TRAIN": str(mice / "gone*"), "VAL": str(mice / "val_dataset-*")}
    config = tiny(mice, tmp_path, DATA=data)
    found = told(made(tmp_path, env, [{"step": 6}]), config)
    assert list(found) == ["Trained", "Network", "Data"]
    assert found["Trained"] == "fasthg of unknown version"
    assert found["Network"].endswith("6 steps of 4 animals")
    assert found["Data"] == "validation 4 animals in 2 frames"


def test_a_commit_and_a_command_may_be_text(tmp_path: Path, mice: Path) -> None:
    env = {"fasthg": "1", "commit": "abc", "command": "fasthg train a.yaml", "device": "cpu"}
    found = told(made(tmp_path, {**env, "torch_threads": 1}, []), tiny(mice, tmp_path))
    assert found["Trained"] == "fasthg 1 (commit abc) on a CPU with 1 thread"
    assert found["Command"] == "fasthg train a.yaml"


def test_methods_claim_unseen_data_only_where_no_file_was_trained_on(
    tmp_path: Path, mice: Path
) -> None:
    config = tiny(mice, tmp_path)
    origin = Provenance.of(made(tmp_path, ENV, []), config)
    unseen = "none of which was used for training"

    def methods(split: str, files: str, config: Config = config) -> str:
        index = RecordIndex.open(str(mice / files), 7)
        return origin.methods(config, split, index, "mean error 1 px")

    text = methods("test", "test_dataset-*")
    assert f"evaluated on 2 animals in 1 frame, {unseen}: mean error 1 px." in text
    assert "trained with fasthg 9.8.7 (PyTorch 2.9) on 6 animals in 3 frames for 6 steps" in text
    assert "validation data (4 animals in 2 frames)" in text
    assert unseen not in methods("mine", "*_dataset-*")
    assert unseen not in methods("val", "val_dataset-*")
    gone = config.DATA.model_copy(update={"TRAIN": (str(mice / "gone*"),)})
    assert unseen not in methods("test", "test*", config.model_copy(update={"DATA": gone}))


def test_damaged_files_raise_nothing(tmp_path: Path, mice: Path) -> None:
    (tmp_path / "env.json").write_bytes(b"\xff{")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    assert told(RunFolder(tmp_path), tiny(mice, tmp_path))["Trained"].endswith("unknown version")
