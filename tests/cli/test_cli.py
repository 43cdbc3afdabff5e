"""The command line: what it prints, where it exits, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest

from fasthg.data.records.schema import decode, encode
from fasthg.data.records.tfrecord import read_frames, write_frames
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.ops import paths

SMALL = [
    "NUM_STACKS=1",
    "FEATURES=8",
    "STEM_FEATURES=4",
    "INPUT_SIZE=64",
    "HEATMAP_SIZE=16",
    "BATCH_SIZE=4",
    "NUM_INPUT_THREADS=0",
    "NUM_TRAIN_ITERATIONS=2",
    "PRECISION=fp32",
]


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 6, "val": 2, "test": 2}, size=(192, 160))
    return folder


@pytest.fixture
def stock(repository: Path) -> str:
    return str(repository / "configs" / "mars.yaml")


def rewritten(source: Path, target: Path, change) -> Path:
    """`source` with each record passed through `change(number, record)`."""
    payloads = []
    for number, frame in enumerate(read_frames(source)):
        record = decode(frame.payload, where=f"record {number}")
        change(number, record)
        payloads.append(encode(record))
    write_frames(target, payloads)
    return target


@pytest.mark.slow
def test_train_and_eval(fasthg, mice: Path, tmp_path: Path, stock: str) -> None:
    data = [f"DATA.{s}={mice}/{s.lower()}_dataset-*" for s in ("TRAIN", "VAL", "TEST")]
    run = [f"RUNS_DIR={tmp_path}", "RUN_NAME=a", "QUEUE_CAPACITY=10"]
    code, out, err = fasthg("train", stock, *SMALL, *data, *run)
    assert (code, err) == (0, "")
    assert "test: 4 instances" in out
    assert "no effect: QUEUE_CAPACITY" in out
    assert str(tmp_path / "a/eval/test/predictions.png") in out.replace("\n", "")
    code, out, err = fasthg("eval", tmp_path / "a", "--json", "--split", "val")
    assert code == 0
    assert json.loads(out)["instances"] == 4
    before = sorted(path for path in (tmp_path / "a").rglob("*"))
    fasthg("eval", tmp_path / "a", "-o", tmp_path / "elsewhere", "--split", "val", "--report")
    assert sorted(path for path in (tmp_path / "a").rglob("*")) == before
    there = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert {"metrics.json", "predictions.png", "report.html"} <= there
    code, out, _ = fasthg("eval", tmp_path / "a", "--data", f"{mice}/train_dataset-*")
    assert code == 0
    assert (tmp_path / "a/eval/data/metrics.json").exists()


def test_a_batch_too_small_for_batch_norm_is_one_line(
    fasthg, mice: Path, tmp_path: Path, stock: str
) -> None:
    keys = ["INPUT_SIZE=64", "HEATMAP_SIZE=16", "BATCH_SIZE=1", f"RUNS_DIR={tmp_path / 'runs'}"]
    data = f"DATA.TRAIN={mice}/train_dataset-*"
    for verb in (["train"], ["train", "--dry-run"], ["bench"]):
        code, out, err = fasthg(*verb, stock, data, *keys)
        assert (code, err.count("\n")) == (2, 1), err
        assert "BATCH_SIZE: 1 with INPUT_SIZE 64" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_resume_needs_no_config(fasthg, mice: Path, tmp_path: Path, stock: str) -> None:
    data = f"DATA.TRAIN={mice}/train_dataset-*"
    fasthg("train", stock, *SMALL, data, f"RUNS_DIR={tmp_path}", "RUN_NAME=a", "--no-eval")
    code, out, _ = fasthg(
        "train", "--resume", tmp_path / "a", "NUM_TRAIN_ITERATIONS=3", "--no-eval"
    )
    assert code == 0
    assert "resumed" in out
    assert "step 3/3" in out


def test_config_verbs(fasthg, stock: str) -> None:
    code, out, _ = fasthg("config", "check", stock)
    assert code == 0
    assert out.endswith("mars.yaml: ok\n")
    code, out, _ = fasthg("config", "show", "--json")
    keys = {row["key"]: row for row in json.loads(out)}
    assert keys["RANDOM_NOISE_SCALE"]["status"] == "used"
    assert keys["QUEUE_MIN"]["status"] == "inert"
    code, out, _ = fasthg("config", "show", stock, "--resolved", "BATCH_SIZE=3")
    assert "BATCH_SIZE: 3" in out
    assert "BATCH_SIZE" in fasthg("config", "show", stock)[1]


def test_doctor_names_every_op_and_the_loader(fasthg) -> None:
    code, out, _ = fasthg("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert [(p["op"], p["device"]) for p in facts["ops"]] == [row[:2] for row in paths()]
    assert all(p["path"] and p["reason"] for p in facts["ops"])
    assert facts["loader"]["reason"]
    out = fasthg("doctor")[1]
    assert out.splitlines()[-1] == facts["verdict"]
    assert out.count("CUDA device") <= 2 and "gaussian_heatmaps" not in out
    assert "gaussian_heatmaps" in fasthg("doctor", "--ops")[1]


def test_synth_and_check(fasthg, tmp_path: Path, stock: str) -> None:
    code, out, _ = fasthg("data", "synth", tmp_path, "--train", 2, "--val", 0, "--test", 1)
    assert code == 0
    assert len(out.splitlines()) == 2
    code, out, _ = fasthg("data", "check", stock, f"DATA.TRAIN={tmp_path}/train*")
    assert (code, "no problem" in out) == (0, True)


def corrupt_jpeg(number: int, record) -> None:
    if number == 1:
        record.encoded = record.encoded[: len(record.encoded) // 2]


def nan_keypoint(number: int, record) -> None:
    record.keypoints[0, 0] = np.nan


def test_a_corrupt_image_is_named_skipped_and_counted(
    fasthg, mice: Path, tmp_path: Path, stock: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = rewritten(mice / "train_dataset-00000-of-00001", tmp_path / "bad", corrupt_jpeg)
    code, out, _ = fasthg(
        "train", stock, *SMALL, f"DATA.TRAIN={path}", f"RUNS_DIR={tmp_path}", "--no-eval",
        "NUM_TRAIN_ITERATIONS=4",
    )  # fmt: skip
    assert code == 0
    assert "1 unreadable image was skipped" in out
    assert "record 1" in caplog.text
    assert fasthg("data", "check", stock, f"DATA.TRAIN={path}")[0] == 1


@pytest.mark.slow
def test_a_nan_keypoint_is_an_unlabelled_part(
    fasthg, mice: Path, tmp_path: Path, stock: str
) -> None:
    path = rewritten(mice / "train_dataset-00000-of-00001", tmp_path / "nan", nan_keypoint)
    data = [f"DATA.TRAIN={path}", f"DATA.TEST={path}"]
    code, _, err = fasthg("train", stock, *SMALL, *data, f"RUNS_DIR={tmp_path}", "RUN_NAME=a")
    assert (code, err) == (0, "")
    metrics = json.loads((tmp_path / "a/eval/test/metrics.json").read_text())
    assert metrics["error_px"]["parts"]["nose"]["count"] == 6
    assert metrics["error_px"]["parts"]["left ear"]["count"] == 12


def cut(data: bytes) -> bytes:
    return data[: len(data) - 100]


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def without_boxes(source: Path, target: Path) -> None:
    """The boxes' fields under names that nobody reads."""
    payloads = [f.payload for f in read_frames(source)]
    for side in (b"xmin", b"xmax", b"ymin", b"ymax"):
        payloads = [p.replace(b"bbox/" + side, b"bbox/none") for p in payloads]
    write_frames(target, payloads)


