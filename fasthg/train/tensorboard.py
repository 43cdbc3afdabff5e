"""TensorBoard events of a run."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from fasthg.errors import FasthgError


class Summary:
    """Scalars and images for TensorBoard.

    Every call writes in the caller's thread and raises where the disk is full. torch's
    SummaryWriter writes in a thread of its own, whose errors reach nobody.

    Args:
        folder: the run folder; None writes nothing, as on every rank but the first.
        purge_step: TensorBoard drops older events from this step on: a resumed run writes them
            again.

    Raises:
        FasthgError: the disk is full or the folder cannot be written; so does every method.
    """

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        self._folder = folder
        self._records: RecordWriter | None = None
        if folder is None:
            return
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        paths = (folder / f"{name}.{number}" for number in itertools.count())
        path = next(path for path in paths if not path.exists())
        with self._explained():
            self._records = RecordWriter(path.open("wb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def row(self, values: Mapping[str, Any]) -> None:
        """Write a row of metrics at its `step`; a list becomes one curve per stack."""
        for name, value in values.items():
            if name == "step":
                continue
            for number, item in enumerate(value if isinstance(value, list) else [value]):
                tag = f"{name}/stack{number}" if isinstance(value, list) else name
                self._write(Event(step=values["step"], summary=summary.scalar(tag, item)))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write an image, uint8 `(height, width, 3)`, RGB."""
        encoded = summary.image(name, pixels, dataformats="HWC")
        self._write(Event(step=step, summary=encoded))

    def close(self) -> None:
        """Close the file; may be called after an error."""
        if self._records is not None:
            self._records.close()

    def _write(self, event: Event) -> None:
        if self._records is None:
            return
        event.wall_time = time.time()
        with self._explained():
            self._records.write(event.SerializeToString())
            self._records.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FasthgError(
                f"{self._folder}: cannot write TensorBoard events ({error.strerror}); "
                "free disk space, then --resume"
            ) from error
