"""Indices read by several processes, and kept: the same as read by one, never of other files."""

from __future__ import annotations

import os
import re
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fasthg.config import Config
from fasthg.data import forks
from fasthg.data.index import builder
from fasthg.data.index import cache as index_cache
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.sampler import BatchSampler
from fasthg.errors import DataError, EnvironmentFault

PARTS = 2


def record(number: int, objects: int = 1) -> bytes:
    points = np.random.default_rng(number).uniform(0.3, 0.6, (objects, PARTS, 2))
    box = np.tile(np.array([[0.1, 0.2, 0.5, 0.8]], np.float32), (objects, 1))
    return encode(Record(b"\xff\xd8%d" % number, 90, 70, f"i{number}", bbox=box, keypoints=points))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of three records; the first record of the second has no animal."""
    for shard in range(4):
        rows = [record(10 * shard + i, 0 if (shard, i) == (1, 0) else 1 + i) for i in range(3)]
        write_frames(tmp_path / "records" / f"train-{shard}", rows)
    return tmp_path / "records"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps indices of whatever size and age here."""
    monkeypatch.setenv("FASTHG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(index_cache, "_YOUNG_SECONDS", -3600)
    return tmp_path / "cache" / "index"


def assert_same(one: RecordIndex, other: RecordIndex) -> None:
    assert one.fingerprint() == other.fingerprint()
    for name, value in vars(one).items():
        if name != "_open":
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)
            assert getattr(value, "dtype", 0) == getattr(getattr(other, name), "dtype", 0)


def indices(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()]


def not_read(*_: object, **__: object) -> None:
    raise AssertionError("the records are read again")


def test_processes_make_the_same_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RecordIndex.build(str(folder / "*"), PARTS)
    monkeypatch.setattr("fasthg.data.index.record_index._WORTH_PROCESSES", 0)
    here, parent = builder.IndexBuilder.add_file, os.getpid()

    def elsewhere(self: builder.IndexBuilder, path: str, *, verify_crc: bool) -> None:
        assert os.getpid() != parent
        here(self, path, verify_crc=verify_crc)

    monkeypatch.setattr(builder.IndexBuilder, "add_file", elsewhere)
    assert_same(RecordIndex.build(str(folder / "*"), PARTS, processes=3), whole)


def test_processes_name_the_first_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(folder / "train-1", [record(1), b"no record"])
    write_frames(folder / "train-2", [b"nor this"])
    with pytest.raises(DataError) as alone:
        RecordIndex.build(str(folder / "*"), PARTS)
    monkeypatch.setattr("fasthg.data.index.record_index._WORTH_PROCESSES", 0)
    with pytest.raises(DataError) as several:
        RecordIndex.build(str(folder / "*"), PARTS, processes=2)
    assert str(several.value) == str(alone.value)
    assert "train-1: record 1: " in str(alone.value)


def test_a_killed_process_is_told() -> None:
    with pytest.raises(EnvironmentFault, match="a process that reads records was killed; lower"):
        list(forks.in_processes(kill_oneself, [1, 2], 2))


def kill_oneself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_index_is_kept_and_mapped(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = RecordIndex.build(str(folder / "*"), PARTS)
    first = RecordIndex.open(str(folder / "*"), PARTS)
    assert_same(first, built)
    monkeypatch.setattr("fasthg.data.index.record_index._read", not_read)
    monkeypatch.setattr(index_cache, "_TINY", 0)
    again = RecordIndex.open(str(folder / "*"), PARTS)
    assert_same(again, built)
    base = again.keypoints
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and not again.keypoints.flags.writeable
    assert again.jpeg(4) == built.jpeg(4) and again.image_id(11) == "i32"
    cfg = Config(
        BATCH_SIZE=4,
        PARTS={"NUM_PARTS": PARTS, "NAMES": ["a", "b"], "SIGMAS": [1, 1], "LEFT_RIGHT_PAIRS": []},
    )
    plans = [BatchSampler(i, cfg, training=True, seed=0).plan(9) for i in (built, again)]
    np.testing.assert_array_equal(plans[0].keypoints, plans[1].keypoints)


@pytest.mark.parametrize("change", ["content", "age", "name", "parts"])
def test_other_files_have_another_index(folder: Path, kept: Path, change: str) -> None:
    RecordIndex.open(str(folder / "*"), PARTS)
    one = folder / "train-3"
    stat = one.stat()
    if change == "parts":
        with pytest.raises(DataError, match="2 parts an object, but"):
            RecordIndex.open(str(folder / "*"), PARTS + 1)
        return
    if change == "content":
        # As many bytes, and the time of the last change set back: that of its status tells.
        write_frames(one, [record(n, 1 + n - 70) for n in (70, 71, 72)])
        assert one.stat().st_size == stat.st_size
        os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "age":
        os.utime(one)
    else:
        one.rename(folder / "train-4")
    changed = RecordIndex.open(str(folder / "*"), PARTS)
    assert_same(changed, RecordIndex.build(str(folder / "*"), PARTS))
    assert len(indices(kept)) == 2


def test_small_and_young_files_are_not_kept(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(path) for path in folder.iterdir()]
    assert index_cache.entry_of(files, PARTS) is not None
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "_YOUNG_SECONDS", 3600)
        assert index_cache.entry_of(files, PARTS) is None
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "LEAST_BYTES", 1 << 20)
        assert index_cache.entry_of(files, PARTS) is None
    with monkeypatch.context() as patch:
        patch.setenv("FASTHG_CACHE", "")
        assert index_cache.entry_of(files, PARTS) is None
        assert len(RecordIndex.open(str(folder / "*"), PARTS)) == 23
    assert not kept.exists()


