"""`fasthg bench`: its figures, and the sentence that says what limits and what to change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fasthg.cli import main
from fasthg.config import Config
from fasthg.data import loader, opencv_loader
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, FasthgError
from fasthg.ops import OpPath
from fasthg.train import bench
from fasthg.train.bench import Situation, advise

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = {
    "NUM_STACKS": 1,
    "FEATURES": 8,
    "STEM_FEATURES": 4,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "BATCH_SIZE": 4,
    "NUM_INPUT_THREADS": 1,
    "PRECISION": "fp32",
    "DEVICE": "cpu",
}


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 6}, size=(192, 160))
    return folder


def small(mice: Path | None = None, **keys: Any) -> Config:
    data = {"TRAIN": str(mice / "train_dataset-*")} if mice else {}
    return Config(**{**SMALL, "DATA": data, **keys})


def test_figures_as_json(
    mice: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [f"{key}={value}" for key, value in SMALL.items()]
    data = f"DATA.TRAIN={mice}/train_dataset-*"
    arguments = [str(repository / "configs" / "small.yaml"), *given, data, "--seconds", "0.3"]
    monkeypatch.setattr(sys, "argv", ["fasthg", "bench", *arguments, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    figures = json.loads(capsys.readouterr().out)
    assert figures["data"] == {"instances": 12, "synthetic": False}
    assert (figures["loader"]["name"], figures["loader"]["threads"]) == ("portable", 1)
    assert (figures["step"]["mode"], figures["step"]["precision"]) == ("eager", "float32")
    for part, count in (("loader", "batches"), ("step", "steps"), ("both", "steps")):
        assert figures[part]["images_per_s"] > 0
        assert figures[part][count] >= 3
    assert 0 <= figures["both"]["wait_share"] <= 1
    assert figures["memory"]["peak_bytes"] > 1e7
    assert figures["environment"]["cpus"] == os.cpu_count()
    assert figures["sentence"].startswith(f"The {figures['limits']} limits")


def test_a_slow_loader_limits(mice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint = opencv_loader.CropRenderer.paint

    def slowly(self: Any, *arguments: Any) -> str | None:
        time.sleep(0.1)
        return paint(self, *arguments)

    monkeypatch.setattr(opencv_loader.CropRenderer, "paint", slowly)
    monkeypatch.setattr(bench, "available_cores", lambda: 3)
    report = bench.bench(small(mice), 1.0)
    loading, both = report.figures["loader"], report.figures["both"]
    # Two batches lay ready when the measurement began: neither they nor the idle time count.
    assert 5 < loading["images_per_s"] < 10.5
    assert 5 < both["images_per_s"] < 10.5
    assert 0.5 < both["wait_share"] <= 1
    assert report.limits == "loader"
    assert report.sentence.startswith("The loader limits: ")
    assert report.sentence.endswith("waiting for data; raise NUM_INPUT_THREADS (now 1 of 3 cores).")


def test_a_slow_step_limits(
    mice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(bench.TrainStep):
        def __call__(self, *arguments: Any) -> Any:
            time.sleep(0.2)
            return super().__call__(*arguments)

    monkeypatch.setattr(bench, "TrainStep", Slow)
    said: list[str] = []
    report = bench.bench(small(mice, FUSED="off"), 0.5, said.append)
    assert len(said) == 3
    assert report.figures["step"]["seconds_median"] > 0.2
    assert report.limits == "step"
    assert report.sentence.startswith("The step limits (")
    assert "FUSED=auto" in report.sentence
    assert report.sentence.endswith("a smaller network (NUM_STACKS now 1, FEATURES 8).")


def test_synthetic_frames_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "FRAMES", 2)
    monkeypatch.setattr(bench, "FRAME_SIZE", (192, 160))
    monkeypatch.setattr(bench.tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    report = bench.bench(small(), 0.0, said.append)
    assert said[0] == "DATA.TRAIN is not set: 2 synthetic frames stand in"
    assert report.figures["data"] == {"instances": 4, "synthetic": True}
    assert report.figures["step"]["steps"] == report.figures["both"]["steps"] == 3
    assert not list(tmp_path.iterdir())


def test_other_animals_need_data(tmp_path: Path) -> None:
    parts = {"NUM_PARTS": 2, "NAMES": ["a", "b"], "LEFT_RIGHT_PAIRS": [], "SIGMAS": [1, 1]}
    with pytest.raises(ConfigError, match=r"^DATA\.TRAIN: not set, .* have 7 parts, not 2; give"):
        bench.with_synthetic_frames(small(PARTS=parts), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_memory_is_explained(mice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(bench.TrainStep, "__call__", full)
    with pytest.raises(FasthgError, match=r"^the memory is full: .*; set RECOMPUTE=stack"):
        bench.bench(small(mice), 0.0)


def now(**facts: Any) -> Situation:
    usual = {"device": CPU, "cores": 4, "loader": "portable", "precision": torch.float32}
    rates = {"mode": "eager", "alone": 10.0, "both": 10.0, "waiting": 0.02}
    return Situation(**{**usual, **rates, **facts})


@pytest.mark.parametrize(
    ("keys", "facts", "words"),
    [
        (
            {"NUM_INPUT_THREADS": 4},
            {"waiting": 0.31},
            "The loader limits: 31% of the time waiting for data; all 4 cores load already, so use "
            "more cores or smaller frames.",
        ),
        (
            {"LOADER": "portable"},
            {"waiting": 0.5, "device": GPU},
            "The loader limits: 50% of the time waiting for data; set LOADER=dali, which decodes "
            "on the GPU, or raise NUM_INPUT_THREADS (now 1 of 4 cores).",
        ),
        (
            {},
            {"waiting": 0.5, "device": GPU, "loader": "dali"},
            "The loader limits: 50% of the time waiting for data; raise NUM_INPUT_THREADS (now 1 "
            "of 4 cores).",
        ),
        (
            {},
            {"both": 8.0},
            "The step limits (2% waiting; it shares 4 cores with the loader, alone it makes 10.0 "
            "images/s): only a smaller network (NUM_STACKS now 1, FEATURES 8) would be faster.",
        ),
        (
            {"FUSED": "off", "RECOMPUTE": "stack"},
            {"device": GPU, "both": 8.0},
            "The step limits (2% waiting): set PRECISION=bf16, FUSED=auto, STEP=auto, "
            "RECOMPUTE=none if memory allows; then a smaller network (NUM_STACKS now 1, FEATURES "
            "8).",
        ),
        (
            {},
            {"device": GPU, "mode": "graph", "precision": torch.float16},
            "The step limits (2% waiting): only a smaller network (NUM_STACKS now 1, FEATURES 8) "
            "would be faster.",
        ),
    ],
)
def test_advice_names_what_can_still_gain(
    keys: dict[str, Any], facts: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    best = {"cuda": torch.bfloat16, "cpu": torch.float32}
    monkeypatch.setattr(bench, "choose_precision", lambda name, device: best[device.type])
    native = [OpPath("bn_act", device, "native", "") for device in best]
    monkeypatch.setattr(bench, "paths", lambda: native)
    assert advise(small(**keys), now(**facts))[1] == words


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty one with a short path, as those of the workers' sockets must be."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_ctrl_c_ends_it_and_leaves_nothing(folder: Path, repository: Path) -> None:
    """The signal reaches the loader's workers too, as from a terminal."""
    given = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = ["bench", str(repository / "configs" / "mars.yaml"), *given, "--seconds", "100"]
    program = "from fasthg import bench, cli; bench.FRAMES, bench.FRAME_SIZE = 2, (192, 160)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", f"{program}; cli.main()", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "measuring" in line:
            break
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not list(folder.iterdir())
