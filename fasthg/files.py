"""Atomic writes: a temporary file in the same folder is forced to the disk and moved into place.

An interrupted write leaves the older file as it was.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fasthg.errors import FasthgError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path in the same folder, then move it to `path`.

    Missing folders are made.

    Raises:
        FasthgError: the disk is full or the folder cannot be written; an older `path` is intact.
    """
    with _temporary(path) as temporary, _explained(path):
        write(temporary)
        _replace(temporary, path)


def write_chunks(path: Path, chunks: Iterable[bytes]) -> int:
    """Write `chunks` one after the other, atomically, and return their number.

    Raises:
        FasthgError: as `write_atomically`. What `chunks` itself raises passes unchanged.
    """
    count = 0
    with _temporary(path) as temporary:
        with _explained(path):
            file = temporary.open("wb")
        with file:
            for chunk in chunks:
                with _explained(path):
                    file.write(chunk)
                count += 1
            with _explained(path):
                file.flush()
        with _explained(path):
            _replace(temporary, path)
    return count


def write_bytes(path: Path, data: bytes) -> None:
    """Write one file atomically; see `write_atomically`."""
    write_chunks(path, [data])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8; see `write_atomically`."""
    write_chunks(path, [text.encode()])


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Key that sorts names as people number them: img2 before img10.

    Numbers compare by value, other text without case, ties by the name itself.
    """
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces if p], name


@contextlib.contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files are moved to `folder` at the end and replace those there.

    Where anything is raised, `folder` stays as it was. What processes of this host that were killed
    left in `folder` is removed first.

    Raises:
        FasthgError: as `write_atomically`.
    """
    host = re.sub(r"\W", "_", socket.gethostname())
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".new-{host}-*-*"):
            number = left.name.split("-")[2]
            if number.isdigit() and not _runs(int(number)):
                shutil.rmtree(left, ignore_errors=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=f".new-{host}-{os.getpid()}-")
    with temporary as name:
        yield Path(name)
        with _explained(folder):
            for path in sorted(Path(name).iterdir()):
                os.replace(path, folder / path.name)


def _runs(process: int) -> bool:
    """Whether there is such a process, as far as that can be told: on Windows it cannot."""
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no process' number
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writes from `folder`; no other process may write there."""
    for path in folder.glob(".*.*"):
        # .<name>.<process>, see _temporary
        if path.suffix[1:].isdigit() and path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which is made; removed at the end if it is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the file system become one line with a remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FasthgError(
            f"{path}: cannot write ({reason}); free disk space or write elsewhere"
        ) from error


def _replace(temporary: Path, path: Path) -> None:
    """Move a file into place once its content is on the disk: it could be empty after a crash."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
