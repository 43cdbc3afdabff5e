"""Atomic writes: what is on the disk, and when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fasthg.files import (
    natural,
    write_atomically,
    write_bytes,
    write_chunks,
    write_text,
    written_together,
)
from fasthg.runs.checkpoint import save_state, save_weights

WRITERS: dict[str, Callable[[Path], object]] = {
    "atomically": lambda path: write_atomically(path, lambda p: p.write_bytes(b"abc") and None),
    "chunks": lambda path: write_chunks(path, [b"ab", b"c"]),
    "bytes": lambda path: write_bytes(path, b"abc"),
    "text": lambda path: write_text(path, "abc"),
    "state": lambda path: save_state(path, {"step": 1}),
    "weights": lambda path: save_weights(path, {"w": torch.ones(9)}, {}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_content_is_forced_to_the_disk_before_the_file_is_moved(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the name may outlive a power cut and the content not."""
    calls: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append(("fsync", status.st_ino, status.st_size))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        status = os.stat(source)
        calls.append(("replace", status.st_ino, status.st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    path = tmp_path / "file"
    WRITERS[writer](path)
    status = path.stat()
    # Of the same file, and with all that was written.
    assert status.st_size >= 3
    assert calls == [(name, status.st_ino, status.st_size) for name in ("fsync", "replace")]


def test_names_sort_as_they_are_numbered() -> None:
    names = ["img10.png", "img2.png", "img1.png", "IMG3.png", "a-2-1", "a-10-1", "a-2-10", "7", "b"]
    expected = ["7", "a-2-1", "a-2-10", "a-10-1", "b"]
    expected += ["img1.png", "img2.png", "IMG3.png", "img10.png"]
    assert sorted(names, key=natural) == expected
    assert sorted(["0001", "1", "01"], key=natural) == ["0001", "01", "1"]


def test_files_written_together_by_a_killed_process_go(tmp_path: Path) -> None:
    """SIGKILL leaves them to the next write; of a process that runs they stay."""
    code = (
        "import sys; from pathlib import Path; from fasthg.files import written_together\n"
        "with written_together(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').touch(); print('there', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        with written_together(tmp_path):
            assert len([*tmp_path.glob(".new-*/a")]) == 1
        process.kill()
    assert len([*tmp_path.iterdir()]) == 1
    with written_together(tmp_path) as folder:
        (folder / "b").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
