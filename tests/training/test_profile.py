"""`fasthg bench` and `fasthg train --dry-run`: figures, advice, refusals, and no file is left."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from rich.console import Console

from fasthg.config import Config
from fasthg.data import loader, opencv_loader
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError, FasthgError
from fasthg.ops import OpPath
from fasthg.runtime.device import Precision
from fasthg.training import profile, trainer
from fasthg.training.profile import Facts, advise, describe_run
from fasthg.training.step import TrainStep

SMALL: dict[str, Any] = {
    "NUM_STACKS": 1,
    "FEATURES": 8,
    "STEM_FEATURES": 4,
    "INPUT_SIZE": 64,
    "HEATMAP_SIZE": 16,
    "BATCH_SIZE": 4,
    "NUM_INPUT_THREADS": 1,
    "PRECISION": "fp32",
    "DEVICE": "cpu",
    "HEAD_INIT_SCALE": 0.01,
    "NUM_TRAIN_ITERATIONS": 1000,
    "VALIDATE_EVERY_N_STEPS": 300,
}
Fasthg = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 6, "val": 4}, size=(192, 160))
    return folder


def small(mice: Path | None = None, **keys: Any) -> Config:
    data = {s.upper(): str(mice / f"{s}_dataset-*") for s in ("train", "val")} if mice else {}
    return Config(**{**SMALL, "DATA": data, **keys})


@pytest.fixture
def arguments(mice: Path, repository: Path) -> list[str]:
    """CONFIG and overrides of a small training."""
    data = [f"DATA.{s.upper()}={mice}/{s}_dataset-*" for s in ("train", "val")]
    keys = [f"{key}={value}" for key, value in SMALL.items()]
    return [str(repository / "configs" / "small.yaml"), *keys, *data]


@pytest.mark.slow
def test_figures_as_json(fasthg: Fasthg, arguments: list[str]) -> None:
    code, out, _ = fasthg("bench", *arguments, "--seconds", "0.3", "--json")
    assert not code
    figures = json.loads(out)
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


@pytest.mark.slow
def test_a_slow_loader_limits(mice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = opencv_loader.CropRenderer.render

    def slowly(self: Any, *arguments: Any) -> str | None:
        time.sleep(0.1)
        return render(self, *arguments)

    monkeypatch.setattr(opencv_loader.CropRenderer, "render", slowly)
    monkeypatch.setattr(profile, "available_cores", lambda: 3)
    # Seconds enough that even a busy machine uses up in the warm-up what lay ready.
    report = profile.bench(small(mice), 3.0)
    loading, both = report.figures["loader"], report.figures["both"]
    # Two batches lay ready when the measurement began: neither they nor the idle time count.
    assert 5 < loading["images_per_s"] < 10.5
    assert 5 < both["images_per_s"] < 10.5
    assert 0.5 < both["wait_share"] <= 1
    assert report.limits == "loader"
    assert report.sentence.startswith("The loader limits: ")
    assert report.sentence.endswith("waiting for data; raise NUM_INPUT_THREADS (now 1 of 3 cores).")


@pytest.mark.slow
def test_a_slow_step_limits(mice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(profile.TrainStep):
        def __call__(self, *arguments: Any) -> Any:
            time.sleep(0.2)
            return super().__call__(*arguments)

    monkeypatch.setattr(profile, "TrainStep", Slow)
    said: list[str] = []
    report = profile.bench(small(mice, FUSED="off"), 0.5, said.append)
    assert len(said) == 3
    assert report.figures["step"]["seconds_median"] > 0.2
    assert report.limits == "step"
    assert report.sentence.startswith("The step limits (")
    assert "FUSED=auto" in report.sentence
    assert report.sentence.endswith("a smaller network (NUM_STACKS now 1, FEATURES 8).")


def test_synthetic_frames_replace_missing_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profile, "FRAMES", 2)
    monkeypatch.setattr(profile, "FRAME_SIZE", (192, 160))
    monkeypatch.setattr(profile.tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    report = profile.bench(small(), 0.0, said.append)
    assert said[0] == "DATA.TRAIN is not set: 2 synthetic frames replace it"
    assert report.figures["data"] == {"instances": 4, "synthetic": True}
    assert report.figures["step"]["steps"] == report.figures["both"]["steps"] == 3
    assert not list(tmp_path.iterdir())


def test_other_animals_need_data(tmp_path: Path) -> None:
    parts = {"NUM_PARTS": 2, "NAMES": ["a", "b"], "LEFT_RIGHT_PAIRS": [], "SIGMAS": [1, 1]}
    with pytest.raises(ConfigError, match=r"^DATA\.TRAIN: not set, .* have 7 parts, not 2; give"):
        profile.with_synthetic_frames(small(PARTS=parts), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_memory_is_explained(mice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(profile.TrainStep, "__call__", full)
    with pytest.raises(
        FasthgError, match=r"^the memory is full \(out of memory\), .*; set RECOMPUTE"
    ):
        profile.bench(small(mice), 0.0)


def measured(**facts: Any) -> dict[str, Any]:
    """Figures as of `Report`, on a CPU where nothing says otherwise."""
    usual = {"device": "cpu", "loader": "portable", "precision": "float32", "mode": "eager"}
    facts = {**usual, "alone": 10.0, "both": 10.0, "wait": 0.02, **facts}
    return {
        "loader": {"name": facts["loader"], "cores": 4},
        "step": {
            **{key: facts[key] for key in ("device", "precision", "mode")},
            "images_per_s": facts["alone"],
        },
        "both": {"images_per_s": facts["both"], "wait_share": facts["wait"]},
    }


@pytest.mark.parametrize(
    ("keys", "facts", "words"),
    [
        (
            {"NUM_INPUT_THREADS": 4},
            {"wait": 0.31},
            "The loader limits: 31% of the time waiting for data; all 4 cores load already, so use "
            "more cores or smaller frames.",
        ),
        (
            {"LOADER": "portable"},
            {"wait": 0.5, "device": "cuda"},
            "The loader limits: 50% of the time waiting for data; set LOADER=dali, which decodes "
            "on the GPU, or raise NUM_INPUT_THREADS (now 1 of 4 cores).",
        ),
        (
            {},
            {"wait": 0.5, "device": "cuda", "loader": "dali"},
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
            {"device": "cuda", "both": 8.0},
            "The step limits (2% waiting): set PRECISION=bf16, FUSED=auto, STEP=auto, "
            "RECOMPUTE=none if memory allows; then a smaller network (NUM_STACKS now 1, FEATURES "
            "8).",
        ),
        (
            {"PRECISION": "bf16"},
            {"precision": "bfloat16"},
            "The step limits (2% waiting): set PRECISION=fp32; then a smaller network (NUM_STACKS "
            "now 1, FEATURES 8).",
        ),
        (
            {},
            {"device": "cuda", "mode": "graph", "precision": "float16"},
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
    best = {"cuda": Precision(torch.bfloat16, ""), "cpu": Precision(torch.float32, "")}
    monkeypatch.setattr(profile, "choose_precision", lambda name, device, width: best[device.type])
    native = [OpPath("bn_act", device, "native", "") for device in best]
    monkeypatch.setattr(profile, "paths", lambda: native)
    assert advise(small(**keys), measured(**facts))[1] == words


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty one with a short path, as those of the workers' sockets must be."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_nothing(folder: Path, repository: Path) -> None:
    """The signal reaches the loader's workers too, as from a terminal."""
    keys = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = ["bench", str(repository / "configs" / "mars.yaml"), *keys, "--seconds", "100"]
    fewer = {"FRAMES": 2, "FRAME_SIZE": (192, 160)}
    process = forked.command(
        *arguments,
        patches={f"fasthg.training.profile.{name}": value for name, value in fewer.items()},
        environment={"TMPDIR": str(folder)},
    )
    process.wait_for(lambda: "measuring" in process.out())
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = process.ended()
    assert status == 130, err
    assert "Traceback" not in err
    assert not list(folder.iterdir())