def test_files_that_change_while_they_are_read(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: builder.IndexBuilder, path: str, *, verify_crc: bool) -> None:
        read(self, path, verify_crc=verify_crc)
        os.utime(path)

    read = builder.IndexBuilder.add_file
    monkeypatch.setattr(builder.IndexBuilder, "add_file", slow)
    RecordIndex.open(str(folder / "*"), PARTS)
    assert indices(kept) == []


@pytest.mark.parametrize("damage", ["short", "absent", "folder"])
def test_what_cannot_be_read_or_written_is_made_anew(
    folder: Path, kept: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = RecordIndex.open(str(folder / "*"), PARTS)
    (place,) = indices(kept)
    if damage == "short":
        (place / "bbox.npy").write_bytes((place / "bbox.npy").read_bytes()[:150])
    elif damage == "absent":
        (place / "bbox.npy").unlink()
    else:
        for path in (*place.iterdir(), *kept.glob("*.lock")):
            path.unlink()
        place.rmdir()
        kept.rmdir()
        kept.write_text("no folder")
    assert_same(RecordIndex.open(str(folder / "*"), PARTS), built)
    if damage != "folder":
        monkeypatch.setattr("fasthg.data.index.record_index._read", not_read)
        assert_same(RecordIndex.open(str(folder / "*"), PARTS), built)


def test_every_reader_is_in_the_digest() -> None:
    """What reads an index, by the imports of `record_index` and of what it imports."""
    data = Path(index_cache.__file__).parent.parent
    todo, seen = {data / "index" / "record_index.py"}, set[Path]()
    while todo:
        path = todo.pop()
        seen.add(path)
        source = path.read_text(encoding="utf-8")
        names = re.findall(r"^from fasthg\.data\.([\w.]+) import", source, re.MULTILINE)
        names += [
            f"index.{n}"
            for n in re.findall(r"^from fasthg\.data\.index import (\w+)", source, re.M)
        ]
        paths = {data / f"{name.replace('.', '/')}.py" for name in names}
        todo |= {path for path in paths if path.exists()} - seen
    # What runs readers decides nothing that is in an index.
    digested = set(index_cache.reader_sources())
    assert len(digested) >= 9 and seen - digested <= {data / "forks.py"}


def test_unused_indices_are_removed(folder: Path, kept: Path) -> None:
    RecordIndex.open(str(folder / "train-0"), PARTS)
    (old,) = indices(kept)
    os.utime(old, (0, 0))
    RecordIndex.open(str(folder / "train-1"), PARTS)
    assert old not in indices(kept) and len(indices(kept)) == 1
    os.utime(indices(kept)[0], (0, 0))
    RecordIndex.open(str(folder / "train-1"), PARTS)  # used again
    RecordIndex.open(str(folder / "train-2"), PARTS)
    assert len(indices(kept)) == 2


def test_who_asks_meanwhile_waits(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = get_context("fork")
    reading = fork.Event()

    def first() -> None:
        def slow(self: builder.IndexBuilder, path: str, *, verify_crc: bool) -> None:
            reading.set()
            time.sleep(0.1)
            read(self, path, verify_crc=verify_crc)

        read = builder.IndexBuilder.add_file
        builder.IndexBuilder.add_file = slow  # type: ignore[method-assign]
        RecordIndex.open(str(folder / "*"), PARTS)

    process = fork.Process(target=first)
    process.start()
    assert reading.wait(30)
    monkeypatch.setattr("fasthg.data.index.record_index._read", not_read)
    assert len(RecordIndex.open(str(folder / "*"), PARTS)) == 23
    process.join()