BAD_INPUTS = {
    "missing config": (2, ["none.yaml", "no such file"]),
    "missing file": (1, ["none-00000", "no such file"]),
    "empty glob": (1, ["none-*", "no file matches"]),
    "truncated": (1, ["damaged", "record"]),
    "wrong crc": (1, ["damaged", "record", "CRC"]),
    "not records": (1, ["damaged"]),
    "no boxes": (1, ["damaged", "record 0"]),
    "too many parts": (1, ["train_dataset", "record 0", "NUM_PARTS"]),
    "misspelt key": (2, ["BATCH_SIZ", "BATCH_SIZE"]),
    "wrong type": (2, ["BATCH_SIZE"]),
    "no run": (1, ["not a run folder"]),
    "runs is a file": (1, ["cannot make a run folder"]),
}


def bad_input(name: str, mice: Path, tmp_path: Path, stock: str) -> list[str]:
    """Arguments of the command line; the files that they name are written."""
    good = mice / "train_dataset-00000-of-00001"
    damaged = tmp_path / "damaged"
    data = f"DATA.TRAIN={damaged}"
    arguments = ["train", stock, *SMALL, data, f"RUNS_DIR={tmp_path}/runs"]
    match name:
        case "missing config":
            arguments[1] = "none.yaml"
        case "missing file":
            arguments.append("DATA.TRAIN=none-00000")
        case "empty glob":
            arguments.append("DATA.TRAIN=none-*")
        case "truncated":
            damaged.write_bytes(cut(good.read_bytes()))
        case "wrong crc":
            damaged.write_bytes(flip_a_bit(good.read_bytes()))
        case "not records":
            damaged.write_text("a text file that is long enough to hold a header")
        case "no boxes":
            without_boxes(good, damaged)
        case "too many parts":
            parts = (
                "{NUM_PARTS: 4, NAMES: [a, b, c, d], LEFT_RIGHT_PAIRS: [], SIGMAS: [1, 1, 1, 1]}"
            )
            arguments += [f"DATA.TRAIN={good}", f"PARTS={parts}"]
        case "misspelt key":
            arguments.append("BATCH_SIZ=8")
        case "wrong type":
            arguments.append("BATCH_SIZE=many")
        case "no run":
            arguments = ["eval", str(tmp_path)]
        case "runs is a file":
            (tmp_path / "runs").touch()
            arguments.append(f"DATA.TRAIN={good}")
    return arguments


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_ends_in_one_line(
    fasthg, name: str, mice: Path, tmp_path: Path, stock: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, words = BAD_INPUTS[name]
    code, out, err = fasthg(*bad_input(name, mice, tmp_path, stock))
    # A terminal would show warnings, too.
    assert (code, out, caplog.text) == (status, "", ""), err
    check_one_line(err, words)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["misspelt key", "truncated"])