@pytest.fixture
def dry(fasthg: Fasthg, arguments: list[str], tmp_path: Path) -> Fasthg:
    """`fasthg train CONFIG --dry-run` with overrides, in a RUNS_DIR that does not exist."""
    runs = f"RUNS_DIR={tmp_path}/some/runs"
    keys = ["NUM_INPUT_THREADS=0", runs]
    return lambda *more: fasthg("train", *arguments, *keys, *more, "--dry-run")


@pytest.mark.slow
def test_the_facts_are_printed_and_nothing_stays(
    dry: Fasthg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "DRY_BATCHES", 1)
    code, out, err = dry("QUEUE_MIN=4")
    assert (code, err) == (0, "")
    assert "no effect: QUEUE_MIN" in out
    assert "step 2/2" in out
    assert "step 2: validation error mean" in out
    for pattern in (
        r"memory   0\.\d\d GiB measured \(by which this process grew\)",
        r"step     [\d.e-]+ s, the first [\d.e-]+ s",
        r"whole    about .*: 1000 x [\d.e-]+ s, validation 4 x [\d.e-]+ s, save 1 x [\d.e-]+ s",
        r"saved    0\.\d MB a checkpoint; 6 stay, and one more every 3 hours",
        r"         a validation was tried on 1 of its 2 batches",
    ):
        assert re.search(f"^{pattern}$", out, re.MULTILINE), pattern
    assert not list(tmp_path.iterdir())


