"""How a training that torchrun starts anew (`--max-restarts`) finds its run folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fasthg.files import write_text


class Restarts:
    """A note in RUNS_DIR of which run this job of torchrun trains.

    A job is known by its `--rdzv-id`, or without one by torchrun's process, which starts the ranks
    anew itself.

    Args:
        runs: RUNS_DIR; on several machines the same folder.
        environment: TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT, which torchrun sets.
    """

    def __init__(self, runs: Path, environment: Mapping[str, str] = os.environ) -> None:
        count = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.count = int(count) if count.isdecimal() else 0
        job = environment.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none":
            job = f"process-{os.getppid()}"
        self._note = runs / f".restart-{re.sub(r'[^A-Za-z0-9_-]', '-', job)}"

    def find(self) -> Path | None:
        """The run folder of the attempt before; None in the first attempt, or if it had none."""
        if not self.count or not self._note.is_file():
            return None
        run = Path(self._note.read_text(encoding="utf-8"))
        return run if run.is_dir() else None

    def note(self, run: Path) -> None:
        """Keep the run folder for the attempts to come."""
        write_text(self._note, str(run.absolute()))

    def forget(self) -> None:
        """The job is done."""
        with contextlib.suppress(OSError):
            self._note.unlink(missing_ok=True)
