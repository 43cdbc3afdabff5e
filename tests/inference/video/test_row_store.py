"""The rows of one source: one writer at a time, and nothing read that was not written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fasthg.errors import FasthgError
from fasthg.inference.video.keypoints import Poses
from fasthg.inference.video.row_store import Rows, RowStore


def opened(path: Path, *, resume: bool = False, source: str = "film.mp4") -> RowStore:
    return RowStore(path, Path(source), 1, 2, {"source": "s"}, resume)


def poses(first: int, count: int) -> Poses:
    numbers = np.arange(first, first + count, dtype=float)
    return Poses(
        first,
        times=numbers / 25,
        keypoints=np.ones((count, 1, 2, 2)) * numbers[:, None, None, None],
        scores=np.ones((count, 1, 2), np.float32),
        boxes=np.ones((count, 1, 4)),
        sizes=np.full((count, 2), 64, np.int32),
    )


def read(store: RowStore) -> Rows:
    return store.rows(Path("film.mp4"), (), ("animal1",), ("a", "b"), {})


def test_a_second_prediction_of_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".film.rows"
    with opened(path) as first:
        first.append(poses(0, 3))
        for resume in (False, True):
            with pytest.raises(FasthgError, match=r"film\.rows: another fasthg predicts into it"):
                opened(path, resume=resume)
        first.append(poses(3, 2))
        np.testing.assert_array_equal(read(first).keypoints[:, 0, 0, 0], np.arange(5))
    with opened(path, resume=True) as second:
        assert second.done == 5
        second.remove()
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch) -> None:
    path, first = tmp_path / ".film.rows", opened(tmp_path / ".film.rows")
    real = os.open

    def ended_after_open(*arguments: int) -> int:
        handle = real(*arguments)  # type: ignore[arg-type]
        monkeypatch.undo()
        first.remove()
        return handle

    monkeypatch.setattr(os, "open", ended_after_open)
    with opened(path) as second:
        second.append(poses(0, 2))
        assert path.stat().st_ino == os.fstat(second._file.fileno()).st_ino


def test_what_was_not_written_is_never_read_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / ".film.rows"
    with opened(path) as store:
        store.append(poses(0, 6))
        head = path.stat().st_size
        store.append(poses(6, 6))
        record = (path.stat().st_size - head) // 6
        with path.open("r+b") as other:  # without a lock, as on some network file systems
            other.seek(head + record)
            other.write(bytes(2 * record))
        with pytest.raises(FasthgError, match="row 7 is not what was written"):
            read(store)
    with opened(path, resume=True) as store:
        assert store.done == 7
        store.append(poses(7, 1))
        np.testing.assert_array_equal(read(store).scores.shape, (8, 1, 2))
        # Truncated by another, then written on: the file system fills the gap with zeros.
        os.truncate(path, 0)
        store.append(poses(8, 1))
        with pytest.raises(FasthgError, match="row 0 is not what was written"):
            read(store)


@pytest.mark.parametrize(
    "head", ["3", "[]", "null", '["format"]', pytest.param("[" * 100_000, id="deep"), ""]
)
def test_rows_after_a_damaged_head_are_not_kept(tmp_path: Path, head: str) -> None:
    path = tmp_path / ".film.rows"
    path.write_text(head + "\nrows")
    with opened(path, resume=True) as store:
        assert store.done == 0
        store.append(poses(0, 2))
        assert len(read(store)) == 2


def test_rows_of_a_source_that_was_moved_are_kept(tmp_path: Path) -> None:
    path = tmp_path / ".film.rows"
    with opened(path) as store:
        store.append(poses(0, 3))
    with opened(path, resume=True, source="a/longer/path/of/film.mp4") as store:
        assert store.done == 3
        store.append(poses(3, 2))
        np.testing.assert_array_equal(read(store).keypoints[:, 0, 0, 0], np.arange(5))