def dry_config(mice: Path, folder: Path, **keys: Any) -> Config:
    return small(mice, RUNS_DIR=str(folder / "runs"), NUM_INPUT_THREADS=0, **keys)


@pytest.mark.slow
def test_what_was_there_stays(mice: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    facts = profile.dry_run(dry_config(mice, tmp_path, RUN_NAME="mine"), Console(quiet=True))
    assert facts is not None
    assert all(value > 0 for value in facts[:-1])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_the_time_of_a_validation_is_that_of_all_its_batches(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = trainer.predict

    def slowly(model: Any, batches: Iterator[Any], *others: Any) -> Any:
        now[0] += 100.0
        return predict(model, batches, *others)

    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trainer, "predict", slowly)
    monkeypatch.setattr(profile, "DRY_BATCHES", 1)
    facts = profile.dry_run(dry_config(mice, tmp_path, BATCH_SIZE=2), Console(quiet=True))
    assert facts is not None
    # One of its four batches was tried.
    assert facts.validation == 400.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("DATA.TRAIN=none-*", 1, "none-*: no file matches"),
        ("DATA.TRAIN=null", 2, "DATA.TRAIN: not set"),
        ("RUNS_DIR=/dev/null", 1, "cannot make a run folder"),
    ],
)
def test_it_refuses_what_a_training_refuses(
    override: str, code: int, words: str, dry: Fasthg, tmp_path: Path
) -> None:
    status, _, err = dry(override)
    assert status == code
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_it_does_not_resume(fasthg: Fasthg) -> None:
    code, _, err = fasthg("train", "--resume", "runs/a", "--dry-run")
    assert (code, err) == (2, "error: --dry-run: give a CONFIG and no --resume\n")


def test_a_failed_step_leaves_nothing(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dry_config(mice, tmp_path, OPTIMIZER="sgd", INITIAL_LEARNING_RATE=1e30)
    with pytest.raises(DataError, match=r"not finite .*; lower INITIAL_LEARNING_RATE .* again$"):
        profile.dry_run(config, Console(quiet=True))

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TrainStep, "__call__", full)
    with pytest.raises(
        FasthgError, match=r"^the memory is full \(out of memory\), .*; set RECOMPUTE"
    ):
        profile.dry_run(dry_config(mice, tmp_path), Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_ends_it(dry: Fasthg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainStep.__call__

    def interrupted(self: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    code, out, err = dry()
    assert (code, err) == (130, "")
    assert "measured" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        (
            {"SAVE_INTERVAL_SECS": 600},
            "13 h 57 min: 100000 x 0.5 s, validation 4 x 10 s, save 84 x",
        ),
        ({"SAVE_INTERVAL_SECS": 0}, "2.9 days: 100000 x 0.5 s, validation 4 x 10 s, save 100000 x"),
        ({"VALIDATE_EVERY_N_STEPS": 30_001}, "13 h 55 min: 100000 x 0.5 s, validation 4 x 10 s, "),
        ({"NUM_TRAIN_ITERATIONS": 2}, "13 s: 2 x 0.5 s, validation 1 x 10 s, save 1 x 2 s"),
    ],
)
def test_the_time_of_the_whole_run(keys: dict[str, int], whole: str) -> None:
    config = Config(**{"NUM_TRAIN_ITERATIONS": 100_000, "VALIDATE_EVERY_N_STEPS": 25_000, **keys})
    facts = Facts(3.0, 0.5, 10.0, 2.0, 412_000_000, 1 << 30)
    lines = describe_run(config, facts, torch.device("cuda"))
    assert lines[0] == "memory   1.00 GiB measured (peak on the GPU)"
    assert lines[1] == "step     0.5 s, the first 3 s"
    assert lines[2].startswith(f"whole    about {whole}")
    assert lines[3].startswith("saved    412.0 MB a checkpoint; 6 stay")
