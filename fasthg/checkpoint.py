"""Files of a run that hold weights: training state (`*.pt`) and EMA weights (`*.safetensors`).

Every file is written beside its target and moved into place, so an interrupted write leaves the
older file as it was.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fasthg.errors import DataError, FasthgError

FORMAT = 2


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path in the same folder, then move it to `path`.

    Raises:
        FasthgError: the disk is full or the folder cannot be written; an older `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # torch and safetensors report a failed write as errors of their own.
        if isinstance(error, RuntimeError) and "riter" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else _cause(error)
        raise FasthgError(
            f"{path}: cannot write ({reason}); free disk space or choose another RUNS_DIR"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cause(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode())

    write_atomically(path, write)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a training state: nested dicts and lists of tensors and plain values."""
    write_atomically(path, lambda p: torch.save({"format": FORMAT, **state}, p))


def load_state(path: Path) -> dict[str, Any]:
    """Load a training state; runs no code from the file.

    Raises:
        DataError: the file is missing, damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; give a run folder that has one") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path}: not a readable checkpoint ({_cause(error)}); use an older one"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(
            f"{path}: not a checkpoint of format {FORMAT}; train again with this version"
        )
    return state


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Save weights with their description as safetensors."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}

    def write(temporary: Path) -> None:
        safetensors.torch.save_file(plain, temporary, dict(metadata))
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone

    write_atomically(path, write)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path}: no such weights; train first") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a readable weights file ({error}); train again") from error


class CheckpointKeeper:
    """Decides when to save and which files stay.

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
        """Save `state` as `step_<step>.pt` and `last.pt`; remove what has to go."""
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