def test_bad_input_ends_in_one_line_on_the_terminal(
    name: str, mice: Path, tmp_path: Path, stock: str
) -> None:
    """In a process of its own, whose output is all that a user sees."""
    status, words = BAD_INPUTS[name]
    code, out, err = forked.command(*bad_input(name, mice, tmp_path, stock)).ended()
    assert (code, out) == (status, ""), err
    check_one_line(err, words)


def check_one_line(err: str, words: list[str]) -> None:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.slow
def test_help_and_mistakes_in_a_configuration_wait_for_no_heavy_import(
    tmp_path: Path, stock: str
) -> None:
    def imported(*arguments: str) -> tuple[set[str], str]:
        program = (
            f"import sys; from fasthg.cli import main; sys.argv = {['fasthg', *arguments]}\n"
            "try: main()\n"
            "finally: print(*sys.modules)"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        words, _, names = done.stdout[:-1].rpartition("\n")
        return set(names.split()), words + done.stderr

    modules, said = imported("train", "--help")
    assert "Train a network" in said and "typer" in modules
    assert not modules & {"torch", "numpy", "cv2", "matplotlib"}
    modules, said = imported("train", stock, "BATCH_SIZ=8")
    assert "BATCH_SIZ: unknown key" in said
    assert not modules & {"torch", "cv2", "matplotlib"}


def test_debug_shows_where_an_error_came_from(
    fasthg, tmp_path: Path, stock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"error: {tmp_path}: not a run folder (no config.resolved.yaml); give runs/<name>\n"
    assert fasthg("eval", tmp_path) == (1, "", line)
    monkeypatch.setenv("FASTHG_DEBUG", "1")
    code, _, err = fasthg("eval", tmp_path)
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert "in open" in err
    assert err.endswith(line)


def test_an_error_of_the_system_is_one_line_and_names_the_debug_switch(
    fasthg, tmp_path: Path, stock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr("fasthg.config.load_config", refuse)
    code, _, err = fasthg("config", "check", stock)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: some/file: Permission denied; check the path and its rights")
    assert "FASTHG_DEBUG=1" in err
    monkeypatch.setenv("FASTHG_DEBUG", "1")
    _, _, err = fasthg("config", "check", stock)
    assert "in refuse" in err and err.splitlines()[-1].startswith("error: some/file: ")
