"""Files of a run that hold weights: training state (`*.pt`) and EMA weights (`*.safetensors`).

Every file is written to a temporary file in the same folder, forced to the disk and moved into
place, so an interrupted write leaves the older file as it was. A training state is a zip archive;
its comment holds a checksum of the file, which torch ignores. torch itself reads archives without
checking their sums.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fasthg.errors import DataError
from fasthg.files import write_atomically

FORMAT = 3
CHECKSUM = "crc32"
"""Key of a weights file's metadata: the CRC-32 of all its tensors' bytes, by name in order."""

# The comment of the archive: the CRC-32 of all before the comment's length, the last 2 bytes of an
# archive without one.
_SEAL = b"crc32="
_SEALED = len(_SEAL) + 8
_CHUNK = 1 << 22


class DamagedFile(DataError):
    """The content of a file is not what was written."""


class NoCheckpoint(DataError):
    """A run has not saved a training state yet."""


class UnreadableFile(DataError):
    """The disk fails to read a file of a run."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a training state: nested dicts and lists of tensors and plain values."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:
                # torch's messages for a failed write vary; the system's error is their context.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        _seal(temporary)

    write_atomically(path, write)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checksum(path: Path, length: int) -> bytes:
    """CRC-32 of the first `length` bytes, as 8 hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(_CHUNK, length))):
            value = zlib.crc32(chunk, value)
            length -= len(chunk)
    return b"%08x" % value


def _seal(path: Path) -> None:
    """Write the checksum of an archive into its comment, which is empty before."""
    end = path.stat().st_size - 2
    comment = _SEAL + _checksum(path, end)
    with path.open("r+b") as file:
        file.seek(end)
        if file.read() != b"\0\0":
            raise ValueError(f"{path}: expected an archive without a comment")
        file.seek(end)
        file.write(len(comment).to_bytes(2, "little") + comment)


def _is_sound(path: Path) -> bool:
    """Whether the checksum of a training state is right."""
    end = path.stat().st_size - _SEALED - 2
    with path.open("rb") as file:
        file.seek(max(end, 0))
        comment = file.read()[2:]
    return comment == _SEAL + _checksum(path, end)


def _comment(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return b"?"


def load_state(path: Path) -> dict[str, Any]:
    """Load a training state; runs no code from the file.

    Raises:
        DamagedFile: it is not what was written.
        DataError: it is missing or of another format.
    """
    try:
        if not _is_sound(path):
            if not _comment(path):
                raise DataError(
                    f"{path}: not a checkpoint of format {FORMAT}, it has no checksum; train again "
                    "with this version"
                )
            raise DamagedFile(f"{path}: damaged, its checksum is wrong; use an older one")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; give a run folder that has one") from None
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}; check the disk") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # It is what was written: no damage.
        raise DataError(
            f"{path}: not a readable checkpoint ({_first_line(error)}); use an older one"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(
            f"{path}: not a checkpoint of format {FORMAT}; train again with this version"
        )
    return state


def load_newest(folder: Path) -> tuple[Path, dict[str, Any], list[DataError]]:
    """The newest training state of a run that can be read.

    Returns its path, the state, and the faults of newer ones. Damaged files are renamed to
    `*.damaged`.

    Raises:
        NoCheckpoint: there is none yet.
        DataError: none can be read, or it is of another format.
    """
    faults: list[DataError] = []
    failed: set[tuple[int, int]] = set()
    for path in _newest_first(folder):
        status = path.stat()
        # last.pt is a link to the newest file, so its fault is reported once. It is read
        # nevertheless, as some network file systems give many files one inode number.
        inode = (status.st_dev, status.st_ino)
        is_link = path.name == "last.pt" and inode in failed
        try:
            return path, load_state(path), faults
        except UnreadableFile as error:
            if not is_link:
                faults.append(error)
        except DamagedFile as error:
            if is_link:
                path.unlink()
            else:
                faults.append(error)
                path.rename(path.with_name(f"{path.name}.damaged"))
        failed.add(inode)
    if faults:
        raise DataError(f"{faults[0]}, but {folder} has none; train again")
    raise NoCheckpoint(f"{folder}: no checkpoint; give a run folder that has one")


def _newest_first(folder: Path) -> Iterator[Path]:
    def newest(pattern: str) -> list[Path]:
        return sorted(folder.glob(pattern), key=lambda path: path.name, reverse=True)

    steps = newest("step_*.pt")
    # last.pt is a link to the newest or, where there are no links, a copy of it.
    yield from [*steps[:1], *newest("last.pt"), *steps[1:], *newest("kept_*.pt")]


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Save weights with their description and a checksum as safetensors."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    described = {**metadata, CHECKSUM: _sum_of(plain)}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(plain, temporary, described)
        except safetensors.SafetensorError as error:
            # A failed write is reported as an error of its own.
            raise OSError(errno.EIO, _first_line(error)) from error
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone

    write_atomically(path, write)


def _sum_of(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].view(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file; those of other writers have no checksum.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except FileNotFoundError:
        raise DataError(f"{path}: no such weights; train first") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a readable weights file ({error}); train again") from error
    if metadata.pop(CHECKSUM, None) not in (None, _sum_of(tensors)):
        raise DamagedFile(f"{path}: damaged, its checksum is wrong; train on with --resume")
    return tensors, metadata


class CheckpointKeeper:
    """Saves training states, decides when a save is due, and removes old files.

    `last.pt` is always the newest. Of `step_*.pt` the newest MAX_TO_KEEP stay; of those that leave,
    one for every KEEP_CHECKPOINT_EVERY_N_HOURS of training stays for good as `kept_*.pt`.

    Args:
        folder: where the files lie.
        interval: seconds between two saves (SAVE_INTERVAL_SECS).
        max_to_keep: MAX_TO_KEEP, at least 1.
        keep_every_hours: KEEP_CHECKPOINT_EVERY_N_HOURS.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        folder: Path,
        interval: float,
        max_to_keep: int,
        keep_every_hours: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.interval = interval
        self.max_to_keep = max_to_keep
        self.keep_every = keep_every_hours * 3600.0
        self._clock = clock
        self._last_save = self._last_kept = clock()
        self._recent = sorted(folder.glob("step_*.pt"), key=lambda p: p.name)
        self._saved_at = {path: self._last_kept for path in self._recent}

    def due(self) -> bool:
        """True once the interval has passed since the last save."""
        return self._clock() - self._last_save >= self.interval

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Save `state` as `step_<step>.pt` and `last.pt`; remove old ones."""
        path = self.folder / f"step_{step:08d}.pt"
        save_state(path, state)
        write_atomically(self.folder / "last.pt", lambda p: _link(path, p))
        now = self._last_save = self._clock()
        if path not in self._saved_at:
            self._recent.append(path)
        self._saved_at[path] = now
        while len(self._recent) > self.max_to_keep:
            oldest = self._recent.pop(0)
            saved = self._saved_at.pop(oldest)
            if not oldest.exists():  # a damaged one has another name by now
                continue
            if saved - self._last_kept >= self.keep_every:
                self._last_kept = saved
                oldest.rename(oldest.with_name(oldest.name.replace("step", "kept")))
            else:
                oldest.unlink(missing_ok=True)
        return path


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
