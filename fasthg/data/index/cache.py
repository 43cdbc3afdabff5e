"""Disk cache of the indices of large data sets, shared by runs and by the processes of a machine.

An entry is a folder of .npy files that processes map into memory, so the ranks of a node hold one
copy. Its name is a digest of the path, size and times of every data file, of the number of parts
and of the source code that reads records: a changed file or a changed reader never matches an old
entry. FASTHG_CACHE names the cache folder of one user (default `$XDG_CACHE_HOME/fasthg`, else
`~/.cache/fasthg`); set to the empty string it turns the cache off.
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

# Data sets below this size are read in a few seconds and are not cached.
LEAST_BYTES = 1 << 28
# A file modified less than this ago may change again within the resolution of its time stamps.
_YOUNG_SECONDS = 2.0
# Age at which an unused entry is removed: longer than any job that may still map it.
_UNUSED_SECONDS = 90 * 24 * 3600
# Files up to this many bytes are read instead of mapped; empty arrays cannot be mapped.
_TINY = 1 << 12
# Subpackages of `fasthg.data` whose source decides the content of an index.
_READERS = ("records", "index")

Arrays = Mapping[str, npt.NDArray[Any]]


def reader_sources() -> list[Path]:
    """Source files whose code decides the content of an index; part of the name of an entry."""
    data = Path(__file__).resolve().parent.parent
    return [path for name in _READERS for path in sorted((data / name).glob("*.py"))]


def entry_of(files: Sequence[str], num_parts: int) -> Path | None:
    """Folder of the cache entry of these files, existing or not; None where none is kept.

    None for small data sets, for files changed within the last two seconds, where the time stamps
    cannot be read, and with an empty FASTHG_CACHE.
    """
    override = os.environ.get("FASTHG_CACHE")
    if override == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = Path(override or os.path.join(base, "fasthg")).expanduser()
    try:
        stats = [os.stat(path) for path in files]
        code = [path.read_bytes() for path in reader_sources()]
    except OSError:
        return None
    newest = max(max(stat.st_mtime, stat.st_ctime) for stat in stats)
    if sum(stat.st_size for stat in stats) < LEAST_BYTES or newest > time.time() - _YOUNG_SECONDS:
        return None
    stamps = [
        (os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for path, stat in zip(files, stats, strict=True)
    ]
    digest = hashlib.blake2b(b"\0".join(code), digest_size=16)
    digest.update(json.dumps([num_parts, sys.byteorder, stamps]).encode())
    return folder / "index" / digest.hexdigest()


def load(entry: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """The arrays of an entry, memory-mapped and read-only; None unless all of `names` exist."""
    try:
        arrays = {name: _map(entry / f"{name}.npy") for name in names}
    except (OSError, ValueError, EOFError):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # the time of last use, for `_remove_unused`
    return arrays


def _map(path: Path) -> npt.NDArray[Any]:
    tiny = path.stat().st_size < _TINY
    return np.asarray(np.load(path, mmap_mode=None if tiny else "r"))


def store(entry: Path, arrays: Arrays) -> None:
    """Write the arrays of an entry, all or none, and remove entries that were not used for long.

    A failure is logged and not raised: the next run reads the records again.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(entry.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
        try:
            for name, array in arrays.items():
                with open(partial / f"{name}.npy", "wb") as stream:
                    np.save(stream, array)
                    stream.flush()
                    os.fsync(stream.fileno())
            shutil.rmtree(entry, ignore_errors=True)  # an entry that could not be loaded
            partial.rename(entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        log.info("the index is not kept for the next run: %s", error)


@contextlib.contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of an entry, so that one process writes it and the others then load it.

    Where the file system has no locks or cannot be written, the block runs without one.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(entry.with_suffix(".lock").open("a"))
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
