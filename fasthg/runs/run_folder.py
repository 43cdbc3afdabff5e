"""The run folder: all files of one training.

`config.yaml` (a copy), `config.resolved.yaml`, `env.json`, `metrics.jsonl`, TensorBoard events,
`checkpoints/{last.pt, step_*.pt, best.safetensors}`, `eval/<split>/` and `report.html`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.config import Config, dump_config, load_config
from fasthg.config.here import text_elsewhere
from fasthg.config.presets import find_weights
from fasthg.errors import DataError, FasthgError
from fasthg.files import remove_leftovers, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

EARLY = "stopped_early"
"""In the row of `metrics.jsonl` of the step after which EARLY_STOP_PATIENCE ended the training:
why."""
WEIGHTS_SUFFIX = ".safetensors"
_LOCKED_HERE: set[Path] = set()
"""Run folders that this process trains in."""


def plain(value: Any) -> Any:
    """Arrays and tuples to lists, and numbers that JSON lacks (NaN, infinity) to null."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def early_stop(rows: Iterable[Mapping[str, Any]]) -> tuple[int, str] | None:
    """Step and reason of an early stop; None where there was none, or the run went on since.

    rows: of a log.
    """
    found, newest = None, 0
    for row in rows:
        step = row.get("step", 0)
        newest = max(newest, step)
        if EARLY in row:
            found = step, str(row[EARLY])
    return found if found is not None and found[0] == newest else None


class RunFolder:
    """Paths of a run, and its append-only log of metrics."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.safetensors"
        self.resolved = path / "config.resolved.yaml"
        self._began = time.monotonic()

    @classmethod
    def create(cls, config: Config, source: Path | None, stem: str) -> RunFolder:
        """Make a new run folder; an existing one is never written into.

        Args:
            config: RUNS_DIR and RUN_NAME name the folder; a number is added where it exists.
            source: the configuration file, copied into the folder; the copy names the place of
                `$HERE`.
            stem: name used with the time where RUN_NAME is null.

        Raises:
            FasthgError: the folder cannot be made.
        """
        name = config.RUN_NAME or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        parent = Path(config.RUNS_DIR)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = parent / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise FasthgError(
                f"{parent}: cannot make a run folder ({error.strerror}); choose another RUNS_DIR"
            ) from error
        run = cls(path)
        if source is not None:
            text = source.read_text(encoding="utf-8-sig")
            write_text(path / "config.yaml", text_elsewhere(text, source.parent))
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            DataError: `path` is not a run folder.
        """
        run = cls(path)
        if not run.resolved.is_file():
            raise DataError(f"{path}: not a run folder (no {run.resolved.name}); give runs/<name>")
        return run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one training, and remove temporary files of a killed one.

        The lock ends with the process, however that ends; the loader's workers do not hold it. On
        a file system without locks nothing is locked.

        Raises:
            FasthgError: another training runs here.
        """
        with (self.path / ".lock").open("a+") as file:
            if fcntl is not None:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    file.seek(0)
                    raise FasthgError(
                        f"{self.path}: {file.read().strip() or 'another process'} trains in it; "
                        "wait for its end or start a run with another RUN_NAME"
                    ) from None
                except OSError:
                    pass
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for folder in (self.path, self.checkpoints):
                remove_leftovers(folder)
            own = self.path.resolve()
            _LOCKED_HERE.add(own)
            try:
                yield
            finally:
                _LOCKED_HERE.discard(own)

    def in_use(self) -> bool:
        """Whether a training has the folder locked; False where there are no locks."""
        # Closing the file would end a lock of this very process.
        if self.path.resolve() in _LOCKED_HERE:
            return True
        # Without a lock file, or on a file system without locks, nobody is there.
        with contextlib.suppress(OSError), (self.path / ".lock").open("rb") as file:
            if fcntl is not None:
                try:
                    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    return True
        return False

    def config(self, overrides: list[str] | None = None) -> Config:
        """The run's configuration, with overrides."""
        return load_config(self.resolved, overrides or [])

    def write_config(self, config: Config) -> None:
        """Write `config.resolved.yaml`, with paths of data that hold from any folder."""
        splits = {
            split: tuple(os.path.abspath(pattern) for pattern in patterns)
            for split, patterns in config.DATA.model_dump().items()
            if patterns is not None
        }
        places: dict[str, Any] = {"DATA": config.DATA.model_copy(update=splits)}
        if config.MARS_PROJECT is not None:
            places["MARS_PROJECT"] = os.path.abspath(config.MARS_PROJECT)
        if config.INIT.WEIGHTS is not None:
            weights = {"WEIGHTS": os.path.abspath(find_weights(config.INIT.WEIGHTS))}
            places["INIT"] = config.INIT.model_copy(update=weights)
        config = config.model_copy(update=places)
        write_text(self.resolved, dump_config(config))

    def eval_folder(self, split: str) -> Path:
        """Where an evaluation on `split` goes."""
        return self.path / "eval" / split

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in the run folder, atomically."""
        write_text(self.path / name, json.dumps(plain(value), indent=2) + "\n")

    def environment(self) -> dict[str, Any] | None:
        """`env.json`; None where it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            value = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else None
        return None

    def start_clock(self) -> None:
        """Begin to count `elapsed_s`; in a resumed run it goes on from the last row of the log."""
        before = [row["elapsed_s"] for row in self.logged() if "elapsed_s" in row]
        self._began = time.monotonic() - (before[-1] if before else 0.0)

    def log(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line to `metrics.jsonl`, with `time` and `elapsed_s`; returns what it holds.

        `time` is in s since 1970 (UTC). `elapsed_s` is the s that the run has trained and
        validated; steps that a killed process made after its last checkpoint do not count.

        Raises:
            FasthgError: the disk is full or the folder is read-only.
        """
        path = self.path / "metrics.jsonl"
        times = {
            "time": round(time.time(), 3),
            "elapsed_s": round(time.monotonic() - self._began, 3),
        }
        written = {**plain(row), **times}
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(written) + "\n")
        except OSError as error:
            raise FasthgError(
                f"{path}: cannot write ({error.strerror}); free disk space, then --resume"
            ) from error
        return written

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, less those that a full disk cut off; none without it."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def stopped_early(self) -> tuple[int, str] | None:
        """`early_stop` of its log."""
        return early_stop(self.logged())

    def truncate_log(self, step: int) -> None:
        """Drop rows after `step`: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = (row for row in self.logged() if row.get("step", 0) <= step)
            write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def __fspath__(self) -> str:
        return os.fspath(self.path)
