"""Checkpoints: atomic, complete, kept as the keys say."""

from __future__ import annotations

import os
from pathlib import Path

import forked
import pytest
import torch

from fasthg.errors import DataError, FasthgError
from fasthg.files import remove_leftovers, write_atomically
from fasthg.runs.checkpoint import (
    FORMAT,
    CheckpointKeeper,
    DamagedFile,
    NoCheckpoint,
    load_newest,
    load_state,
    load_weights,
    save_state,
    save_weights,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(folder: Path) -> list[int]:
    return sorted(int(p.stem.split("_")[1]) for p in folder.glob("step_*.pt"))


def test_state_round_trip(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", {"step": 3, "model": {"w": torch.arange(3.0)}})
    state = load_state(tmp_path / "a.pt")
    assert state["step"] == 3
    assert torch.equal(state["model"]["w"], torch.arange(3.0))


def test_weights_round_trip(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", {"w": weight}, {"parts": '["nose"]'})
    tensors, metadata = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(tensors["w"], weight)
    assert metadata == {"parts": '["nose"]'}
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_state(path, {"step": 1})

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FasthgError, match=r"a\.pt: cannot write \(No space left"):
        write_atomically(path, full)
    assert load_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_path_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FasthgError, match="cannot write"):
        save_state(tmp_path / "file" / "a.pt", {})


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"last\.pt"):
        load_state(path)
    with pytest.raises(DataError, match=r"last\.pt"):
        load_weights(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such checkpoint"):
        load_state(tmp_path / "none.pt")
    torch.save({"epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="not a checkpoint of format") as caught:
        load_state(tmp_path / "other.pt")
    assert not isinstance(caught.value, DamagedFile)  # and so keeps its name
    save_state(tmp_path / "older.pt", {"format": 1})
    with pytest.raises(DataError, match=rf"not a checkpoint of format {FORMAT}"):
        load_newest_of(tmp_path, "older.pt")


def load_newest_of(folder: Path, name: str) -> None:
    """As a run would: a file of another format is no damage and keeps its name."""
    (folder / name).rename(folder / "last.pt")
    try:
        load_newest(folder)
    finally:
        assert (folder / "last.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 4_000, 100_000, 250_000, 399_000])
def test_a_full_disk_leaves_the_old_state(tmp_path: Path, limit: int) -> None:
    """The file-size limit of the process replaces a full disk."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from fasthg.files import remove_leftovers, write_atomically
from fasthg.runs.checkpoint import load_state, save_state
from fasthg.errors import FasthgError
path = Path(sys.argv[1])
state = {"step": 1, "model": {f"w{i}": torch.ones(10_000) for i in range(10)}}
save_state(path, state)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_state(path, {**state, "step": 2})
except FasthgError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
assert load_state(path)["step"] == 1
assert [p.name for p in path.parent.iterdir()] == [path.name]
"""
    status, out, err = forked.python(code, tmp_path / "a.pt", limit).ended()
    assert status == 0, err
    assert "a.pt: cannot write (File too large); free disk space" in out


def test_one_changed_byte_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_state(path, {"step": 1, "model": {"w": torch.arange(1000.0)}})
    assert torch.load(path, weights_only=True)["step"] == 1  # still an archive of torch's
    sound = path.read_bytes()
    for at in [*range(0, len(sound), 97), len(sound) - 1]:
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        with pytest.raises(DamagedFile):
            load_state(path)
    for length in (0, 1, 20, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(DamagedFile):
            load_state(path)


def test_damaged_weights_are_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(64), "n": torch.tensor(3)}, {})
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="checksum"):
        load_weights(path)


def test_the_newest_sound_state_is_found(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, 0, 5, 1e9)
    for step in (1, 2, 3):
        keeper.save(step, {"step": step})
    assert load_newest(tmp_path)[1]["step"] == 3
    sound = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").unlink()  # a copy of a run has a file of its own there
    (tmp_path / "last.pt").write_bytes(sound)
    (tmp_path / "step_00000003.pt").write_bytes(b"half")
    assert load_newest(tmp_path)[1]["step"] == 3
    os.link(tmp_path / "last.pt", tmp_path / "step_00000003.pt")
    (tmp_path / "last.pt").write_bytes(b"half")  # and step 3, the same file
    path, state, faults = load_newest(tmp_path)
    assert (path.name, state["step"], len(faults)) == ("step_00000002.pt", 2, 1)
    assert steps(tmp_path) == [1, 2]
    keeper.max_to_keep, keeper.keep_every = 1, 0
    keeper.save(4, {"step": 4})
    assert steps(tmp_path) == [4] and len([*tmp_path.glob("kept_*.pt")]) == 2
    for file in tmp_path.glob("*.pt"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"but .* has none; train again"):
        load_newest(tmp_path)
    with pytest.raises(NoCheckpoint, match="no checkpoint"):
        load_newest(tmp_path)


def test_sound_states_stay_where_inode_numbers_are_not_unique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems; last.pt is a copy there."""
    keeper = CheckpointKeeper(tmp_path, 0, 5, 1e9)
    for step in (1, 2, 3, 4):
        keeper.save(step, {"step": step})
    status = Path.stat

    def one_number(self: Path, **options: bool) -> os.stat_result:
        values = list(status(self, **options))
        values[1] = 7  # st_ino
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", one_number)
    sound = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").write_bytes(sound)
    (tmp_path / "step_00000004.pt").write_bytes(b"half")
    path, state, faults = load_newest(tmp_path)
    assert (path.name, state["step"], len(faults)) == ("last.pt", 4, 1)
    for name in ("last.pt", "step_00000003.pt", "step_00000002.pt"):
        (tmp_path / name).write_bytes(b"half")
    path, state, _ = load_newest(tmp_path)
    assert (path.name, state["step"]) == ("step_00000001.pt", 1)
    assert load_newest(tmp_path)[1]["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000001.pt",
        *(f"step_0000000{step}.pt.damaged" for step in (2, 3, 4)),
    ]


def test_only_leftovers_of_writes_are_removed(tmp_path: Path) -> None:
    for name in (".last.pt.123", ".lock", ".a.b", "step_1.pt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.b", ".lock", "step_1.pt"]


def test_no_code_runs_from_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"format": FORMAT, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt"):
        load_state(tmp_path / "evil.pt")


def test_the_newest_are_kept(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, 60.0, max_to_keep=2, keep_every_hours=1e9, clock=Clock())
    for step in (1, 2, 3, 4):
        keeper.save(step, {"step": step})
    assert steps(tmp_path) == [3, 4]
    assert load_state(tmp_path / "last.pt")["step"] == 4


def test_one_in_n_hours_stays_for_good(tmp_path: Path) -> None:
    clock = Clock()
    keeper = CheckpointKeeper(tmp_path, 60.0, max_to_keep=1, keep_every_hours=3, clock=clock)
    for hour in range(8):
        clock.now = hour * 3600.0
        keeper.save(hour, {"step": hour})
    assert sorted(p.name for p in tmp_path.glob("kept_*")) == [
        "kept_00000003.pt",
        "kept_00000006.pt",
    ]
    CheckpointKeeper(tmp_path, 60.0, max_to_keep=1, keep_every_hours=3, clock=clock).save(8, {})
    assert steps(tmp_path) == [8]
    assert len(list(tmp_path.glob("kept_*"))) == 2


def test_saves_are_due_by_time(tmp_path: Path) -> None:
    clock = Clock()
    keeper = CheckpointKeeper(tmp_path, 60.0, 1, 1.0, clock=clock)
    assert not keeper.due()
    clock.now = 61.0
    assert keeper.due()
    keeper.save(1, {})
    assert not keeper.due()


def test_a_resumed_keeper_knows_the_older_files(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path / f"step_{step:08d}.pt", {})
    CheckpointKeeper(tmp_path, 60.0, max_to_keep=2, keep_every_hours=1e9).save(4, {})
    assert steps(tmp_path) == [3, 4]
