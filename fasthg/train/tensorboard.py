"""TensorBoard events of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from fasthg.errors import FasthgError


class Summary:
    """Writes scalars and pictures for TensorBoard.

    TensorBoard writes in a thread of its own; where that thread fails (a full disk), the next call
    here raises, instead of a traceback on the terminal and a run that goes on unseen.

    Args:
        folder: the run folder; None writes nothing, as all processes but the first.
        purge_step: events from this step on are replaced, as a resumed run writes them again.
    """

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        self._folder = folder
        self._fault: OSError | None = None
        self._hook = threading.excepthook
        self._writer: SummaryWriter | None = None
        if folder is None:
            return
        threading.excepthook = self._note
        self._writer = self._guard(lambda: SummaryWriter(str(folder), purge_step=purge_step))

    def row(self, values: Mapping[str, Any]) -> None:
        """Write a row of metrics at its `step`; a list becomes one curve per stack."""
        writer = self._writer
        if writer is None:
            return
        for name, value in values.items():
            if name == "step":
                continue
            for number, item in enumerate(value if isinstance(value, list) else [value]):
                tag = f"{name}/stack{number}" if isinstance(value, list) else name
                self._guard(lambda: writer.add_scalar(tag, item, values["step"]))  # noqa: B023

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture, uint8 `(height, width, 3)`."""
        writer = self._writer
        if writer is not None:
            self._guard(lambda: writer.add_image(name, pixels, step, dataformats="HWC"))

    def close(self) -> None:
        """Write what is left; raises only if nothing failed before."""
        writer, failed = self._writer, self._fault is not None
        if writer is None:
            return
        try:
            self._guard(writer.close)
        except FasthgError:
            if not failed:
                raise
        finally:
            threading.excepthook = self._hook

    def _note(self, args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError):
            self._fault = args.exc_value
        else:
            self._hook(args)

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            if self._fault is not None:
                raise self._fault
            return call()
        except OSError as error:
            self._fault = error
            raise FasthgError(
                f"{self._folder}: cannot write TensorBoard events ({error.strerror}); "
                "free disk space, then --resume"
            ) from error
