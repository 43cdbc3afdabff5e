"""Indices of large data sets kept between runs and shared by the processes of a machine.

An index is a folder of .npy files in the user's cache, which processes map into memory: the ranks
of a node hold it once. Its name is a digest of path, size and times of every file, the number of
parts and the code that read them, so an index of other files is never found. FASTHG_CACHE is the
folder (`$XDG_CACHE_HOME/fasthg`, else `~/.cache/fasthg`), of one user; empty, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# Smaller files are read in less than a few seconds.
LEAST_BYTES = 1 << 28
# A file so young may change again without a change of its times.
_YOUNG_SECONDS = 2.0
# Longer than any job that may still map what is removed.
_UNUSED_SECONDS = 90 * 24 * 3600
_TINY = 1 << 12
# What decides what an index holds: all modules of these packages of `fasthg.data`.
_READERS = ("records", "index")

Arrays = Mapping[str, npt.NDArray[Any]]


def reader_sources() -> list[Path]:
    """The files of code that decide what an index holds."""
    data = Path(__file__).resolve().parent.parent
    return [path for name in _READERS for path in sorted((data / name).glob("*.py"))]


def place_of(files: Sequence[str], num_parts: int) -> Path | None:
    """Where the index of these files lies or will; None where none is to be kept.

    That is so for small and for very young files, and where their times cannot be read.
    """
    given = os.environ.get("FASTHG_CACHE")
    if given == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = Path(given or os.path.join(base, "fasthg")).expanduser()
    try:
        found = [os.stat(path) for path in files]
        code = [path.read_bytes() for path in reader_sources()]
    except OSError:
        return None
    newest = max(max(each.st_mtime, each.st_ctime) for each in found)
    if sum(each.st_size for each in found) < LEAST_BYTES or newest > time.time() - _YOUNG_SECONDS:
        return None
    stamps = [
        (os.path.abspath(path), each.st_size, each.st_mtime_ns, each.st_ctime_ns)
        for path, each in zip(files, found, strict=True)
    ]
    digest = hashlib.blake2b(b"\0".join(code), digest_size=16)
    digest.update(json.dumps([num_parts, sys.byteorder, stamps]).encode())
    return folder / "index" / digest.hexdigest()


def load(place: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """The arrays kept at a place, mapped into memory and read-only; None unless all are there."""
    try:
        arrays = {name: _map(place / f"{name}.npy") for name in names}
    except (OSError, ValueError, EOFError):
        return None
    with contextlib.suppress(OSError):
        os.utime(place)  # when it was last used
    return arrays


def _map(path: Path) -> npt.NDArray[Any]:
    # What is empty cannot be mapped.
    tiny = path.stat().st_size < _TINY
    return np.asarray(np.load(path, mmap_mode=None if tiny else "r"))


def store(place: Path, arrays: Arrays) -> None:
    """Keep arrays at a place, whole or not at all, and remove what was not used for long.

    Says in the log where that fails; nothing depends on it.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(place.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
        try:
            for name, array in arrays.items():
                with open(partial / f"{name}.npy", "wb") as stream:
                    np.save(stream, array)
                    stream.flush()
                    os.fsync(stream.fileno())
            shutil.rmtree(place, ignore_errors=True)  # one that could not be loaded
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        log.info("the index is not kept for the next run: %s", error)


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Be the only process that makes what belongs at a place; others wait and then find it.

    Without locks on the file system, or where nothing can be written, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(place.with_suffix(".lock").open("a"))
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > time.time() - _UNUSED_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
