"""`fasthg runs`: what runs came to, in what they differ, and folders that are damaged."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import yaml

from fasthg.errors import DataError
from fasthg.runs.listing import (
    ABSENT,
    differences,
    run_folders,
    summarise,
    told,
    trained_seconds,
)
from fasthg.runs.run_folder import RunFolder


def made(folder: Path, *, steps: int = 10, **keys: Any) -> Path:
    """A run folder of 10 steps that stopped after `steps`, validated at 5 and 10."""
    (folder / "eval" / "test").mkdir(parents=True)
    stock = {"NUM_TRAIN_ITERATIONS": 10, "RUN_NAME": folder.name, "RANDOM_SEED": 0}
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump({**stock, **keys}))
    rows = [{"step": s, "loss": 1.0, "elapsed_s": 60.0 * s} for s in range(1, steps + 1)]
    rows += [{"step": s, "val_error_mean_px": e} for s, e in ((5, 2.5), (10, 3.5)) if s <= steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = {"error_px": {"all": {"mean": 4.25, "median": 1.75}}}
    (folder / "eval" / "test" / "metrics.json").write_text(json.dumps(errors))
    return folder


def test_what_a_run_came_to(tmp_path: Path) -> None:
    run = summarise(made(tmp_path / "a"))
    assert (run.state, run.step, run.total, run.problem) == ("finished", 10, 10, None)
    assert (run.best_px, run.best_step, run.seconds) == (2.5, 5, 600.0)
    assert (run.split, run.mean_px, run.median_px) == ("test", 4.25, 1.75)
    stopped = made(tmp_path / "b", steps=4)
    (stopped / "eval" / "test").rename(stopped / "eval" / "val")
    run = summarise(stopped)
    assert (run.state, run.step, run.best_px, run.split) == ("stopped", 4, None, "val")


def test_a_training_is_seen_from_here_and_from_another_process(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    with RunFolder(folder).locked():
        assert summarise(folder).state == "running"
        # A listing in the process that trains must not end its lock: another one still sees it.
        other = context.Process(target=_elsewhere, args=(folder, answer))
        other.start()
        assert answer.get(timeout=20) is True
        other.join()
    assert summarise(folder).state == "finished"


def _elsewhere(path: Path, answer: Any) -> None:
    """As `in_use` in a process that did not inherit what this one knows."""
    from fasthg.runs import run_folder

    run_folder._LOCKED_HERE.clear()
    answer.put(RunFolder(path).in_use())


def test_seconds_of_a_resumed_run_add_up() -> None:
    rows: list[dict[str, Any]] = [{"elapsed_s": 5.0}, {"loss": 1.0}, {"elapsed_s": 9.0}]
    assert trained_seconds(rows) == 9.0
    assert trained_seconds([*rows, {"elapsed_s": 2.0}, {"elapsed_s": 3.0}]) == 12.0
    assert trained_seconds([{"loss": 1.0}]) is None


def test_differences_are_the_keys_that_are_not_the_same_in_all() -> None:
    a = {"RUN_NAME": "a", "BATCH_SIZE": 8, "RANDOM_SEED": 0, "SIGMA": [1.0]}
    b = {"RUN_NAME": "b", "BATCH_SIZE": 8, "RANDOM_SEED": 1}
    assert differences([a, None, b]) == [
        {"RANDOM_SEED": 0, "SIGMA": [1.0]},
        {},
        {"RANDOM_SEED": 1, "SIGMA": ABSENT},
    ]
    assert differences([a]) == [{}]


def test_a_key_that_another_run_alone_names_is_a_dash(fasthg, tmp_path: Path) -> None:
    # END_LEARNING_RATE has no effect with a fixed learning rate, and is not written then.
    made(tmp_path / "a", LEARNING_RATE_DECAY_TYPE="cosine", END_LEARNING_RATE=1e-6)
    made(tmp_path / "b", LEARNING_RATE_DECAY_TYPE="fixed")
    code, out, err = fasthg("runs", tmp_path)
    assert (code, err, "null" in out) == (0, "", False)
    assert "END_LEARNING_RATE \N{EM DASH}" in " ".join(out.split())
    assert "\N{EM DASH}: the key has no effect there, or its version did not know it" in out
    _, out, _ = fasthg("runs", tmp_path, "--json")
    assert ["END_LEARNING_RATE" in run["differs"] for run in json.loads(out)] == [True, False]


def test_differences_in_words() -> None:
    splits = {f"DATA.{s}": [f"/mice/{s.lower()}_dataset-*"] for s in ("TRAIN", "VAL")}
    parts = {"PARTS.NUM_PARTS": 2, "PARTS.NAMES": ["nose", "tail"]}
    text = told({"FLIP_TEST": None, **splits, **parts, "STEP": "auto", "DETERMINISTIC": True})
    assert text == (
        "DATA /mice, PARTS.NAMES nose, tail, STEP auto, DETERMINISTIC true, FLIP_TEST null"
    )
    assert told({f"K{n}": n for n in range(9)}, most=3) == "K0 0, K1 1, K2 2 and 6 more"
    assert told({"PARTS.NAMES": [f"part{n}" for n in range(13)]}) == "PARTS.NAMES 13 entries"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.resolved.yaml", b"a: [", "config.resolved.yaml is damaged"),
        ("config.resolved.yaml", b"- 1", "config.resolved.yaml is damaged"),
        ("config.resolved.yaml", None, "config.resolved.yaml is missing"),
        ("metrics.jsonl", b"\xf0\x00", "metrics.jsonl is damaged"),
        ("eval/test/metrics.json", b'{"error_px": 3', "eval/test/metrics.json is damaged"),
        ("eval/test/metrics.json", b'{"error_px": 3}', "eval/test/metrics.json is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_told(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    folder = made(tmp_path / "a")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    run = summarise(folder)
    assert run.problem == problem
    assert run.state is not None and run.as_json()["problem"] == problem
    known = {"config": run.keys, "metrics.jsonl": run.best_px, "eval": run.mean_px}
    assert [k for k, v in known.items() if v is None] == [k for k in known if name.startswith(k)]


def test_rows_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n"a"\n{"step": "x"}\n{"step": 11, "val_error_mean_px": null}\n{"cut')
    run = summarise(folder)
    assert (run.step, run.best_px, run.problem) == (11, 2.5, None)


def test_the_command_lists_all_folders(fasthg, tmp_path: Path) -> None:
    made(tmp_path / "run10", RANDOM_SEED=1)
    made(tmp_path / "run9")
    (tmp_path / "pictures").mkdir()
    (tmp_path / ".hidden").mkdir()
    assert [path.name for path in run_folders(tmp_path)] == ["pictures", "run9", "run10"]
    assert run_folders(tmp_path / "run9") == [tmp_path / "run9"]
    code, out, err = fasthg("runs", tmp_path)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["run", "step", "state"]
    assert " ".join(lines[1]) == "run9 10 of 10 finished 2.50 4.25 1.75 10.0 RANDOM_SEED 0"
    assert lines[2][-2:] == ["RANDOM_SEED", "1"]
    assert "pictures: not a run folder" in out
    code, out, _ = fasthg("runs", tmp_path, "--json")
    listed = json.loads(out)
    assert [run["differs"] for run in listed] == [{}, {"RANDOM_SEED": 0}, {"RANDOM_SEED": 1}]
    code, _, err = fasthg("runs", tmp_path / "none")
    assert code == 1 and "no such folder" in err
    with pytest.raises(DataError, match="RUNS_DIR"):
        run_folders(tmp_path / "none")
